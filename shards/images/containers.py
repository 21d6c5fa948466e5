"""Tell the type of a picture's file, and take what decides its pixels out of everything else in it. Pure.

Input: untrusted bytes. Output: the name of their type; of a JPEG and a PNG the parts that decide pixels, and its
metadata apart from them. Guarantees: damage outside the pixels (profiles, texts, EXIF, stray bytes, a missing end) is
left behind; a file whose pixels are not all there is a ValueError; work and memory are linear in the size of the file.
"""

import math
import re
import struct
import zlib
from typing import NamedTuple

READ = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "TIFF", "BMP")  # the types that Pillow decodes for us, by its names
MOST_SCANS = 64  # of a JPEG: an encoder writes some ten, and each costs as much as decoding a whole picture
MOST_PARTS = 65_536  # segments, chunks or strips of a file: Python reads each one by itself
MOST_RUNS = 2_000_000  # bytes of a run-length encoded BMP
MOST_METADATA = 64  # segments or chunks that are looked at for an orientation

_PNG = b"\x89PNG\r\n\x1a\n"
_SIGNATURES = {
    b"\xff\xd8": "JPEG", _PNG: "PNG", b"GIF87a": "GIF", b"GIF89a": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF",
    b"II+\0": "BigTIFF", b"MM\0+": "BigTIFF", b"\xff\x0a": "JPEG XL", b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000", b"\xff\x4f\xff\x51": "JPEG 2000", b"\0\0\1\0": "ICO", b"8BPS": "PSD",
    b"%PDF": "PDF", b"\x1f\x8b": "gzip", b"PK\3\4": "zip",
}  # fmt: skip
_BMP_HEADERS = {12, 16, 40, 52, 56, 64, 108, 124}  # sizes in bytes
_TEXTS = ((re.compile(rb"<svg[\s>]"), "SVG"), (re.compile(rb"(?i)<(!doctype )?html"), "HTML"))

_WEBP_CHUNKS = {b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF", b"ICCP", b"EXIF", b"XMP "}

# Markers of a JPEG. Source: ITU T.81, table B.1; those of libjpeg-turbo's jdmarker.c.
_EOI, _SOS, _DHT, _DNL, _DRI, _DQT, _DAC, _JPG = 0xD9, 0xDA, 0xC4, 0xDC, 0xDD, 0xDB, 0xCC, 0xC8
_APP0, _APP1, _APP14, _COM = 0xE0, 0xE1, 0xEE, 0xFE
_FRAMES = set(range(0xC0, 0xD0)) - {_DHT, _DAC, _JPG}
_SEQUENTIAL, _PROGRESSIVE, _ARITHMETIC = {0xC0, 0xC1, 0xC9}, {0xC2, 0xCA}, {0xC9, 0xCA}
_KNOWN = _FRAMES | {_DHT, _DAC, _SOS, _DNL, _DRI, _DQT, _COM} | set(range(0xE0, 0xF0))
# A marker with a segment: not a stuffed byte, a fill byte, TEM or RST. Within a scan these are data.
_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd7]")

