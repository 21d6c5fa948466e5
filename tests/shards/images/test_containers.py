"""What is left out of a file, and what must be all there."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin, features

from shards.images import containers, pixels

CASES = Path(os.environ.get("EFFIMINI_CORPUS", "../shared/corpus")).parent / "cases/pictures"
LIMIT = 50_000_000
EOI = b"\xff\xd9"


def photo(width=96, height=64, seed=0):
    """Return a picture with detail, so that a missing part of its file shows."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def training(data, max_pixels=LIMIT):
    return pixels.to_training(data, pixels.Preparation(64, "squash", 90, max_pixels))


def outcome(data, **options):
    with pytest.raises(pixels.Unusable) as raised:
        training(data, **options)
    return raised.value.outcome


def segment(marker, body):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def chunk(kind, body, crc=None):
    return (
        struct.pack(">I4s", len(body), kind) + body + struct.pack(">I", zlib.crc32(kind + body) if crc is None else crc)
    )


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
KINDS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "grey": {"mode": "L"},
    "cmyk": {"mode": "CMYK"},
    "4:4:4": {"subsampling": 0},
}


def jpeg(kind, **options):
    settings = KINDS[kind] | options
    return saved(photo().convert(settings.pop("mode", "RGB")), "JPEG", quality=90, **settings)


def marker_at(data, marker, number=0):
    """Return the offset of a marker, outside of the bodies of segments."""
    at, found = 2, []
    while at < len(data) and data[at + 1] != 0xD9:
        if data[at + 1] == marker:
            found.append(at)
        scan = data[at + 1] == 0xDA
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        while scan and not (data[at] == 0xFF and data[at + 1] not in {0, *range(0xD0, 0xD8)}):
            at += 1
    return found[number]


def insert(data, at, body):
    return data[:at] + body + data[at:]


def icc(number, of, body):
    return segment(0xE2, b"ICC_PROFILE\0" + bytes([number, of]) + body)


