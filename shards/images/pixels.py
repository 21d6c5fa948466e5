"""Decode a fetched file to a JPEG of training size. Pure: the same input bytes give the same output bytes.

Input: the untrusted bytes of a response. Output: a baseline JPEG (RGB, 4:2:0, no metadata) of size x size px, the size
of the original and a perceptual hash. Guarantees: the format is detected from the content; the number of pixels is
checked before decoding; a JPEG that libjpeg decodes with errors is "corrupt" (its lower part would be grey).
"""

import io
import struct
import warnings
import zlib
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import ExifTags, Image

FORMAT = 2  # increment it when the stored bytes change for the same file and parameters
SMALLEST = 8  # px; hosts return a 1x1 GIF for a missing image
WHITE = (255, 255, 255)

Fit = Literal["squash", "letterbox", "crop"]
ImageProblem = Literal["not_an_image", "corrupt", "too_many_pixels", "too_small"]

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a")
# Errors that Pillow's readers raise on malformed files, found by flipping bytes of files of every format.
_BROKEN = (
    OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, AttributeError, OverflowError,
    ZeroDivisionError, MemoryError, struct.error, zlib.error,
)  # fmt: skip
_BOMB = (Image.DecompressionBombWarning, Image.DecompressionBombError)
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
    """A file that cannot be used as an image; `outcome` is its outcome in the images table."""

    def __init__(self, outcome: ImageProblem) -> None:
        super().__init__(outcome)
        self.outcome: ImageProblem = outcome


class Decoded(msgspec.Struct, frozen=True):
    """An image at training size, with the size of its original."""

    image: bytes  # JPEG
    width: int  # of the original after its EXIF rotation, px
    height: int
    perceptual_hash: int  # unsigned, 64 bits


def to_training(data: bytes, size: int, fit: Fit, quality: int, max_pixels: int) -> Decoded:
    """Decode, check, rotate upright, flatten over white, resize once to size x size px, and encode.

    Args:
        data: a JPEG, PNG, WebP or GIF file; only the first frame of an animation is used.
        size: height and width of the result, px.
        fit: squash changes the aspect ratio, letterbox pads with white, crop keeps the largest centred square.
        quality: of the JPEG, 1 to 100.
        max_pixels: width x height above which a file is not decoded; Pillow's own limit is 89 M.

    Raises:
        Unusable: the file is not an image, is corrupt, too large or too small.
    """
    picture = _upright(data, max_pixels)
    fitted = _fit(picture, size, fit)
    return Decoded(_encode(np.asarray(fitted), quality), picture.width, picture.height, _perceptual_hash(fitted))


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


def _upright(data: bytes, max_pixels: int) -> Image.Image:
    """Return the first frame as RGB over white, rotated by its EXIF orientation."""
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        if image.width * image.height > max_pixels:
            raise Unusable("too_many_pixels")
        if min(image.size) < SMALLEST:
            raise Unusable("too_small")
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        if image.format in {"JPEG", "MPO"} and image.mode in {"RGB", "L"}:
            # Strict: for a damaged scan Pillow would return libjpeg's partial result, with a grey lower half.
            upright = Image.fromarray(_decode_strictly(data))
        else:
            upright = _flatten_alpha(image)
        return upright.transpose(_TURN[orientation]) if orientation in _TURN else upright
    except _BOMB:
        raise Unusable("too_many_pixels") from None
    except _BROKEN:
        known = data.startswith(_MAGIC) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")
        raise Unusable("corrupt" if known else "not_an_image") from None


def _decode_strictly(data: bytes) -> npt.NDArray[np.uint8]:
    try:
        return decode(data)
    except ValueError as error:
        if "extraneous bytes before marker 0xd9" not in str(error):
            raise
        # Stray bytes between the last scan and the end marker: all pixels were decoded before them.
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", strict=False)
        return pixels


def _flatten_alpha(image: Image.Image) -> Image.Image:
    """Return an image of any mode as RGB over white."""
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips at 255 instead of scaling
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, (*WHITE, 255))
    white.alpha_composite(image.convert("RGBA"))
    return white.convert("RGB")


def _fit(image: Image.Image, size: int, fit: Fit) -> Image.Image:
    """Resize once, bicubic over the whole support.

    The ImageNet weights of EfficientNet were trained and evaluated with bicubic resizing (see their timm config). Its
    coefficients are polynomials, so unlike Lanczos the result does not depend on libm. `reducing_gap` is not used: it
    would average whole blocks first, which is a second resize.
    """
    if fit == "squash":
        return image.resize((size, size), Image.Resampling.BICUBIC)
    width, height = image.size
    if fit == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    inner = tuple(max(1, round(length * size / max(width, height))) for length in (width, height))
    padded = Image.new("RGB", (size, size), WHITE)
    padded.paste(
        image.resize((inner[0], inner[1]), Image.Resampling.BICUBIC),
        ((size - inner[0]) // 2, (size - inner[1]) // 2),
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
