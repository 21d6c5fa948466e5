"""Generate the embedded demo catalogue: synthetic products in the raw layout of the dataset, with images.

Input: category names, a number of items and a seed.
Output: a folder with ``raw/meta_categories``, ``raw/review_categories`` and ``images/I``.
Guarantees: the same arguments give the same bytes. No product is real, and results on the catalogue say nothing about
real products.

Each product has a latent quality of its text and another one of its image. The stars depend on both, and the average is
noisier the fewer ratings a product has. The catalogue also has the defects of real data: long-tailed counts, missing
fields, null hi_res, "None" prices, arbitrary details, duplicate reviews, one product under two ids, a shared
placeholder image, malformed lines, a rating of 0, and missing and corrupt images.
"""

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple, TypedDict

from PIL import Image, ImageDraw

FORMAT = 2  # increase it when the bytes of the catalogue change
SIDE = 96  # height and width of an image, px

_GOOD = [
    "sturdy",
    "reliable",
    "premium",
    "durable",
    "precise",
    "elegant",
    "smooth",
    "trusted",
    "refined",
    "generous",
    "solid",
    "comfortable",
    "handcrafted",
    "leakproof",
    "seamless",
    "certified",
]
_POOR = [
    "flimsy",
    "basic",
    "generic",
    "thin",
    "disposable",
    "rough",
    "wobbly",
    "assorted",
    "unbranded",
    "scented",
    "plain",
    "loud",
    "stiff",
    "narrow",
    "brittle",
    "leftover",
]
_PLAIN = [
    "with",
    "for",
    "daily",
    "use",
    "in",
    "the",
    "home",
    "and",
    "kitchen",
    "set",
    "pack",
    "gift",
    "size",
    "color",
    "design",
    "easy",
    "clean",
    "portable",
    "compact",
    "large",
    "small",
    "family",
    "travel",
    "classic",
    "modern",
    "soft",
    "bright",
]
_NOUNS = [
    "kettle",
    "pan",
    "brush",
    "mug",
    "lamp",
    "puzzle",
    "robot",
    "blocks",
    "doll",
    "kite",
    "serum",
    "lotion",
    "comb",
    "mirror",
    "soap",
    "towel",
    "tray",
    "bottle",
    "basket",
    "timer",
    "scale",
    "whisk",
    "racket",
    "drum",
]
_BRANDS = [
    "Alder",
    "Brook",
    "Cedar",
    "Dune",
    "Ember",
    "Fjord",
    "Grove",
    "Harbor",
    "Iris",
    "Juniper",
    "Kestrel",
    "Linden",
]
_PLACEHOLDER = "DEMO-PLACEHOLDER"
_HOST = "https://m.media-amazon.com/images/I"


class _Item(TypedDict):
    """A metadata line."""

    main_category: str | None
    title: str
    average_rating: float
    rating_number: int
    features: list[str]
    description: list[str]
    price: float | str | None
    images: list[dict[str, str | None]]
    videos: list[str]
    store: str | None
    categories: list[str]
    details: dict[str, object]
    parent_asin: str
    bought_together: None


class _Review(TypedDict):
    """A review line."""

    rating: float
    title: str
    text: str
    images: list[str]
    asin: str
    parent_asin: str
    user_id: str
    timestamp: int  # ms since 1970
    helpful_vote: int
    verified_purchase: bool


class _Product(NamedTuple):
    """A product: its metadata line, and the values that it was generated from."""

    item: _Item
    stars: float  # mean of its reviews' ratings, before noise
    picture: str  # name of its image
    look: float  # latent quality of its image


def write_catalogue(folder: Path, categories: Sequence[str], items: int, seed: int) -> None:
    """Write the raw files and images of `categories` to `folder`, with `items` products each."""
    for name in ("raw/meta_categories", "raw/review_categories", "images/I"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "images/I" / f"{_PLACEHOLDER}.jpg").write_bytes(_picture(Random(seed), -1.0))
    for category in categories:
        _write_category(folder, category, items, Random(f"{seed}/{category}"))