HARMLESS_JPEG = {
    "an ICC chunk is missing": lambda data: insert(data, 2, icc(1, 2, PROFILE)),
    "an ICC chunk is repeated": lambda data: insert(data, 2, icc(1, 1, PROFILE) * 2),
    "an ICC chunk has number 0": lambda data: insert(data, 2, icc(0, 1, PROFILE)),
    "JFIF 2.01": lambda data: data.replace(b"JFIF\0\1\1", b"JFIF\0\2\1"),
    "stray bytes before the tables": lambda data: insert(data, marker_at(data, 0xDB), b"ab"),
    "stray bytes before the frame": lambda data: insert(data, marker_at(data, 0xC4), b"abc\0"),
    "stray bytes before the scan": lambda data: insert(data, marker_at(data, 0xDA), b"ab"),
    "stray bytes before the end": lambda data: data[:-2] + b"ab" + EOI,
    "fill bytes before a marker": lambda data: insert(data, marker_at(data, 0xDB), b"\xff\xff"),
    "no end": lambda data: data[:-2],
    "half an end": lambda data: data[:-1],
    "trailing text": lambda data: data + b"<html>" * 999,
    "another file behind": lambda data: data + jpeg("baseline"),
    "no end and another file behind": lambda data: data[:-2] + jpeg("baseline"),
    "a broken EXIF": lambda data: insert(data, 2, segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff")),
    "a cut EXIF": lambda data: insert(data, 2, segment(0xE1, b"Exif\0\0MM")),
    "a broken Photoshop block": lambda data: insert(data, 2, segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4")),
    "a comment in another encoding": lambda data: insert(data, 2, segment(0xFE, b"\xff\xd8\xff\xda\x80")),
    "an unknown transform": lambda data: data.replace(b"Adobe\0d\0\0\0\0\2", b"Adobe\0d\0\0\0\0\7"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", HARMLESS_JPEG)
def test_damage_outside_the_pixels_of_a_jpeg_does_no_harm(kind, change):
    data = jpeg(kind)
    assert training(HARMLESS_JPEG[change](data)) == training(data)


def test_a_sequential_scan_has_all_coefficients_whatever_it_says():
    data = jpeg("baseline")
    assert data.count(b"\x00\x3f\x00") == 1
    assert training(data.replace(b"\x00\x3f\x00", b"\x00\x00\x00")) == training(data)


def test_stray_bytes_between_scans_are_cut_off_and_what_comes_behind_is_still_looked_at():
    data = jpeg("progressive")
    for number in (1, 3, 6):
        strays = insert(data, marker_at(data, 0xC4, number), b"ab")
        assert training(strays) == training(data)
        assert outcome(strays[:-200] + EOI) == "corrupt"
    many = data
    for number in (5, 3, 1):
        many = insert(many, marker_at(many, 0xDA, number), b"abc")
    assert training(many) == training(data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", [b"", EOI])
@pytest.mark.parametrize("share", [0.5, 0.75, 0.95])
def test_a_cut_jpeg_is_corrupt(kind, end, share):
    data = jpeg(kind)
    start = marker_at(data, 0xDA)
    assert outcome(data[: start + int((len(data) - start) * share)] + end) == "corrupt"


@pytest.mark.parametrize("end", [b"", EOI])
def test_a_progressive_jpeg_without_its_last_scans_is_corrupt(end):
    data = jpeg("progressive")
    count = data.count(b"\xff\xda")
    assert count > 5
    for number in range(1, count):
        assert outcome(data[: marker_at(data, 0xDA, number)] + end) == "corrupt"


def test_rare_sampling_is_decoded_if_its_end_is_there():
    data = jpeg("cmyk", subsampling="4:2:2")
    assert training(data).width == 96
    assert outcome(data[:-300]) == "corrupt"


def test_harmless_and_real_damage_together_are_corrupt():
    data = jpeg("baseline")
    for change in HARMLESS_JPEG.values():
        assert outcome(change(data[:-300] + EOI)) == "corrupt"
    assert outcome(b"\xff\xd8" + b"\xff\xfe\0\2" * 50) == "corrupt"
    assert outcome(data[:100]) == "corrupt"


def test_the_orientation_is_read_from_sound_metadata_only():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = training(saved(photo(), "JPEG", exif=exif))
    assert (turned.width, turned.height) == (64, 96)
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'
    assert training(insert(jpeg("baseline"), 2, segment(0xE1, xmp))).width == 64
    assert training(saved(photo(), "PNG", exif=exif)).width == 64
    with_text = PngImagePlugin.PngInfo()
    with_text.add_itxt("XML:com.adobe.xmp", xmp.decode(), zip=True)
    assert training(saved(photo(), "PNG", pnginfo=with_text)).width == 64


PNG = saved(photo(), "PNG")
BEFORE_PIXELS = PNG.index(b"IDAT") - 4
TEXT = b"Comment\0" + b"x" * 40
HARMLESS_PNG = {
    "a large profile": chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(5_000_000))),
    "a broken profile": chunk(b"iCCP", b"icc\0\0nothing"),
    "a large compressed text": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 5_000_000)),
    "a large text": chunk(b"tEXt", b"Comment\0" + b"x" * 2_000_000),
    "a large international text": chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(b"x" * 5_000_000)),
    "a large profile in a text": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"1" * 5_000_000)),
    "many texts": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 900_000)) * 90,
    "a text with another checksum": chunk(b"tEXt", TEXT, crc=1),
    "a time with another checksum": chunk(b"tIME", bytes(7), crc=1),
    "a bad EXIF": chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"),
    "an EXIF with another checksum": chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0", crc=1),
    "a short gamma": chunk(b"gAMA", b"\0"),
    "an unknown chunk": chunk(b"abCd", b"?", crc=1),
}


@pytest.mark.parametrize("what", HARMLESS_PNG)
def test_damage_outside_the_pixels_of_a_png_does_no_harm(what):
    extra = HARMLESS_PNG[what]
    assert training(insert(PNG, BEFORE_PIXELS, extra)) == training(PNG)
    assert training(insert(PNG, len(PNG) - 12, extra)) == training(PNG)


def split(data):
    """Return a PNG with its pixels in chunks of 100 bytes, and a text between them."""
    at = data.index(b"IDAT")
    length = int.from_bytes(data[at - 4 : at], "big")
    stream = data[at + 4 : at + 4 + length]
    chunks = [chunk(b"IDAT", stream[first : first + 100]) for first in range(0, length, 100)]
    return data[: at - 4] + chunk(b"tEXt", TEXT).join(chunks) + data[at + 8 + length :]


def test_the_end_of_a_png_may_be_missing_or_followed():
    whole = training(PNG)
    for data in (PNG[:-12], PNG[:-4], PNG[:-16], PNG + b"more", PNG + PNG, PNG[:-12] + b"\0\0" * 9, split(PNG)):
        assert training(data) == whole


def test_another_checksum_of_pixels_counts_only_if_they_are_damaged():
    end = PNG.index(b"IEND") - 8
    assert training(PNG[:end] + b"\0\0\0\0" + PNG[end + 4 :]) == training(PNG)
    flat = saved(photo(), "PNG", compress_level=0)  # a changed byte decodes without an error
    middle = flat.index(b"IDAT") + 3000
    assert outcome(flat[:middle] + bytes([flat[middle] ^ 255]) + flat[middle + 1 :]) == "corrupt"


@pytest.mark.parametrize("share", [0.4, 0.8, 0.97])
def test_a_cut_png_is_corrupt(share):
    assert outcome(PNG[: int(len(PNG) * share)]) == "corrupt"
    assert outcome(PNG[: int(len(PNG) * share)] + PNG[-12:]) == "corrupt"


