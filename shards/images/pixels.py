"""Decode a fetched file to a JPEG of training size. Pure: the same input bytes give the same output bytes.

Input: the untrusted bytes of a response. Output: a baseline JPEG (RGB, 4:2:0, no metadata) of size x size px, the size
of the original and a perceptual hash. Guarantees: the format is detected from the content; pixels, scans and strips are
counted before they are decoded; all threads of a process together decode at most `PIXELS_AT_ONCE` pixels at a time;
damage outside the pixels does no harm; a JPEG that libjpeg decodes with errors is "corrupt" (its lower part would be
grey).
"""

import io
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import ExifTags, Image

from shards.images import containers

FORMAT = 2  # increment it when the stored bytes change for the same file and parameters
SMALLEST = 8  # px; hosts return a 1x1 GIF for a missing image
PIXELS_AT_ONCE = 50_000_000  # decoded by all threads together; a pixel takes up to 24 bytes while it is decoded
WHITE = (255, 255, 255)
# JPEG quality of a reduced image. The quantization tables of photos from the host are like those of quality 57 to 75.
HOST_QUALITY = 75

Fit = Literal["squash", "letterbox", "crop"]
Resample = Literal["bicubic", "bilinear"]
ImageProblem = Literal["not_an_image", "corrupt", "too_many_pixels", "too_small"]

_STRAY = re.compile(r"(\d+) extraneous bytes before marker 0xd9")  # libjpeg, of bytes behind a scan
_MOST_STRAY = 4  # bytes between two scans
_MOST_TRIMMED = 16  # scans of a JPEG with stray bytes: they take work that grows with the square
# Errors that Pillow's readers raise on malformed files, found by flipping bytes of files of every format.
_BROKEN = (
    OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, AttributeError, OverflowError,
    ZeroDivisionError, RuntimeError, MemoryError, struct.error, zlib.error,
)  # fmt: skip
_BOMB = (Image.DecompressionBombWarning, Image.DecompressionBombError)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # of metadata, which it skips
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)

_TURN = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# The first 8 rows of the DCT-II matrix of length 32, times 4096.
_COSINES = np.round(4096 * np.cos(np.pi * np.outer(np.arange(8), 2 * np.arange(32) + 1) / 64)).astype(np.int64)


class Unusable(Exception):  # noqa: N818 -- an outcome, not an error of the program
    """A file that cannot be used as an image; `outcome` is its outcome in the images table, `why` says more."""

    def __init__(self, outcome: ImageProblem, why: str = "") -> None:
        super().__init__(f"{outcome}: {why}" if why else outcome)
        self.outcome: ImageProblem = outcome


class Preparation(NamedTuple):
    """How an image is brought to training size.

    Args:
        size: height and width of the result, px.
        fit: squash changes the aspect ratio, letterbox pads with white, crop keeps the largest centred square.
        quality: of the JPEG, 1 to 100; 0: `to_pixels` encodes none.
        max_pixels: width x height above which a file is not decoded; Pillow's own limit is 89 M.
        resample: the filter of the resize, over its whole support.
        request: longest side to which a larger image is reduced first, px; 0: none. Hosts do it for `images.request`.
    """

    size: int
    fit: Fit
    quality: int
    max_pixels: int
    resample: Resample = "bicubic"
    request: int = 0


class Decoded(msgspec.Struct, frozen=True):
    """An image at training size, with the size of its original."""

    image: bytes  # JPEG
    width: int  # of the original after its EXIF rotation, px
    height: int
    perceptual_hash: int  # unsigned, 64 bits


def to_training(data: bytes, how: Preparation) -> Decoded:
    """Decode, check, rotate upright, flatten over white, resize to training size, and encode.

    Args:
        data: a file of one of the types `containers.READ`; only the first frame of an animation is used.
        how: the size, and how it is reached.

    Raises:
        Unusable: the file is not an image, is corrupt, too large or too small.
    """
    fitted, width, height = _decode_and_fit(data, how)
    return Decoded(_encode(np.asarray(fitted), how.quality), width, height, _perceptual_hash(fitted))


def to_pixels(data: bytes, how: Preparation) -> npt.NDArray[np.uint8]:
    """Return the pixels of the image that `to_training` stores: uint8 [size, size, 3], RGB.

    Raises:
        Unusable: as `to_training`.
    """
    pixels = np.asarray(_decode_and_fit(data, how)[0])
    return decode(_encode(pixels, how.quality)) if how.quality else pixels