# Texts of a PNG that may name an orientation.
_TEXT_CHUNKS, _ABOUT_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}, (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")


class Excess(ValueError):  # noqa: N818 -- a limit, not an error of the program
    """A file that takes far more work to decode than its pixels need."""


class Jpeg(NamedTuple):
    """The parts of a JPEG that decide its pixels."""

    scans: list[bytes]  # each with the tables before it
    metadata: bytes  # EXIF and XMP segments
    ended: bool  # whether it has an end marker

    def file(self, scans: list[bytes] | None = None) -> bytes:
        """Return a complete file of all scans, or of `scans`."""
        return b"\xff\xd8" + b"".join(self.scans if scans is None else scans) + b"\xff\xd9"


class Png(NamedTuple):
    """The parts of a PNG that decide its pixels."""

    file: bytes
    metadata: bytes  # chunks of EXIF and XMP


def type_of(data: bytes) -> str:
    """Return the name of a file's type by its content; "" if it is unknown."""
    for signature, name in _SIGNATURES.items():
        if data.startswith(signature):
            return name
    if data[:4] == b"RIFF":
        return "WEBP" if data[8:12] == b"WEBP" else "RIFF"
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if data[4:8] == b"ftyp":  # an ISO base media file: its brands say what it is
        brands = data[8 : min(int.from_bytes(data[:4], "big"), 256)]
        if b"avif" in brands or b"avis" in brands:
            return "AVIF"
        return "HEIC" if re.search(rb"hei[cxms]|hev[cx]|mif1|msf1", brands) else "MP4"
    return next((name for pattern, name in _TEXTS if pattern.search(data, 0, 1024)), "")


def jpeg_parts(data: bytes) -> Jpeg:
    """Take a JPEG apart.

    Segments that decide no pixel are left out, and values that libjpeg warns of without effect on pixels are set right.
    What follows the last scan ends the picture, whatever it is.

    Raises:
        ValueError: it has no scan, a segment before the scans is broken, or scans are missing.
        Excess: it has more than `MOST_SCANS` scans.
    """
    at, frame, components = 2, 0, b""
    pending: list[tuple[int, bytes]] = []
    scans: list[bytes] = []
    metadata: list[bytes] = []
    final: set[tuple[int, int]] = set()  # component and coefficient that have all their bits
    ended = False
    for _ in range(MOST_PARTS):
        if not (found := _MARKER.search(data, at)):
            break
        marker, at = data[found.end() - 1], found.end()
        length = int.from_bytes(data[at : at + 2], "big")
        segment = data[at : at + length]
        ended = marker == _EOI
        if ended or marker not in _KNOWN or length < 2 or len(segment) < length:
            break
        at += length
        if marker in _FRAMES and not frame:
            frame, components = marker, segment[8::3]
        if marker == _APP1 and len(metadata) < MOST_METADATA:
            metadata.append(b"\xff\xe1" + segment)
        elif marker in {_COM, _APP1} or (marker & 0xF0 == 0xE0 and segment[2:7] not in {b"JFIF\0", b"Adobe"}):
            continue
        elif marker == _SOS:
            if len(scans) == MOST_SCANS:
                raise Excess(f"more than {MOST_SCANS} scans")
            final |= _final_bits(segment, frame)
            end = _MARKER.search(data, at)
            start, at = at, end.start() if end else len(data)
            pending.append((marker, _usual_scan(segment, frame)))
            head = b"".join(_segment(kind, body, len(components)) for kind, body in pending)
            scans.append(head + data[start:at])
            pending = []
        else:
            pending.append((marker, segment))
    else:
        raise Excess(f"more than {MOST_PARTS} segments")
    # An arithmetic decoder reads zeros behind the end, so without the end marker nobody knows whether all is there.
    if not {(component, k) for component in components for k in range(64)} <= final or not (
        ended or frame not in _ARITHMETIC
    ):
        raise ValueError("scans are missing")
    return Jpeg(scans, b"".join(metadata[:MOST_METADATA]), ended)


def _final_bits(segment: bytes, frame: int) -> set[tuple[int, int]]:
    """Return the components and coefficients whose last bits a scan carries."""
    count = segment[2] if len(segment) > 2 else 0
    components = segment[3 : 3 + 2 * count : 2]
    first, last, bits = 0, 63, 0
    if frame in _PROGRESSIVE:
        first, last, bits = struct.unpack_from("BBB", segment, 3 + 2 * count)
    return {(component, k) for component in components for k in range(first, last + 1)} if not bits & 15 else set()


def _usual_scan(segment: bytes, frame: int) -> bytes:
    """Return the header of a scan; a sequential one has all coefficients, whatever it says."""
    return segment[:-3] + b"\0\x3f\0" if frame in _SEQUENTIAL else segment


def _segment(marker: int, segment: bytes, components: int) -> bytes:
    """Return a segment with its marker, and with versions and transforms that libjpeg knows."""
    if marker == _APP0 and len(segment) > 8 and segment[7] != 1:
        segment = segment[:7] + b"\1\2" + segment[9:]
    if marker == _APP14 and len(segment) > 13:
        usual = 2 if components == 4 else 1
        segment = segment[:13] + bytes([0 if segment[13] == 0 else usual]) + segment[14:]
    return b"\xff" + bytes([marker]) + segment


def png_parts(data: bytes) -> Png:
    """Take a PNG apart: its header, palette, transparency and pixels, and its EXIF and XMP.

    Raises:
        ValueError: a chunk of pixels is damaged.
    """
    before: list[bytes] = []
    pixels: list[bytes] = []
    behind: list[bytes] = []
    metadata: list[bytes] = []
    intact = True
    at = len(_PNG)
    for _ in range(MOST_PARTS):
        if at + 8 > len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, at)
        whole = data[at : at + 12 + length]
        body = whole[8 : 8 + length]
        if kind == b"IEND" or not kind.isalpha():
            break
        if kind == b"IDAT":
            intact &= len(whole) < 12 + length or whole[-4:] == _crc(kind, body)
            pixels.append(body)
        elif kind in {b"IHDR", b"PLTE", b"tRNS"}:
            (behind if pixels else before).append(whole)
        elif kind == b"eXIf" or (kind in _TEXT_CHUNKS and body.startswith(_ABOUT_TEXTS)):
            metadata.append(whole)
        at += 12 + length
    else:
        raise Excess(f"more than {MOST_PARTS} chunks")
    stream = b"".join(pixels)
    if not intact and not _inflates(stream, before[0] if before else b""):
        raise ValueError("a chunk of pixels has another checksum")
    image = struct.pack(">I4s", len(stream), b"IDAT") + stream + _crc(b"IDAT", stream)
    end = struct.pack(">I4s", 0, b"IEND") + _crc(b"IEND", b"")
    return Png(_PNG + b"".join(before) + image + b"".join(behind) + end, b"".join(metadata[:MOST_METADATA]))


