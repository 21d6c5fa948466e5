"""Whether two stored images are the same picture: descriptors that find candidates, and a comparison of their pixels.

Input: JPEGs at training size. Output: descriptors, and the difference of two images.
Guarantees: the same picture after re-encoding (JPEG quality 50 or more), resizing, cropping (up to 3 % per side) or
padding with one colour (up to 5 % per side) is the same picture; another print or colour on the same template is not.
That holds for at least 97 of 100 pictures; docs/benchmarks.md has precision and recall.

A border of one colour says nothing about the picture, and padding adds one. So an image has up to two views: without
its borders, and whole. Two images are the same picture if any two of their views are, after their edges are aligned.
"""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

FORMAT = 1  # increment it when a descriptor or a difference changes for the same images
MAX_DIFFERENCE = 30.0  # levels, of 255; see `difference`
DIMENSIONS = 96  # of a descriptor
MAX_DISTANCE = 40**2 * 64  # squared, of the descriptors of candidates: 40 levels in each of the 64 cells

_GREY_CELLS, _CHROMA_CELLS = 8, 4  # per side of a descriptor
_DESCRIBED = 96  # px per side that a descriptor needs at least; a JPEG decodes faster at a fraction of its size
_BORDER_TOLERANCE = 32  # levels; JPEG noise stays within it
_BORDER_EXCEPTIONS = 0.03  # fraction of the pixels of a border's row that may have another colour
_NESTED_BORDERS = 3  # maximum number
_ROWS_AT_ONCE = 16
_MIN_CONTENT = 0.1  # fraction of the height and the width that is inside the borders at least
_ALIGNED = 48  # px per side
_STEPS = 8  # maximum number of Gauss-Newton steps
_CONVERGED = 0.002  # fraction of the side
_MAX_SHIFT = 0.08  # of an edge, fraction of the side: crops of both images, and borders that end a few px apart
_SAME_VIEW = _MAX_SHIFT / 2  # widest border, fraction of the side, up to which alignment finds the whole image
_HOPELESS = np.inf, 5000.0, 3000.0, 400.0  # mean squared difference above which a step is the last one; views differ
_COMPARED, _BLOCK = 96, 8  # px per side
_CONTRAST = 50.0  # levels, standard deviation; the difference of pictures with less is amplified accordingly
_MAX_AMPLIFIED = 3.0  # times; JPEG noise does not shrink with the contrast
# half of the px from each pixel's centre to the left or top edge, and to the opposite edge
_FROM_FIRST = (np.arange(_ALIGNED) + 0.5) / 2
_FROM_LAST = _FROM_FIRST[::-1]

Box = tuple[float, float, float, float]  # left, top, right, bottom, px of the image that is given with it
Levels = npt.NDArray[np.float32]
Edges = npt.NDArray[np.float64]  # [4], how far left, top, right and bottom are moved inwards, fractions of the side


class View(NamedTuple):
    """An image and the part of it that is compared."""

    colour: Image.Image
    grey: Image.Image  # reduced
    box: Box  # fractions of the sides

    @classmethod
    def all_of(cls, jpeg: bytes) -> list[Self]:
        """Return the views of an image: without its borders if it has any, and whole."""
        colour, pixels = Image.fromarray(simplejpeg.decode_jpeg(jpeg, "RGB")), _reduced(jpeg)
        grey = Image.fromarray(pixels).convert("L")
        return [cls(colour, grey, _scaled(box, 1 / grey.width, 1 / grey.height)) for box in _boxes(pixels)]


def descriptors(jpeg: bytes) -> npt.NDArray[np.int8]:
    """Return the descriptors of an image's views, int8 [1 or 2, DIMENSIONS]: brightness in 8 x 8 and colour in 4 x 4.

    The distance of two descriptors is small for the same picture, and also for many others: it finds candidates.
    """
    pixels = _reduced(jpeg)
    image = Image.fromarray(pixels)
    return np.stack([_descriptor(image, box) for box in _boxes(pixels)])


def difference(one: Sequence[View], other: Sequence[View]) -> float:
    """Return the largest difference of two images over blocks of 8 x 8 of 96 x 96 px, in levels of 255.

    The difference of a block is the mean of the absolute differences of its pixels and channels, amplified for pictures
    of low contrast, whose differences are all small. The first pair of
    views with at most `MAX_DIFFERENCE` counts, else the most similar pair; inf if none can be aligned.
    """
    smallest = np.inf
    for a, b in product(one, other):
        edges = _aligned(a, b)
        if edges is not None:
            smallest = min(smallest, _block_difference(a, b, edges))
        if smallest <= MAX_DIFFERENCE:
            break
    return float(smallest)


def same_picture(one: bytes, other: bytes) -> bool:
    """Return whether two JPEGs at training size are the same picture."""
    return one == other or difference(View.all_of(one), View.all_of(other)) <= MAX_DIFFERENCE


def _reduced(jpeg: bytes) -> npt.NDArray[np.uint8]:
    """Return the pixels of a JPEG at the smallest size that it decodes to with at least `_DESCRIBED` px per side."""
    pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(jpeg, "RGB", min_height=_DESCRIBED, min_width=_DESCRIBED)
    return pixels


