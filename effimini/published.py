"""What others have published of this task, to stand beside one's own figures.

Their data is another (Amazon Reviews 2023 as drawn by each), so that no difference from them is one of models alone.
"""

from typing import NamedTuple


class Published(NamedTuple):
    """A model as its authors report it; None where they do not say."""

    name: str
    plcc: float | None
    ces: float | None
    parameters: float  # millions
    flops: float | None  # billions, of a sample
    data: str
    source: str


# reference sections 1 and 2; the paper gives the CES, and at its cost a PLCC is CES / 1.10
PUBLISHED = (
    Published("EffiMiniVLM", 0.36, 0.40, 27.7, 6.8, "20 % of Amazon Reviews 2023", "arXiv 2604.03172"),
    Published("SmolVLM2-256M with an MLP head", 0.39, 0.40, 228, None, "up to 16 M examples", "arXiv 2605.27737"),
)