def decode(jpeg: bytes | memoryview, into: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
    """Return the pixels of a stored JPEG: uint8 [H, W, 3], RGB; written to `into` if given.

    Raises:
        ValueError: it is not a complete JPEG, or has more pixels than `into`.
    """
    pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(jpeg, "RGB", buffer=into)
    return pixels


def _encode(pixels: npt.NDArray[np.uint8], quality: int) -> bytes:
    encoded: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=quality, colorspace="RGB", colorsubsampling="420", fastdct=False
    )
    return encoded


BLANK = _encode(np.full((1, 1, 3), 255, np.uint8), 90)  # the JPEG of an item without an image, in a shard
_PNG_PIXEL = io.BytesIO()
Image.new("L", (1, 1)).save(_PNG_PIXEL, "PNG")
_PNG_HEADER = 33  # bytes


class _Budget:
    """A number of pixels that threads share, so that their memory has a limit."""

    def __init__(self, most: int) -> None:
        self._most, self._taken, self._interrupts = most, 0, 0
        self._line = threading.Lock()  # one thread waits at a time, so that a large image gets its turn
        self._changed = threading.Condition()

    @contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        """Wait until `pixels` are left, or nobody else has any, and take them.

        Raises:
            CancelledError: `interrupt` was called meanwhile.
        """
        before = self._interrupts
        with self._line, self._changed:
            self._changed.wait_for(
                lambda: self._interrupts > before or not self._taken or self._taken + pixels <= self._most
            )
            if self._interrupts > before:
                raise CancelledError
            self._taken += pixels
        try:
            yield
        finally:
            with self._changed:
                self._taken -= pixels
                self._changed.notify()

    def interrupt(self) -> None:
        """Let all who wait give up."""
        with self._changed:
            self._interrupts += 1
            self._changed.notify()


DECODING = _Budget(PIXELS_AT_ONCE)


def _decode_and_fit(data: bytes, how: Preparation) -> tuple[Image.Image, int, int]:
    """Return a file as an image of training size, and the size of its upright original.

    Raises:
        Unusable: as `to_training`.
    """
    kind = containers.type_of(data)
    if kind not in containers.READ:
        raise Unusable("not_an_image", f"{kind or 'an unknown type'}, which is not read" if data else "empty")
    try:
        source = _open(kind, data, how.max_pixels)
        with DECODING.take(source.image.width * source.image.height):
            return _fit_upright(source, how)
    except containers.Excess as error:
        raise Unusable("too_many_pixels", str(error)) from None
    except _BOMB:
        raise Unusable("too_many_pixels", kind) from None
    except _BROKEN:
        raise Unusable("corrupt", kind) from None


class _Source(NamedTuple):
    """A file that Pillow has opened and not yet decoded."""

    kind: str
    image: Image.Image
    about: bytes | None  # a file of one pixel with its metadata, None if they are in the image
    jpeg: containers.Jpeg | None = None


def _open(kind: str, data: bytes, max_pixels: int) -> _Source:
    """Open a file, and check its size and work before it is decoded."""
    jpeg = about = None
    if kind == "JPEG":
        jpeg = containers.jpeg_parts(data)
        about = BLANK[:2] + jpeg.metadata + BLANK[2:]
        data = jpeg.file()
    elif kind == "PNG":
        png, pixel = containers.png_parts(data), _PNG_PIXEL.getvalue()
        about = pixel[:_PNG_HEADER] + png.metadata + pixel[_PNG_HEADER:]
        data = png.file
    elif kind == "GIF":
        data = containers.gif_frame(data)
    elif kind == "BMP":
        containers.check_bmp(data)
    elif kind == "TIFF":
        containers.check_tiff(data, max_pixels)
    elif kind == "WEBP":  # Pillow allocates its canvas when it opens it
        data = containers.webp_chunks(data)
        _check_size(*containers.webp_size(data), max_pixels)
    image = Image.open(io.BytesIO(data), formats=[kind])
    _check_size(*image.size, max_pixels)
    if min(image.size) < SMALLEST:
        raise Unusable("too_small", f"less than {SMALLEST} px")
    return _Source(kind, image, about, jpeg)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise Unusable("too_many_pixels", f"more than {max_pixels}")


def _fit_upright(source: _Source, how: Preparation) -> tuple[Image.Image, int, int]:
    """Return an image at training size, and the size of its upright original."""
    image = source.image
    strict = None
    if source.jpeg is not None:
        # For a damaged scan Pillow would return libjpeg's partial result, with a grey lower half.
        strict = _decode_strictly(source.jpeg, "CMYK" if image.mode == "CMYK" else "RGB")
    if strict is not None and image.mode != "CMYK":
        picture = Image.fromarray(strict)
    else:
        del strict
        picture = _flatten_alpha(image)
    turn = None if source.kind == "TIFF" else _TURN.get(_orientation(source))  # Pillow turns a TIFF itself
    if turn is not None:
        picture = picture.transpose(turn)
    return _fit(_reduce(picture, how.request), how), picture.width, picture.height