def _crc(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def _inflates(stream: bytes, header: bytes) -> bool:
    """Return whether the pixels of a PNG are all there, by the checksum of their zlib stream."""
    if len(header) < 16:
        return False
    width, height = struct.unpack_from(">II", header, 8)
    left = 8 * width * height + 16 * (width + height) + 64  # bytes; at most 8 per pixel, and 1 per row of a pass
    reader = zlib.decompressobj()
    try:
        while not reader.eof and stream and left > 0:
            left -= len(reader.decompress(stream, 1 << 20))
            stream = reader.unconsumed_tail
    except zlib.error:
        return False
    return reader.eof


def webp_chunks(data: bytes) -> bytes:
    """Return a WebP of the chunks that are whole, with the size that they have.

    Raises:
        Excess: it has more than `MOST_PARTS` chunks.
    """
    kept: list[bytes] = []
    at = 12
    for _ in range(MOST_PARTS):
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        whole = data[at : at + 8 + length]
        if len(whole) < 8 + length or not whole:
            break
        if kind in _WEBP_CHUNKS:
            kept.append(whole + b"\0" * (length & 1))
        at += 8 + length + (length & 1)
    else:
        raise Excess(f"more than {MOST_PARTS} chunks")
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_size(data: bytes) -> tuple[int, int]:
    """Return width and height of a WebP's canvas in px, from its header; (0, 0) if it has none.

    Pillow allocates the canvas when it opens the file.
    """
    kind, head = data[12:16], data[20:30]
    if kind == b"VP8X" and len(head) == 10:
        return int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1
    if kind == b"VP8L" and head[:1] == b"\x2f":
        bits = int.from_bytes(head[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and len(head) == 10:
        return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF
    return 0, 0


def gif_frame(data: bytes) -> bytes:
    """Return a GIF without the comments and extensions before its first frame, each of which Pillow keeps in memory.

    Raises:
        Excess: there are more than `MOST_PARTS` blocks of them.
    """
    start = at = 13 + (3 << (data[10] & 7) + 1 if len(data) > 10 and data[10] & 0x80 else 0)
    control = b""
    blocks = 0
    while data[at : at + 1] == b"!":
        first, label = at, data[at + 1 : at + 2]
        at += 2
        while size := int.from_bytes(data[at : at + 1], "big"):
            at += 1 + size
            blocks += 1
            if blocks > MOST_PARTS:
                raise Excess(f"more than {MOST_PARTS} blocks of comments")
        at += 1
        blocks += 1
        if label == b"\xf9":  # graphic control: transparency
            control = data[first:at]
    return data[:start] + control + data[at:]


def check_bmp(data: bytes) -> None:
    """Check the size of a run-length encoded BMP, which Pillow decodes in Python.

    Raises:
        Excess: it has more than `MOST_RUNS` bytes.
    """
    if len(data) > MOST_RUNS and data[14:15] != b"\x0c" and int.from_bytes(data[30:34], "little") in {1, 2}:
        raise Excess(f"more than {MOST_RUNS} bytes of run lengths")


def check_tiff(data: bytes, max_pixels: int) -> None:
    """Check the strips and tiles of a TIFF's first picture, before Pillow lists and libtiff allocates them.

    Raises:
        Excess: it has more than `MOST_PARTS` of them, or a tile of more than `max_pixels`.
        ValueError: the list of its tags is broken.
    """
    order = "<" if data[:2] == b"II" else ">"
    try:
        (start,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, start)
        tags = list(struct.iter_unpack(order + "HHI4s", data[start + 2 : start + 2 + 12 * count]))
    except struct.error:
        raise ValueError("a broken list of tags") from None
    sides = []
    for tag, kind, values, value in tags:
        if tag in {273, 324} and values > MOST_PARTS:  # StripOffsets, TileOffsets
            raise Excess(f"{values} strips, more than {MOST_PARTS}")
        if tag in {322, 323}:  # TileWidth, TileLength
            sides.append(struct.unpack_from(order + ("H" if kind == 3 else "I"), value)[0])
    if sides and math.prod(sides) > max_pixels:
        raise Excess(f"tiles of {math.prod(sides)} pixels")
