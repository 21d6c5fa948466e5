"""What a model is judged by: correlation, error, and what it costs.

In: predictions and labels in stars, or a model and the size of its input. Out: numbers. Pure and
deterministic; the definitions of C, E and CES are the challenge's (reference section 2).
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch.utils.flop_counter import FlopCounterMode

Values = npt.NDArray[np.floating]

if TYPE_CHECKING:  # it has a part that is fitted by these metrics
    from effimini.model import EffiMini

PARTS = ("image", "text", "head")


def plcc(predictions: Values, labels: Values) -> float:
    """Return Pearson's r of two arrays [N]; 0 where it is undefined: either one constant, or N under 2."""
    x, y = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / math.sqrt((x @ x) * (y @ y)))


def srcc(predictions: Values, labels: Values) -> float:
    """Return Spearman's rank correlation, ties sharing their mean rank; 0 where `plcc` is."""
    return plcc(stats.rankdata(predictions), stats.rankdata(labels))


def mae(predictions: Values, labels: Values) -> float:
    """Return the mean absolute error, stars."""
    return float(np.mean(np.abs(np.asarray(predictions, np.float64) - labels)))


def rmse(predictions: Values, labels: Values) -> float:
    """Return the root of the mean squared error, stars."""
    return float(np.sqrt(np.mean((np.asarray(predictions, np.float64) - labels) ** 2)))


def plcc_interval(predictions: Values, labels: Values, resamples: int, seed: int) -> tuple[float, float]:
    """Return the 95 % interval of the PLCC, (low, high), of arrays [N]; see `_interval`."""
    return _interval(lambda rows: plcc(predictions[rows], labels[rows]), len(labels), resamples, seed)


def lead(ours: Values, theirs: Values, labels: Values, resamples: int, seed: int) -> tuple[float, float, float]:
    """Return by how much the PLCC of `ours` is above that of `theirs`, and its 95 % interval; see `_interval`.

    The samples drawn are the same for both, so that what both find hard does not widen the interval.
    """

    def difference(rows: npt.NDArray[np.int64]) -> float:
        return plcc(ours[rows], labels[rows]) - plcc(theirs[rows], labels[rows])

    low, high = _interval(difference, len(labels), resamples, seed)
    return plcc(ours, labels) - plcc(theirs, labels), low, high


def _interval(
    statistic: Callable[[npt.NDArray[np.int64]], float], samples: int, resamples: int, seed: int
) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of a statistic of samples: (low, high).

    Args:
        statistic: is given the numbers of the samples drawn, int64 [samples].
        samples: how many there are.
        resamples: how often as many are drawn with replacement.
        seed: of the draws; the same samples are drawn for whatever statistic, so that intervals can be compared.
    """
    random = np.random.default_rng(seed)
    drawn = [statistic(random.integers(0, samples, samples)) for _ in range(resamples)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def cost(parameters: int, flops: int) -> float:
    """Return the resource cost C = sqrt(parameters / 1e9) * sqrt(flops / 20e9)."""
    return math.sqrt(parameters / 1e9) * math.sqrt(flops / 20e9)


def efficiency(c: float) -> float:
    """Return E = min(1 + 0.05 ln(1/C), 1.10) for C <= 1, else 1 / (1 + 2 ln C)."""
    return min(1 + 0.05 * math.log(1 / c), 1.10) if c <= 1 else 1 / (1 + 2 * math.log(c))


def costs(model: "EffiMini") -> dict[str, Any]:
    """Return what a model costs at its own input: parameters, flops (of one sample), C and E."""
    counted = flops(model, model.config.size, model.config.max_tokens)["total"]
    total = parameters(model)["total"]
    c = cost(total, counted)
    return {"parameters": total, "flops": counted, "C": c, "E": efficiency(c)}


def ces(r: float, e: float) -> float:
    """Return CES = max(0, PLCC) * E."""
    return max(0.0, r) * e


def parameters(model: "EffiMini") -> dict[str, int]:
    """Return the parameters of each part and their total; the text encoder's unused pooler counts."""
    counts = {part: sum(p.numel() for p in getattr(model, part).parameters()) for part in PARTS}
    if model.terms is not None:
        counts["terms"] = model.terms.weight.numel()
    return counts | {"total": sum(counts.values())}


@torch.no_grad()
def flops(model: "EffiMini", size: int, tokens: int) -> dict[str, int]:
    """Return the floating point operations of one sample by part and in total, 2 per multiply-add.

    Attention is computed in the eager way while counting: the counter does not see the fused one.

    Args:
        model: any; left as it was.
        size: height and width of the image, px.
        tokens: of the text, all of them real.
    """
    device = model.mean.device
    image = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device)
    ids = torch.zeros(1, tokens, dtype=torch.int64, device=device)
    text, training = model.text, model.training
    attention = text.config._attn_implementation  # there is a setter but no getter
    model.eval()
    text.set_attn_implementation("eager")
    counted = {}
    try:
        with FlopCounterMode(display=False) as counter:
            image_features = model.image_features(image)
            counted["image"] = counter.get_total_flops()
            text_features = model.text_features(ids, torch.ones_like(ids))
            counted["text"] = counter.get_total_flops() - counted["image"]
            model.head(torch.cat([image_features, text_features], dim=1))
            counted["total"] = counter.get_total_flops()
    finally:
        text.set_attn_implementation(attention)
        model.train(training)
    total = counted.pop("total")
    return counted | {"head": total - sum(counted.values()), "total": total}
