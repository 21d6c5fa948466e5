"""Published results on this task, shown in the report next to those of the run.

Each used its own sample of Amazon Reviews 2023, so differences are not due to the models alone.
"""

from typing import NamedTuple


class Published(NamedTuple):
    """A model as its authors report it; None if not reported."""

    name: str
    plcc: float | None
    ces: float | None
    parameters: float  # millions
    flops: float | None  # billions, per sample
    data: str
    source: str


# The paper (arXiv 2604.03172) gives CES; at its cost the PLCC is CES / 1.10.
PUBLISHED = (
    Published("EffiMiniVLM", 0.36, 0.40, 27.7, 6.8, "20 % of Amazon Reviews 2023", "arXiv 2604.03172"),
    Published("SmolVLM2-256M with an MLP head", 0.39, 0.40, 228, None, "up to 16 M examples", "arXiv 2605.27737"),
)