def _boxes(pixels: npt.NDArray[np.uint8]) -> list[Box]:
    """Return the boxes of the views of an image, uint8 [H, W, 3]."""
    height, width = pixels.shape[:2]
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.int16)
    inside = left, top, right, bottom = _inside_borders(planes)
    widest = max(left / width, top / height, 1 - right / width, 1 - bottom / height)
    return [inside] if widest < _SAME_VIEW else [inside, (0, 0, width, height)]


def _inside_borders(planes: npt.NDArray[np.int16]) -> Box:
    """Return the box inside all nested borders of an image, [3, H, W]."""
    _, height, width = planes.shape
    left, top, right, bottom = 0, 0, width, height
    for _ in range(_NESTED_BORDERS):
        inside = planes[:, top:bottom, left:right]
        above, below = _border(inside), _border(inside[:, ::-1])
        if bottom - top - above - below < _MIN_CONTENT * height:
            break
        columns = inside[:, above : bottom - top - below].transpose(0, 2, 1)
        before, after = _border(columns), _border(columns[:, ::-1])
        if right - left - before - after < _MIN_CONTENT * width or not any((above, below, before, after)):
            break
        left, top, right, bottom = left + before, top + above, right - after, bottom - below
    return left, top, right, bottom


def _border(rows: npt.NDArray[np.int16]) -> int:
    """Return how many of the first rows, [3, rows, width], have the colour of the first row; one more if any has.

    The last row of a border is mixed with the picture.
    """
    colour = np.sort(rows[:, 0], axis=1)[:, rows.shape[2] // 2]  # the median
    for start in range(0, rows.shape[1], _ROWS_AT_ONCE):
        far = np.abs(rows[:, start : start + _ROWS_AT_ONCE] - colour[:, None, None]) > _BORDER_TOLERANCE
        other = np.count_nonzero(far[0] | far[1] | far[2], axis=1) > _BORDER_EXCEPTIONS * rows.shape[2]
        if other.any():
            first = start + int(np.argmax(other))
            return first + 1 if first else 0
    return int(rows.shape[1])


def _descriptor(image: Image.Image, box: Box) -> npt.NDArray[np.int8]:
    grey, colour = (
        np.asarray(image.resize((cells, cells), Image.Resampling.BOX, box=box).convert("YCbCr"), np.int16) - 128
        for cells in (_GREY_CELLS, _CHROMA_CELLS)
    )
    # a cell of colour is four cells of brightness, so it counts four times
    values = np.concatenate([grey[..., 0].ravel(), 2 * colour[..., 1:].ravel()])
    return values.clip(-127, 127).astype(np.int8)


def _aligned(a: View, b: View) -> Edges | None:
    """Return the edges of `a` (negative: of `b`) that make two views most similar; None if they stay too different.

    Gauss-Newton on the squared differences; each edge moves on its own, so shifts and stretches of both axes are found.
    All terms are multiples of 1/64, whose sums float64 holds exactly, so the order of summation does not matter.
    """
    edges, best, smallest = np.zeros(4), np.zeros(4), np.inf
    for step in range(_STEPS):
        x, y = _resized(a.grey, _cut(a.box, edges), _ALIGNED), _resized(b.grey, _cut(b.box, -edges), _ALIGNED)
        residual = (y - x).astype(np.float64)
        error = float(np.square(residual).mean())
        if error < smallest:
            best, smallest = edges, error
        if step < len(_HOPELESS) and smallest > _HOPELESS[step]:
            return None
        down, right = np.gradient(x + y)
        first = np.stack([right * _FROM_LAST, down * _FROM_LAST[:, None]])
        last = np.stack([right * _FROM_FIRST, down * _FROM_FIRST[:, None]])
        moves = np.concatenate([first, -last]).reshape(4, -1)  # of the mean image, per fraction of the side
        square = moves @ moves.T
        damped = square + np.eye(4) * (1 + np.trace(square) / 4000)  # an image without edges has none to align
        moved = (edges + np.linalg.solve(damped, moves @ residual.ravel())).clip(-_MAX_SHIFT, _MAX_SHIFT)
        if np.abs(moved - edges).max() < _CONVERGED:
            break
        edges = moved
    return best


def _block_difference(a: View, b: View, edges: Edges) -> float:
    x, y = _resized(a.colour, _cut(a.box, edges), _COMPARED), _resized(b.colour, _cut(b.box, -edges), _COMPARED)
    blocks = _COMPARED // _BLOCK
    largest = np.abs(x - y).reshape(blocks, _BLOCK, blocks, _BLOCK, 3).mean((1, 3, 4)).max()
    faint = _CONTRAST / max(1.0, float(min(x.std(), y.std())))
    return float(largest) * min(max(faint, 1.0), _MAX_AMPLIFIED)


def _cut(box: Box, edges: Edges) -> Box:
    """Move the edges of a box inwards; an edge that would move outwards stays, as there may be no pixels outside."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    inwards = edges.clip(0)
    return (
        left + inwards[0] * width,
        top + inwards[1] * height,
        right - inwards[2] * width,
        bottom - inwards[3] * height,
    )


def _scaled(box: Box, x: float, y: float) -> Box:
    left, top, right, bottom = box
    return left * x, top * y, right * x, bottom * y


def _resized(image: Image.Image, box: Box, side: int) -> Levels:
    box = _scaled(box, image.width, image.height)
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box=box), np.float32)
