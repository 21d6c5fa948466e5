"""A fetched file becomes a picture of training size, or says why it cannot. Pure: the same bytes give the same bytes.

In: the bytes of a response, of which nothing is trusted. Out: a baseline JPEG (RGB, 4:2:0, no metadata) of size x size
px, the original's size and a perceptual hash. Guaranteed: the type is read from the content, pixels are counted before
they are decoded, and a JPEG that libjpeg had to mend is corrupt rather than half grey.
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

FORMAT = 2  # raise it when other bytes are stored for the same file and parameters
SMALLEST = 8  # px; hosts answer with a 1x1 GIF for a picture they have not
WHITE = (255, 255, 255)

Fit = Literal["squash", "letterbox", "crop"]
ImageProblem = Literal["not_an_image", "corrupt", "too_many_pixels", "too_small"]

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a")
# What Pillow's readers raise on hostile bytes, found by flipping bytes of files of every format.
_BROKEN = (
    OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, AttributeError, OverflowError,
    ZeroDivisionError, MemoryError, struct.error, zlib.error,
)  # fmt: skip
_BOMB = (Image.DecompressionBombWarning, Image.DecompressionBombError)
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)

_TURN = {  # what an EXIF orientation asks for
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# The first 8 rows of the DCT-II of length 32, times 4096.
_COSINES = np.round(4096 * np.cos(np.pi * np.outer(np.arange(8), 2 * np.arange(32) + 1) / 64)).astype(np.int64)


class Unusable(Exception):  # noqa: N818 -- an outcome, not an error of the program
    """A file that gives no picture; `outcome` is the word for it in the images table."""

    def __init__(self, outcome: ImageProblem) -> None:
        super().__init__(outcome)
        self.outcome: ImageProblem = outcome


class Decoded(msgspec.Struct, frozen=True):
    """A picture at training size and what is known of its original."""

    image: bytes  # JPEG
    width: int  # px of the original, as it is to be seen
    height: int
    perceptual_hash: int  # unsigned, 64 bits


def to_training(data: bytes, size: int, fit: Fit, quality: int, max_pixels: int) -> Decoded:
    """Decode, check, turn upright, flatten over white, fit into size x size px once, and encode.

    Args:
        data: a JPEG, PNG, WebP or GIF file; of an animation the first frame is used.
        size: height and width of the result, px.
        fit: squash changes the proportions, letterbox pads with white, crop takes the largest centred square.
        quality: of the JPEG, 1 to 100.
        max_pixels: width x height above which a file is not decoded; above 89 M Pillow's own limit decides.

    Raises:
        Unusable: the file is no image, is broken, or is too large or too small.
    """
    picture = _upright(data, max_pixels)
    fitted = _fit(picture, size, fit)
    return Decoded(_encode(np.asarray(fitted), quality), picture.width, picture.height, _perceptual_hash(fitted))


def decode(jpeg: bytes | memoryview, into: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
    """Return the pixels of a stored JPEG: uint8, height x width x 3, RGB; they are put in `into`, if it is given.

    Raises:
        ValueError: it is no whole JPEG, or has more pixels than `into`.
    """
    pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(jpeg, "RGB", buffer=into)
    return pixels


def _encode(pixels: npt.NDArray[np.uint8], quality: int) -> bytes:
    encoded: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=quality, colorspace="RGB", colorsubsampling="420", fastdct=False
    )
    return encoded


BLANK = _encode(np.full((1, 1, 3), 255, np.uint8), 90)  # what an item without an image carries in a shard


def _upright(data: bytes, max_pixels: int) -> Image.Image:
    """Return the first frame as RGB, turned as its EXIF says, over white."""
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        if image.width * image.height > max_pixels:
            raise Unusable("too_many_pixels")
        if min(image.size) < SMALLEST:
            raise Unusable("too_small")
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        if image.format in {"JPEG", "MPO"} and image.mode in {"RGB", "L"}:
            # Strict: Pillow takes libjpeg's mending of a damaged scan for a picture, and its lower half is grey.
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
        # Stray bytes between the last scan and the end marker: every pixel was decoded before them.
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

    Bicubic is the filter the ImageNet weights of EfficientNet were trained and measured with (timm's configuration of
    them), and its coefficients are polynomials: no libm decides a bit, as with Lanczos. No `reducing_gap`, which would
    average whole blocks first and so resize twice.
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
    """Return 64 bits that differ little between pictures that look alike: which low frequencies are above their median.

    In whole numbers, so that no machine rounds a bit otherwise. Source: C. Zauner, Implementation and Benchmarking of
    Perceptual Image Hash Functions, 2010, section 3.2.1 (DCT of 32 x 32 grey, lowest 8 x 8, median).
    """
    grey = image.convert("L").resize((32, 32), Image.Resampling.BOX)
    low = _COSINES @ np.asarray(grey, np.int64) @ _COSINES.T
    bits = (low > np.median(low)).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
