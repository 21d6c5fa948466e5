"""What is the same picture after it was stored at training size, and what is another one."""

import csv
import io
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from PIL import Image, ImageDraw

from shards.images import pixels, similarity
from shards.images.similarity import MAX_DIFFERENCE, MAX_DISTANCE, View, descriptors, difference, same_picture

Colour: TypeAlias = tuple[int, int, int]
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def print_of(seed: int) -> Image.Image:
    """Return a picture of soft spots with a few sharp shapes."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (6, 5, 3)).astype(np.uint8)).resize(
        (400, 480), Image.Resampling.BICUBIC
    )
    draw = ImageDraw.Draw(image)
    for _ in range(8):
        x, y, width, height = (int(number) for number in rng.integers(20, 250, 4))
        draw.ellipse((x, y, x + width / 2, y + height), tuple(int(level) for level in rng.integers(0, 256, 3)))
    return image


def shirt(colour: Colour, printed: int, background: Colour = WHITE) -> Image.Image:
    """Return a product photo: the same shirt on the same background, in some colour with some print."""
    image = Image.new("RGB", (600, 720), background)
    corners = [(150, 80), (250, 60), (350, 60), (450, 80), (560, 220), (480, 270), (450, 240), (450, 660), (150, 660)]
    ImageDraw.Draw(image).polygon([*corners, (150, 240), (120, 270), (40, 220)], colour)
    image.paste(print_of(printed).resize((200, 240)), (200, 200))
    return image


def cropped(image: Image.Image) -> Image.Image:
    width, height = image.size
    return image.crop((round(0.03 * width), round(0.03 * height), round(0.97 * width), round(0.97 * height)))


def cropped_on_one_side(image: Image.Image) -> Image.Image:
    return image.crop((round(0.03 * image.width), 0, image.width, image.height))


def padded(image: Image.Image, colour: Colour = WHITE) -> Image.Image:
    width, height = image.size
    whole = Image.new("RGB", (round(1.1 * width), round(1.1 * height)), colour)
    whole.paste(image, (round(0.05 * width), round(0.05 * height)))
    return whole


def encoded(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def resized(image: Image.Image, factor: float) -> Image.Image:
    return image.resize((round(factor * image.width), round(factor * image.height)), Image.Resampling.BICUBIC)


TRANSFORMATIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG of quality 50": lambda image: Image.open(io.BytesIO(encoded(image, 50))),
    "half the size": lambda image: resized(image, 0.5),
    "larger": lambda image: resized(image, 1.4),
    "cropped": cropped,
    "cropped on one side": cropped_on_one_side,
    "padded with white": padded,
    "padded with black": lambda image: padded(image, BLACK),
    "all": lambda image: Image.open(io.BytesIO(encoded(resized(cropped(image), 0.6), 50))),
}


def stored(image: Image.Image, size: int = 224, fit: pixels.Fit = "squash") -> bytes:
    return pixels.to_training(encoded(image.convert("RGB"), 95), pixels.Preparation(size, fit, 90, 50_000_000)).image


def candidates(one: bytes, other: bytes) -> bool:
    a, b = descriptors(one).astype(int), descriptors(other).astype(int)
    return bool(np.square(a[:, None] - b).sum(2).min() <= MAX_DISTANCE)


def found(one: bytes, other: bytes) -> bool:
    return candidates(one, other) and same_picture(one, other)


@pytest.mark.parametrize("name", TRANSFORMATIONS)
@pytest.mark.parametrize("fit", ["squash", "letterbox", "crop"])
@pytest.mark.parametrize("size", [128, 224])
def test_a_transformed_picture_is_the_same(name: str, fit: pixels.Fit, size: int) -> None:
    for image in (print_of(1), shirt((30, 90, 160), 2), shirt((200, 40, 60), 3, background=(240, 240, 235))):
        assert found(stored(image, size, fit), stored(TRANSFORMATIONS[name](image), size, fit))


@pytest.mark.parametrize("seed", range(8))
def test_pictures_cropped_at_opposite_corners_are_the_same(seed: int) -> None:
    image = print_of(seed)
    width, height = round(0.97 * image.width), round(0.97 * image.height)
    one = image.crop((0, 0, width, height))
    other = image.crop((image.width - width, image.height - height, image.width, image.height))
    assert found(stored(one), stored(other))


@pytest.mark.parametrize("name", TRANSFORMATIONS)
@pytest.mark.parametrize("other", [shirt((30, 90, 160), 3), shirt((160, 40, 90), 2)], ids=["print", "colour"])
def test_another_print_or_colour_on_the_same_template_differs(name: str, other: Image.Image) -> None:
    image = shirt((30, 90, 160), 2)
    assert candidates(stored(image), stored(image))
    assert not same_picture(stored(image), stored(other))
    assert not same_picture(stored(image), stored(TRANSFORMATIONS[name](other)))


def test_other_pictures_are_no_candidates() -> None:
    for one, other in pairwise(stored(print_of(seed)) for seed in range(8)):
        assert not candidates(one, other)
        assert not same_picture(one, other)


def test_a_picture_without_content() -> None:
    white, black, grey = (stored(Image.new("RGB", (300, 200), (level,) * 3)) for level in (255, 0, 250))
    assert same_picture(white, white)
    assert found(white, grey)
    assert not same_picture(white, black)
    assert not same_picture(white, stored(print_of(1)))


def test_a_picture_of_one_pixel() -> None:
    assert len(descriptors(pixels.BLANK)) == 1
    assert same_picture(pixels.BLANK, stored(Image.new("RGB", (300, 200), WHITE), 1))
    assert difference(View.all_of(pixels.BLANK), View.all_of(stored(print_of(1)))) > MAX_DIFFERENCE


def test_the_order_of_two_pictures_does_not_matter() -> None:
    one, other = stored(shirt((30, 90, 160), 2)), stored(padded(shirt((30, 90, 160), 2)))
    assert same_picture(one, other)
    assert same_picture(other, one)


def test_descriptors_are_int8_of_one_size() -> None:
    for image, views in ((print_of(1), 1), (padded(print_of(1)), 2)):
        described = descriptors(stored(image))
        assert described.shape == (views, similarity.DIMENSIONS)
        assert described.dtype == np.int8
        assert described.min() >= -127


def test_real_lookalikes(corpus: Path) -> None:
    """Pairs of real photos that a hash of 64 bits takes for one, labelled by hand."""
    folder = corpus / "lookalikes"
    with (folder / "pairs.csv").open() as file:
        rows = list(csv.DictReader(file))
    said, same = np.zeros((2, len(rows)), bool)
    for number, row in enumerate(rows):
        one, other = (stored(Image.open(folder / "images" / row[name])) for name in ("one", "other"))
        said[number], same[number] = found(one, other), row["same_picture"] == "yes"
    assert (said & same).sum() / said.sum() >= 0.97
    assert (said & same).sum() / same.sum() >= 0.97


@pytest.mark.parametrize("folder", ["electronics/images/I", "movies/images/I", "lookalikes/images"])
def test_real_pictures(corpus: Path, folder: str) -> None:
    """Each of some pictures is the same after some transformation, and another than the next."""
    paths = random.Random(0).sample(sorted((corpus / folder).iterdir()), 40)
    images = [Image.open(path).convert("RGB") for path in paths]
    transformations = list(TRANSFORMATIONS.values())
    made = [transformations[number % len(transformations)](image) for number, image in enumerate(images)]
    assert np.mean([found(stored(image), stored(other)) for image, other in zip(images, made, strict=True)]) >= 0.97
    assert not any(same_picture(stored(one), stored(other)) for one, other in pairwise(images))