def variants():
    """Yield files of many kinds, with the mode that decides how they look."""
    rgba = photo().convert("RGBA")
    rgba.putalpha(photo(seed=1).convert("L"))
    for mode in ("RGB", "L", "1", "P", "LA", "RGBA"):
        yield f"PNG {mode}", saved(rgba.convert(mode), "PNG")
    for mode in ("RGB", "L", "1", "P", "RGBA"):
        yield f"BMP {mode}", saved(rgba.convert(mode), "BMP")
    for mode in ("RGB", "L", "1", "P", "RGBA", "CMYK", "LAB"):
        for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"):
            source = rgba.convert("RGB").convert(mode) if mode == "LAB" else rgba.convert(mode)
            yield f"TIFF {mode} {compression}", saved(source, "TIFF", compression=compression)
    yield "TIFF jpeg", saved(photo(), "TIFF", compression="jpeg")
    grey = np.asarray(photo().convert("L")).astype(np.uint16) * 257
    yield "TIFF 16-bit", saved(Image.fromarray(grey), "TIFF")
    yield "PNG 16-bit", saved(Image.fromarray(grey), "PNG")
    if features.check("avif"):
        yield "AVIF RGB", saved(photo(), "AVIF")
        yield "AVIF RGBA", saved(rgba, "AVIF")


VARIANTS = dict(variants())


@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_that_pillow_reads_has_its_colours(name):
    made = training(VARIANTS[name])
    assert (made.width, made.height) == (96, 64)
    with Image.open(io.BytesIO(VARIANTS[name])) as image:
        if name.endswith("16-bit"):
            expected = photo().convert("L").convert("RGB")
        else:
            expected = Image.new("RGBA", image.size, "white")
            expected.alpha_composite((image.convert("RGB") if image.mode == "LAB" else image).convert("RGBA"))
    assert made == training(saved(expected.convert("RGB"), "PNG"))


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "AVIF"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_cut_file_of_another_kind_is_corrupt(kind, share):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    data = saved(photo(), kind)
    assert outcome(data[: int(len(data) * share)]) == "corrupt"


def test_a_turned_tiff_is_turned_once():
    made = training(saved(photo(), "TIFF", tiffinfo={0x0112: 6}))
    assert (made.width, made.height) == (64, 96)
    upright = np.asarray(photo().transpose(Image.Transpose.ROTATE_270).resize((64, 64), Image.Resampling.BICUBIC))
    assert np.abs(pixels.decode(made.image).astype(int) - upright).mean() < 8


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\0\0\0\x1cftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif", "AVIF"),
        (b"\0\0\0\x18ftypisom\0\0\0\0mp42", "MP4"),
        (b"\xff\x0a\x7f", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b'<?xml version="1.0"?><svg width="9">', "SVG"),
        (b"\n<!DOCTYPE html><p>", "HTML"),
        (b"RIFF1234WAVE", "RIFF"),
        (b"BM is how this text begins", ""),
        (b"", ""),
    ],
)
def test_what_is_not_read_is_named(data, name):
    assert containers.type_of(data) == name
    if name not in containers.READ:
        with pytest.raises(pixels.Unusable, match=f"^not_an_image: {name or 'an unknown type|empty'}"):
            training(data)


def many_scans(count, width=96):
    data = saved(photo(width, width), "JPEG", progressive=True)
    start = marker_at(data, 0xDA, data.count(b"\xff\xda") - 1)
    return data[:start] + data[start:-2] * count + EOI


def test_a_jpeg_with_very_many_scans_is_not_decoded(monkeypatch):
    assert outcome(many_scans(40_000)) == "too_many_pixels"
    assert outcome(many_scans(containers.MOST_SCANS)) == "too_many_pixels"
    few = jpeg("progressive").count(b"\xff\xda")
    assert few < containers.MOST_SCANS / 4
    assert outcome(b"\xff\xd8" + b"\xff\xe0\0\2" * 100_000) == "too_many_pixels"


def test_a_webp_canvas_is_measured_before_it_is_allocated(monkeypatch):
    data = saved(Image.new("RGBA", (64, 64)), "WEBP", save_all=True, append_images=[Image.new("RGBA", (64, 64), "red")])
    assert data[12:16] == b"VP8X"
    large = data[:24] + (16_382).to_bytes(3, "little") * 2 + data[30:]
    for whole in (data, saved(photo(64, 48), "WEBP"), saved(photo(64, 48), "WEBP", lossless=True)):
        with Image.open(io.BytesIO(whole)) as image:
            assert containers.webp_size(whole) == image.size
    monkeypatch.setattr(Image, "open", None)
    assert outcome(large) == "too_many_pixels"


def tiff(tags, data=b""):
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + data