def _write_category(folder: Path, category: str, items: int, random: Random) -> None:
    prefix = "D" + "".join(random.choices("ABCDEFGHJKLMNPQRSTUVWXYZ", k=3))
    metadata: list[_Item] = []
    reviews: list[_Review] = []
    for number in range(items):
        item, stars, picture, look = _product(random, f"{prefix}{number:06d}", category)
        if metadata and random.random() < 0.03:  # the previous product, listed again under another id
            item["title"], item["store"] = metadata[-1]["title"].upper(), metadata[-1]["store"]
        written = [_review(random, item["parent_asin"], stars) for _ in range(min(item["rating_number"], 30))]
        reviews += written + [review for review in written if random.random() < 0.01]
        _write_image(folder / "images/I" / f"{picture}.jpg", random, look)
        metadata.append(item)
    reviews[0]["rating"] = 0.0
    random.shuffle(reviews)
    lines = [json.dumps(item) for item in metadata]
    for broken in range(2, len(lines), 211):
        lines.insert(broken, lines[broken][: len(lines[broken]) // 2])
    lines.insert(5, json.dumps({**metadata[0], "average_rating": "four"}))
    _write_lines(folder / f"raw/meta_categories/meta_{category}.jsonl", lines)
    _write_lines(
        folder / f"raw/review_categories/{category}.jsonl",
        [*map(json.dumps, reviews), '{"rating": 5.0, "tit'],
    )


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _product(random: Random, asin: str, category: str) -> _Product:
    words, look = random.gauss(0, 1), random.gauss(0, 1)
    truth = min(5.0, max(1.0, 3.7 + 0.55 * words + 0.45 * look))
    count = 1 + int(math.exp(random.gauss(2.6, 1.3)))
    average = min(5.0, max(1.0, random.gauss(truth, 1.1 / math.sqrt(count))))
    picture = _PLACEHOLDER if random.random() < 0.02 else f"{asin}-1"
    large = f"{_HOST}/{picture}.jpg"
    title = f"{random.choice(_BRANDS)} {_phrase(random, words, 4)} {random.choice(_NOUNS)} {asin[-4:]}"
    item: _Item = {
        "main_category": category.replace("_", " ") if random.random() > 0.02 else None,
        "title": title,
        "average_rating": round(average, 1),
        "rating_number": count,
        "features": [_phrase(random, words, 5) for _ in range(random.choice([0, 2, 3]))],
        "description": [f"<p>{_phrase(random, words, 12)} &amp; more</p>"] if random.random() > 0.4 else [],
        "price": random.choice([None, "None", 9.99, "from 12.50", 120]),
        "images": [
            {
                "thumb": f"{_HOST}/{picture}._SS40_.jpg",
                "large": large,
                "variant": "MAIN",
                "hi_res": None if random.random() < 0.3 else large,
            }
        ]
        if random.random() > 0.03
        else [],
        "videos": [],
        "store": random.choice([*_BRANDS, None]),
        "categories": random.choice([[], ["Demo", category]]),
        "details": random.choice(
            [{}, {"Brand": "Demo", "Item Weight": 0.4}, {"Rank": {"Demo": 12}, "New": ["a", None]}]
        ),
        "parent_asin": asin,
        "bought_together": None,
    }
    return _Product(item, truth, picture, look)


def _phrase(random: Random, quality: float, length: int) -> str:
    """Return a phrase of `length` words; the higher the quality, the more of them are positive."""
    share = 1 / (1 + math.exp(-2.5 * quality))
    return " ".join(
        random.choice(_PLAIN) if random.random() < 0.4 else random.choice(_GOOD if random.random() < share else _POOR)
        for _ in range(length)
    )


def _review(random: Random, asin: str, stars: float) -> _Review:
    return {
        "rating": float(min(5, max(1, round(random.gauss(stars, 1.1))))),
        "title": "",
        "text": "A made review of a made product.",
        "images": [],
        "asin": asin,
        "parent_asin": asin,
        "user_id": f"DEMO{random.randrange(5000):05d}",
        "timestamp": 1_400_000_000_000 + random.randrange(280_000_000) * 1000,
        "helpful_vote": 0,
        "verified_purchase": random.random() < 0.9,
    }


def _write_image(path: Path, random: Random, quality: float) -> None:
    fate = random.random()
    if path.exists() or fate < 0.02:  # the placeholder exists already; 2 % of the images are missing
        return
    content = _picture(random, quality)
    if fate < 0.03:
        content = content[: len(content) // 2]
    elif fate < 0.035:
        content = b"<html><body>Not an image</body></html>"
    path.write_bytes(content)


def _lit(backdrop: Sequence[float], random: Random) -> Image.Image:
    """Return a backdrop with another light in each of its 3 x 3 parts, so that no two pictures are near duplicates."""
    corners = Image.new("RGB", (3, 3))
    colors = [tuple(int(min(255, max(0, value + random.gauss(0, 30)))) for value in backdrop) for _ in range(9)]
    corners.putdata(colors)
    return corners.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def _picture(random: Random, quality: float) -> bytes:
    """Draw a product on a backdrop: the higher the quality, the lighter the backdrop and the stronger the color."""
    level = 1 / (1 + math.exp(-1.5 * quality))
    backdrop = [60 + 190 * level + random.gauss(0, 6) for _ in range(3)]
    hue = random.randrange(360)
    image = _lit(backdrop, Random(f"{hue} {backdrop}"))
    draw = ImageDraw.Draw(image)
    color = f"hsl({hue}, {int(15 + 80 * level)}%, 45%)"
    for _ in range(1 + int(5 * (1 - level))):  # low quality is cluttered
        x, y, side = random.randrange(8, 50), random.randrange(8, 50), random.randrange(20, 40)
        shape = random.choice([draw.ellipse, draw.rectangle])
        shape((x, y, x + side, y + side), fill=color)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
