"""Pictures as varied as real ones, made on request in microseconds.

Input: the photos of the corpus where present, otherwise generated ones. Output: JPEGs of at most 256 px. Guarantees: a
picture is a function of its number and of the pool; two numbers have different pictures, but for SAME of them that show
one of a few hundred pictures.

Photos are augmented (cropped, flipped, recoloured) and encoded once, with a restart marker after every four blocks. The
pieces between markers can be decoded alone, so a new picture is a collage: the pieces of three photos, joined.
"""

import io
import random
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from benchmarks.rehearsal.figures import corpus

SHAPES = {(256, 256): 0.5, (256, 192): 0.15, (192, 256): 0.2, (256, 128): 0.05, (128, 256): 0.05, (240, 240): 0.05}
SAME, SHARED = 0.02, 400  # fraction of the pictures that are one of the shared ones
PER_SHAPE = 300
GREY = 0.04  # fraction of the photos
_FOLDERS = ("photos/*.jpg", "electronics/images/I/*.jpg", "movies/images/I/*.jpg")
_MARKER = re.compile(b"\xff[\xd0-\xd7]")


class Cut(NamedTuple):
    """A JPEG, cut at its restart markers."""

    head: bytes
    pieces: list[bytes]


class Pool:
    """Augmented photos of several shapes.

    Args:
        seed: of the augmentation.
        per_shape: photos of each shape.
    """

    def __init__(self, seed: int = 0, per_shape: int = PER_SHAPE) -> None:
        rng = random.Random(seed)
        folder = corpus()
        paths = sorted(path for pattern in _FOLDERS for path in folder.glob(pattern)) if folder else []
        self._cuts = [[_cut(_augmented(rng, paths, shape)) for _ in range(per_shape)] for shape in SHAPES]
        self._limits = np.cumsum(list(SHAPES.values())).tolist()

    def picture(self, number: int) -> bytes:
        """Return the JPEG of a picture."""
        rng = random.Random(number)
        if rng.random() < SAME:
            rng = random.Random(-1 - rng.randrange(SHARED))
        u = rng.random()
        shape = next((n for n, limit in enumerate(self._limits) if u < limit), 0)
        first, second, third = rng.sample(self._cuts[shape], 3)
        choice = rng.getrandbits(64), rng.getrandbits(64)
        pieces = [
            (first, second, third)[(choice[0] >> n % 61 & 1) + (choice[1] >> n % 59 & 1)].pieces[n]
            for n in range(len(first.pieces))
        ]
        joined = [piece + bytes((0xFF, 0xD0 + n % 8)) for n, piece in enumerate(pieces)]
        joined[-1] = pieces[-1]
        return b"".join((first.head, *joined, b"\xff\xd9"))


def _cut(image: Image.Image) -> Cut:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85, restart_marker_blocks=4)
    data = file.getvalue()
    scan = data.index(b"\xff\xda")
    begin = scan + 2 + int.from_bytes(data[scan + 2 : scan + 4], "big")
    return Cut(data[:begin], _MARKER.split(data[begin:-2]))


def _augmented(rng: random.Random, paths: list[Path], shape: tuple[int, int]) -> Image.Image:
    """Return a photo, or a generated picture, cropped, flipped and recoloured."""
    image = Image.open(rng.choice(paths)).convert("RGB") if paths else _drawn(rng)
    width, height = image.size
    left, upper = rng.randrange(1 + width // 4), rng.randrange(1 + height // 4)
    box = left, upper, left + width * rng.uniform(0.6, 0.75), upper + height * rng.uniform(0.6, 0.75)
    image = image.resize(shape, Image.Resampling.BILINEAR, box)
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    if rng.random() < GREY:
        image = image.convert("L").convert("RGB")
    image = ImageEnhance.Color(image).enhance(rng.uniform(0.4, 1.6))
    return ImageEnhance.Brightness(image).enhance(rng.uniform(0.7, 1.15))


def _drawn(rng: random.Random) -> Image.Image:
    """Return a generated picture: noise of several sizes, and shapes over it."""
    noise = np.random.default_rng(rng.getrandbits(32))
    image = Image.fromarray(noise.integers(0, 256, (6, 6, 3), np.uint8)).resize((320, 320), Image.Resampling.BICUBIC)
    fine = Image.fromarray(noise.integers(0, 256, (80, 80, 3), np.uint8)).resize((320, 320))
    image = Image.blend(image, fine, rng.uniform(0.05, 0.25))
    pencil = ImageDraw.Draw(image)
    for _ in range(rng.randrange(2, 7)):
        x, y, width, height = (rng.randrange(20, 240) for _ in range(4))
        colour = tuple(rng.randrange(256) for _ in range(3))
        rng.choice((pencil.ellipse, pencil.rectangle))((x, y, x + width, y + height), colour)
    return image