def test_a_tiff_with_very_many_strips_or_huge_tiles_is_not_opened(monkeypatch):
    size = [(256, 3, 1, 64), (257, 3, 1, 64)]
    monkeypatch.setattr(Image, "open", None)
    assert outcome(tiff([*size, (273, 4, 1_000_000, 200)])) == "too_many_pixels"
    assert outcome(tiff([*size, (322, 4, 1, 60_000), (323, 4, 1, 60_000)])) == "too_many_pixels"
    assert outcome(b"II*\0\xff\xff\xff\xff") == "corrupt"


def webp(before=b"", behind=b"", **options):
    """Return an extended WebP with chunks before and behind its pixels."""
    head = b"VP8X" + struct.pack("<IB3x", 10, 0x2C) + (95).to_bytes(3, "little") + (63).to_bytes(3, "little")
    body = b"WEBP" + head + before + saved(photo(), "WEBP", **options)[12:] + behind
    return b"RIFF" + struct.pack("<I", len(body)) + body


def riff(kind, body):
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) & 1)


@pytest.mark.parametrize("lossless", [False, True])
def test_damage_outside_the_pixels_of_a_webp_does_no_harm(lossless):
    plain = saved(photo(), "WEBP", lossless=lossless)
    whole = training(plain)
    exif = riff(b"EXIF", b"II*\0" * 50)
    for data in (
        *(plain + b"more" * 9, plain[:4] + b"\0\1\0\0" + plain[8:], plain[:4] + b"\xff" * 4 + plain[8:]),
        *(webp(riff(b"ICCP", b"x"), lossless=lossless), webp(behind=exif + riff(b"XMP ", b"<"), lossless=lossless)),
        *(webp(behind=exif, lossless=lossless)[:-50], webp(riff(b"abcd", b"x"), lossless=lossless)),
        webp(behind=riff(b"EXIF", b"Exif\0\0II*\0\xff\xff\xff\xff"), lossless=lossless),
    ):
        assert training(data) == whole
    for share in (0.3, 0.6, 0.95):
        assert outcome(plain[: int(len(plain) * share)]) == "corrupt"
    assert outcome(plain[:12] + riff(b"abcd", b"") * 100_000) == "too_many_pixels"


GIF = saved(photo().quantize(64), "GIF", transparency=3)
GIF_START = 13 + (3 << (GIF[10] & 7) + 1)


def test_comments_of_a_gif_do_no_harm_and_are_limited(monkeypatch):
    comment = b"!\xfe" + b"\x05hello" * 3 + b"\0"
    program = b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"
    assert training(insert(GIF, GIF_START, comment * 1000 + program)) == training(GIF)
    assert containers.gif_frame(insert(GIF, GIF_START, comment)) == containers.gif_frame(GIF)
    monkeypatch.setattr(Image, "open", None)
    assert outcome(insert(GIF, GIF_START, b"!\xfe\1c\0" * 100_000)) == "too_many_pixels"
    assert outcome(insert(GIF, GIF_START, b"!\xfe" + b"\1c" * 100_000 + b"\0")) == "too_many_pixels"


def test_a_bmp_of_very_many_runs_is_not_decoded(monkeypatch):
    head = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 8, 1, 0, 0, 0, 256, 0)
    runs = struct.pack("<2sIHHI", b"BM", 0, 0, 0, 1078) + head + bytes(range(256)) * 4 + b"\x08\x07\0\0" * 8
    assert training(runs).width == 8
    monkeypatch.setattr(Image, "open", None)
    assert outcome(runs + b"\1\0" * containers.MOST_RUNS) == "too_many_pixels"


def test_a_zlib_bomb_in_pixels_is_not_inflated_to_its_end(monkeypatch):
    bomb = chunk(b"IDAT", zlib.compress(bytes(30_000_000), 9), crc=1)
    inflated = []
    real = zlib.decompressobj

    class Counting:
        def __init__(self):
            self._reader = real()

        def __getattr__(self, name):
            return getattr(self._reader, name)

        def decompress(self, data, most):
            made = self._reader.decompress(data, most)
            inflated.append(len(made))
            return made

    monkeypatch.setattr(containers.zlib, "decompressobj", Counting)
    assert outcome(PNG[:BEFORE_PIXELS] + bomb + PNG[-12:]) == "corrupt"
    assert sum(inflated) < 3_000_000


def test_the_cases_have_their_colours():
    paths = sorted(CASES.glob("*.*"))
    if not paths:
        pytest.skip(f"no pictures in {CASES}; set EFFIMINI_CORPUS")
    for path in paths:
        if path.stem == "torn":
            assert outcome(path.read_bytes()) == "corrupt"
            continue
        seen = pixels.decode(training(path.read_bytes()).image).astype(int)
        assert seen[48, 32].argmax() == 2, path
        assert seen[16, 48].argmax() == 0, path
        assert seen[16, 16, 0] > 128, path