def _orientation(source: _Source) -> int:
    """Return the orientation that a file's EXIF or XMP names; 1 if it names none, or is damaged."""
    try:
        about = source.image if source.about is None else Image.open(io.BytesIO(source.about), formats=[source.kind])
        return int(about.getexif().get(ExifTags.Base.Orientation, 1))
    except _BROKEN:
        return 1


def _decode_strictly(jpeg: containers.Jpeg, colorspace: str) -> npt.NDArray[np.uint8] | None:
    """Return the pixels of a JPEG without any damage; stray bytes behind a scan are cut off first.

    None if only Pillow decodes it, which nobody asks for damage: its chroma is sampled as in hardly any file, and its
    end is there. libjpeg reports its first warning only, so what comes behind stray bytes is seen only without them.
    """
    try:
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(jpeg.file(), colorspace)
        return pixels
    except ValueError as error:
        if jpeg.ended and "subsampling" in str(error):
            return None
        if "extraneous bytes before marker" not in str(error) or len(jpeg.scans) > _MOST_TRIMMED:
            raise
    trimmed: list[bytes] = []
    for scan in jpeg.scans:
        kept = scan[: len(scan) - _stray_bytes(jpeg.file([*trimmed, scan]), colorspace)]
        trimmed.append(kept)
        # A damaged scan may end early too. Behind it are many bytes, and its last bit is no padding, which is 1.
        if len(trimmed) < len(jpeg.scans) and (len(scan) - len(kept) > _MOST_STRAY or not kept[-1] & 1):
            raise ValueError("a scan ends early")
    sound: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(jpeg.file(trimmed), colorspace)
    return sound


def _stray_bytes(data: bytes, colorspace: str) -> int:
    """Return the number of bytes between the last scan of a JPEG and its end.

    Raises:
        ValueError: it has other damage.
    """
    try:
        simplejpeg.decode_jpeg(data, colorspace, min_height=1, min_width=1)  # an eighth of its size, to be fast
    except ValueError as error:
        if found := _STRAY.search(str(error)):
            return int(found[1])
        raise
    return 0


def _flatten_alpha(image: Image.Image) -> Image.Image:
    """Return an image of any mode as RGB over white."""
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips at 255 instead of scaling
        return Image.fromarray((np.asarray(image).clip(0, 65_535) >> 8).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, (*WHITE, 255))
    white.alpha_composite(image if image.mode == "RGBA" else image.convert("RGBA"))
    return white.convert("RGB")


def _reduce(image: Image.Image, longest: int) -> Image.Image:
    """Return an image with sides of at most `longest` px (0: any), about as a host reduces it."""
    if not 0 < longest < max(image.size):
        return image
    width, height = (max(1, round(side * longest / max(image.size))) for side in image.size)
    small = image.resize((width, height), Image.Resampling.BICUBIC)
    return Image.fromarray(decode(_encode(np.asarray(small), HOST_QUALITY)))


def _fit(image: Image.Image, how: Preparation) -> Image.Image:
    """Resize once, over the whole support of the filter.

    Bicubic is the filter of EfficientNet's ImageNet weights (see their timm config), bilinear that of the paper. The
    coefficients of both are polynomials, so unlike Lanczos the result does not depend on libm. `reducing_gap` is not
    used: it would average whole blocks first, which is a second resize.
    """
    size, (width, height) = how.size, image.size
    resample = Image.Resampling.BILINEAR if how.resample == "bilinear" else Image.Resampling.BICUBIC
    if how.fit == "squash":
        return image.resize((size, size), resample)
    if how.fit == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return image.resize((size, size), resample, box=(left, top, left + side, top + side))
    inner_width, inner_height = (max(1, round(length * size / max(width, height))) for length in (width, height))
    padded = Image.new("RGB", (size, size), WHITE)
    padded.paste(
        image.resize((inner_width, inner_height), resample), ((size - inner_width) // 2, (size - inner_height) // 2)
    )
    return padded


def _perceptual_hash(image: Image.Image) -> int:
    """Return a 64-bit hash that differs in few bits between similar images: low frequencies above their median.

    Computed with integers, so that the bits are the same on every machine. Source: C. Zauner, Implementation and
    Benchmarking of Perceptual Image Hash Functions, 2010, section 3.2.1 (DCT of 32 x 32 grey, lowest 8 x 8, median).
    """
    grey = image.convert("L").resize((32, 32), Image.Resampling.BOX)
    low = _COSINES @ np.asarray(grey, np.int64) @ _COSINES.T
    bits = (low > np.median(low)).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
