import contextlib
import io
import os
import struct
import threading
import time
import zlib
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shards.images import containers, pixels

CORPUS = Path(os.environ.get("EFFIMINI_CORPUS", "../shared/corpus"))
FORMATS = containers.READ
LIMIT = 50_000_000


def scene(width=60, height=40):
    """Return a picture with a red top left, a green top right, a blue bottom left and a white bottom right."""
    image = Image.new("RGB", (width, height), "white")
    image.paste((255, 0, 0), (0, 0, width // 2, height // 2))
    image.paste((0, 255, 0), (width // 2, 0, width, height // 2))
    image.paste((0, 0, 255), (0, height // 2, width // 2, height))
    return image


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width, height, depth=8):
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0))


def training(data, size=32, fit="squash", quality=90, max_pixels=LIMIT):
    return pixels.to_training(data, pixels.Preparation(size, fit, quality, max_pixels))


def corners(data, **options):
    """Return the colours a quarter in from the top left, top right, bottom left and bottom right."""
    seen = pixels.decode(training(data, **options).image).astype(int)
    size = len(seen)
    near, far = size // 4, size * 3 // 4
    return [seen[near, near], seen[near, far], seen[far, near], seen[far, far]]


def outcome(data, **options):
    with pytest.raises(pixels.Unusable) as raised:
        training(data, **options)
    return raised.value.outcome


def looks_like(found, expected):
    return all(np.abs(f - np.array(e)).max() < 40 for f, e in zip(found, expected, strict=True))


RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
UPRIGHT = [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_becomes_a_jpeg_of_training_size(kind):
    made = training(saved(scene(), kind))
    opened = Image.open(io.BytesIO(made.image))
    assert (opened.format, opened.mode, opened.size) == ("JPEG", "RGB", (32, 32))
    assert "progressive" not in opened.info
    assert not opened.getexif()
    assert (made.width, made.height) == (60, 40)
    assert looks_like(corners(saved(scene(), kind)), UPRIGHT)


@pytest.mark.parametrize("mode", ["CMYK", "L", "P", "LA", "RGBA", "I;16"])
def test_every_mode_keeps_its_colours(mode):
    if mode == "I;16":
        data = saved(Image.fromarray(np.asarray(scene().convert("L")).astype(np.uint16) * 257), "PNG")
    else:
        data = saved(scene().convert(mode), "JPEG" if mode == "CMYK" else "PNG")
    grey = [[value] * 3 for value in (76, 150, 29, 255)]  # ITU-R 601 luma
    assert looks_like(corners(data), grey if mode in {"L", "LA", "I;16"} else UPRIGHT)


def test_16_bit_colour_keeps_its_colours():
    rows = np.repeat(np.repeat(np.array([[RED, GREEN], [BLUE, WHITE]]) * 257, 20, 0), 30, 1)
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)

    png = png_header(60, 40, depth=16) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    assert looks_like(corners(png), UPRIGHT)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_is_flattened_over_white(kind):
    image = scene().convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 30, 40))
    assert looks_like(corners(saved(image, kind)), [WHITE, GREEN, WHITE, WHITE])


def test_a_transparent_palette_colour_is_flattened_over_white():
    image = scene().quantize(4)
    red = image.getpixel((1, 1))
    for kind in ("PNG", "GIF"):
        assert looks_like(corners(saved(image, kind, transparency=red)), [WHITE, GREEN, BLUE, WHITE])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_an_image_is_rotated_by_its_exif_orientation(orientation, mode):
    turn = Image.Transpose
    inverse = {
        2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM, 5: turn.TRANSPOSE,
        6: turn.ROTATE_90, 7: turn.TRANSVERSE, 8: turn.ROTATE_270,
    }  # fmt: skip
    image = scene().transpose(inverse[orientation]) if orientation in inverse else scene()
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(image.convert(mode), "JPEG", exif=exif, quality=95)
    made = training(data)
    assert (made.width, made.height) == (60, 40)
    assert looks_like(corners(data), UPRIGHT)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation_is_used(kind):
    data = saved(scene(), kind, save_all=True, append_images=[Image.new("RGB", (60, 40), "black")], duration=100)
    assert looks_like(corners(data), UPRIGHT)


def test_letterbox_keeps_proportions_on_white():
    wide = Image.new("RGB", (80, 20), "black")
    seen = pixels.decode(training(saved(wide, "PNG"), size=40, fit="letterbox").image)
    dark = seen.mean(axis=(1, 2)) < 128
    assert dark.nonzero()[0].tolist() == list(range(15, 25))
    assert seen[0].min() > 245


def test_crop_keeps_the_centre():
    image = Image.new("RGB", (90, 30), "white")
    image.paste(BLUE, (30, 0, 60, 30))
    assert looks_like(corners(saved(image, "PNG"), fit="crop"), [BLUE] * 4)


@pytest.mark.parametrize("fit", ["squash", "letterbox", "crop"])
@pytest.mark.parametrize("shape", [(8, 8), (8, 3000), (3000, 8), (17, 33)])
def test_every_shape_fits(fit, shape):
    seen = pixels.decode(training(saved(scene(*shape), "PNG"), fit=fit).image)
    assert seen.shape == (32, 32, 3)
    assert seen.dtype == np.uint8


def test_a_resize_uses_the_filter():
    fine = Image.fromarray(np.indices((100, 100)).sum(axis=0).astype(np.uint8) % 2 * 255).convert("RGB")
    for name, resample in (("bicubic", Image.Resampling.BICUBIC), ("bilinear", Image.Resampling.BILINEAR)):
        for fit in ("squash", "letterbox", "crop"):
            found = pixels.to_pixels(saved(fine, "PNG"), pixels.Preparation(77, fit, 0, LIMIT, name))
            assert np.array_equal(found, np.asarray(fine.resize((77, 77), resample)))


def test_a_larger_image_is_reduced_first_like_by_the_host():
    image = scene(500, 300)
    how = pixels.Preparation(64, "squash", 90, LIMIT, request=256)
    small = image.resize((256, 154), Image.Resampling.BICUBIC)
    of_host = saved(small, "JPEG", quality=pixels.HOST_QUALITY)
    found, expected = (pixels.to_pixels(data, how).astype(int) for data in (saved(image, "PNG"), of_host))
    assert np.abs(found - expected).max() <= 2  # of two JPEG encoders
    for as_it_is in (of_host, saved(scene(200, 100), "PNG")):
        never = how._replace(request=0)
        assert np.array_equal(pixels.to_pixels(as_it_is, how), pixels.to_pixels(as_it_is, never))
    assert pixels.to_training(saved(image, "PNG"), how).width == 500


def test_the_pixels_are_those_of_the_stored_image():
    data = saved(scene(500, 300), "PNG")
    how = pixels.Preparation(64, "crop", 50, LIMIT)
    assert np.array_equal(pixels.to_pixels(data, how), pixels.decode(pixels.to_training(data, how).image))


def test_the_same_input_bytes_give_the_same_output_bytes():
    data = saved(scene(500, 300), "JPEG")
    assert training(data) == training(data)


def test_the_stored_bytes_are_those_of_format_2():
    """Another value means that the stored bytes changed: then increment pixels.FORMAT."""
    y, x = np.mgrid[0:200, 0:300]
    pattern = np.stack([(x * y) % 256, (x + 3 * y) % 256, (5 * x) % 256], axis=-1).astype(np.uint8)
    made = training(saved(Image.fromarray(pattern), "PNG"), size=64)
    assert pixels.FORMAT == 2
    assert (zlib.crc32(made.image), made.perceptual_hash) == (861683602, 9972758902851760406)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [60_000, 10_000, 8_000])
def test_a_decompression_bomb_is_not_decoded(side):
    assert outcome(png_header(side, side) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")) == "too_many_pixels"
    frame = b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x01\x01\x00;"
    for screen in (side, 10):
        assert outcome(b"GIF89a" + struct.pack("<HH", screen, screen) + bytes(3) + frame) == "too_many_pixels"


def test_threads_share_a_number_of_pixels(monkeypatch):
    """Three small images are decoded at a time, a large one alone."""
    monkeypatch.setattr(pixels, "DECODING", pixels.DECODING.__class__(3 * 60 * 40))
    under_way, most, lock = [], [], threading.Lock()
    real = pixels._fit_upright

    def watched(source, *arguments):
        with lock:
            under_way.append(source.image.width * source.image.height)
            most.append(sum(under_way))
        time.sleep(0.02)
        try:
            return real(source, *arguments)
        finally:
            with lock:
                under_way.remove(source.image.width * source.image.height)

    monkeypatch.setattr(pixels, "_fit_upright", watched)
    small, large = saved(scene(), "PNG"), saved(scene(600, 400), "PNG")
    with ThreadPoolExecutor(8) as threads:
        assert len(list(threads.map(training, ([small] * 4 + [large]) * 4))) == 20
    assert max(most) == 600 * 400
    assert {total for total in most if total < 600 * 400} <= {2400, 4800, 7200}
    assert len(most) == 20


def test_an_interrupt_ends_the_wait_for_pixels():
    budget = pixels.DECODING.__class__(10)

    def wait():
        with budget.take(10):
            pass

    with ThreadPoolExecutor(3) as threads, budget.take(10):
        waiting = [threads.submit(wait) for _ in range(3)]
        while not budget._line.locked():
            time.sleep(0.001)
        time.sleep(0.05)
        budget.interrupt()
        assert all(isinstance(future.exception(), CancelledError) for future in waiting)
    wait()


def test_the_pixel_limit_is_exact():
    data = saved(scene(60, 40), "PNG")
    assert training(data, max_pixels=2400).width == 60
    assert outcome(data, max_pixels=2399) == "too_many_pixels"


def test_a_placeholder_is_too_small():
    assert outcome(saved(Image.new("RGB", (1, 1)), "GIF")) == "too_small"
    assert outcome(saved(Image.new("RGB", (7, 100)), "JPEG")) == "too_small"


@pytest.mark.parametrize(
    "data", [b"", b"<html><body>Not here</body></html>", b"\0" * 1000, b"%PDF-1.4", b"BM" + bytes(100), b"RIFF1234WAVE"]
)
def test_other_content_is_not_an_image(data):
    assert outcome(data) == "not_an_image"


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_file_is_corrupt(kind, share):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    data = saved(noise, kind)
    assert outcome(data[: int(len(data) * share)]) == "corrupt"


@pytest.mark.parametrize("progressive", [False, True])
def test_a_truncated_jpeg_is_corrupt_even_with_an_end_marker(progressive):
    data = saved(scene(400, 400).rotate(30), "JPEG", progressive=progressive)
    assert outcome(data[: len(data) // 2] + b"\xff\xd9") == "corrupt"


def test_stray_bytes_after_the_last_scan_are_ignored():
    data = saved(scene(), "JPEG")
    assert training(data[:-2] + b"ab\xff\xd9") == training(data)
    assert training(data + b"more") == training(data)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(FORMATS), st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=4))
def test_damage_is_an_outcome_and_never_a_crash(kind, flips):
    data = bytearray(SMALL[kind])
    for share, change in flips:
        data[min(int(share * len(data)), len(data) - 1)] ^= change
    with contextlib.suppress(pixels.Unusable):
        assert pixels.decode(training(bytes(data), size=16, max_pixels=1_000_000).image).shape == (16, 16, 3)


SMALL = {kind: saved(scene(24, 16), kind) for kind in FORMATS}


def distance(one, other):
    return (one.perceptual_hash ^ other.perceptual_hash).bit_count()


def test_the_perceptual_hash_is_near_for_the_same_image_and_far_for_another():
    rng = np.random.default_rng(1)
    one, other = (
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((300, 200), Image.Resampling.BICUBIC)
        for _ in range(2)
    )
    again = training(saved(one.resize((200, 140)), "JPEG", quality=60))
    assert distance(training(saved(one, "PNG")), again) <= 6
    assert distance(training(saved(one, "PNG")), training(saved(other, "PNG"))) >= 16
    assert 0 <= again.perceptual_hash < 2**64


def test_the_blank_is_one_white_pixel():
    assert pixels.decode(pixels.BLANK).tolist() == [[[255, 255, 255]]]
    assert Image.open(io.BytesIO(pixels.BLANK)).size == (1, 1)


def test_decode_rejects_incomplete_files():
    with pytest.raises(ValueError, match="Premature"):
        pixels.decode(training(saved(scene(), "PNG")).image[:-40])


@pytest.mark.parametrize("folder", ["photos", "movies/images/I"])
def test_real_images_become_training_images(folder):
    paths = sorted((CORPUS / folder).glob("*.jpg"))[:40]
    if not paths:
        pytest.skip(f"no pictures in {CORPUS / folder}; set EFFIMINI_CORPUS")
    for path in paths:
        made = training(path.read_bytes(), size=224)
        with Image.open(path) as original:
            assert (made.width, made.height) == original.size
            near = original.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
        difference = np.abs(pixels.decode(made.image).astype(int) - np.asarray(near))
        assert difference.mean() < 6
