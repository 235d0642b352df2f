"""Choose among trained models by validation accuracy minus a penalty on how much their features move between domains.

Source: Ye et al., Towards a Theoretical Framework of Out-of-Distribution Generalization, NeurIPS 2021. Each of the D
features before the classifier is taken as one scalar. With TV the total variation of its laws in training domains e,
    variation        V = max_y max_{e, e'} TV(law of e given y, law of e' given y)
    informativeness  I = mean_{y < y'} min_e TV(law of e given y, law of e given y')
A model's variation is the mean of V over its features with I >= delta; without that condition units that never fire,
with V = 0, would make any model look stable. Among models within `window` of the best accuracy,
    r0 = standard deviation of accuracy / standard deviation of variation,
and the choice, among all models, is the largest accuracy - r0 variation.
The paper divides all features by one number, `scaling="global"`, which smooths features of small scale until they seem
stable. By default each has a bandwidth of its own, and V and I do not change when features are scaled or shifted.
Only training domains count: the authors' code sets scale and grid by the test domain, too.
Limits: with one domain, with r0 = 0, or where all models vary alike the choice is the best accuracy. Of two models
near the best, r0 = "auto" makes the criteria equal where the more accurate varies more; it is then the choice.
The mean is over features as they stand, the theory's supremum is over directions: rotated features have another V.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from weathered.core.facts import Traits
from weathered.selection.laws import (
    Cells,
    Scaling,
    cells_of,
    informativeness_of,
    laws_in_blocks,
    variation_of,
    warn_of_missing,
)

ROUNDING = 1e-12

Values = Sequence[float] | Float[np.ndarray, "M"] | Float[Tensor, "M"]


def variation(
    features: Float[Tensor, "N D"],
    labels: Int[Tensor, "N"],
    domains: Int[Tensor, "N"],
    scaling: Scaling = "feature",
    grid: int = 512,
    min_count: int = 50,
) -> Float[Tensor, "D"]:
    """How far the law of each feature, given the class, moves between domains; in [0, 1], higher = less stable.

    features (N, D): floats. labels, domains (N,): whole numbers >= 0. scaling: whether the bandwidth follows each
    "feature" or is "global", as in the paper. grid: least points of the density, in [16, 65536]. min_count: cells of a
    class in a domain with fewer samples, at least 2, are left out, with a warning.
    Returns float64. It is 0 with one domain, of which it warns. Raises ValueError if shapes or values do not fit, or
    several domains share no class with enough samples.
    """
    cells = cells_of(labels, domains, min_count)
    warn_of_missing(cells, min_count)
    return _by_feature(features, cells, scaling, grid, variation_of)


def informativeness(
    features: Float[Tensor, "N D"],
    labels: Int[Tensor, "N"],
    domains: Int[Tensor, "N"],
    scaling: Scaling = "feature",
    grid: int = 512,
    min_count: int = 50,
) -> Float[Tensor, "D"]:
    """How far each feature keeps classes apart in every domain; in [0, 1], higher = more informative.

    Arguments, warnings and errors as in `variation`. Pairs of classes that no domain has both of are left out.
    Raises ValueError where there are no others.
    """
    cells = cells_of(labels, domains, min_count)
    warn_of_missing(cells, min_count)
    return _by_feature(features, cells, scaling, grid, informativeness_of)


def _by_feature(
    features: Tensor, cells: Cells, scaling: Scaling, grid: int, *measures: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """The measures of each feature, (D,), or (measures, D) for several."""
    if len(cells.domains) > 1 and int(cells.present.sum(0).max()) < 2:
        raise ValueError(
            "no class has enough samples in two domains, so nothing says what moves between them; give more samples, "
            "or a smaller min_count at the price of more noise"
        )
    found = torch.zeros(len(measures), features.shape[-1], dtype=torch.float64)
    for block, laws in laws_in_blocks(features.detach().cpu(), cells, scaling, grid):
        found[:, block] = torch.stack([measure(laws, cells.present) for measure in measures])
    return found[0] if len(measures) == 1 else found


class Choice(NamedTuple):
    """What `select` found among M models.

    chosen: position of the choice. most_accurate: of the best accuracy of all. r0: weight of variation. criterion (M,):
    accuracy - r0 variation, NaN for a model without variation. near (M,): whether a model was within the window.
    """

    chosen: int
    most_accurate: int
    r0: float
    criterion: np.ndarray
    near: np.ndarray


def select(accuracy: Values, variation: Values, window: float = 0.1, r0: float | Literal["auto"] = "auto") -> Choice:
    """Choose the model of the largest accuracy - r0 variation.

    accuracy (M,): on held-out rows of the training domains, in [0, 1]. variation (M,): of the informative features, in
    [0, 1], NaN for a model that has none, which is not chosen. window > 0: models less than this below the best set
    r0 = "auto", as the ratio of the standard deviations of accuracy and variation, 0 where variation has none.
    r0 >= 0: given, it is taken as it is. Of equal criteria the more accurate is chosen, of equal accuracies the first.
    Raises ValueError if shapes or values do not fit, or no model has a variation.
    """
    _check_rule(window, r0)
    acc, v = np.asarray(accuracy, dtype=float), np.asarray(variation, dtype=float)
    if acc.ndim != 1 or acc.shape != v.shape or not len(acc):
        raise ValueError(f"accuracy and variation must be (M,) with M >= 1, got {acc.shape} and {v.shape}")
    if not np.isfinite(acc).all() or np.isinf(v).any():
        raise ValueError(f"accuracy must be finite and variation finite or NaN, got {acc.tolist()} and {v.tolist()}")
    if (kept := ~np.isnan(v)).sum() == 0:
        raise ValueError("no model has an informative feature, so none can be chosen; give a smaller delta")
    near = kept & (acc > acc[kept].max() - window)
    weight = _ratio(acc[near], v[near]) if r0 == "auto" else float(r0)
    criterion = acc - weight * v
    best = kept & (criterion >= criterion[kept].max() - ROUNDING * max(1.0, float(np.abs(criterion[kept]).max())))
    chosen = int(np.argmax(np.where(best, acc, -np.inf)))
    return Choice(chosen, int(np.argmax(acc)), weight, criterion, near)


def _ratio(accuracy: np.ndarray, variation: np.ndarray) -> float:
    alike = np.ptp(variation) <= ROUNDING * np.abs(variation).max()
    return 0.0 if alike else float(accuracy.std() / variation.std())


def _check_rule(window: float, r0: float | str) -> None:
    if not (window > 0 and math.isfinite(window)):
        raise ValueError(f"window must be > 0 and finite, got {window}")
    if r0 != "auto" and (isinstance(r0, str) or not (r0 >= 0 and math.isfinite(r0))):
        raise ValueError(f"r0 must be 'auto', or >= 0 and finite, got {r0!r}")


@dataclass(frozen=True)
class Envelope:
    """A step function over x >= 0: the larger of x and of the `heights` whose `steps` are at most x."""

    steps: np.ndarray
    heights: np.ndarray

    def __call__(self, x: float | Sequence[float] | np.ndarray) -> np.ndarray:
        """s(x) for each x >= 0."""
        values = np.asarray(x, dtype=float)
        return np.maximum(values, np.concatenate([[0.0], self.heights])[np.searchsorted(self.steps, values, "right")])


def expansion_envelope(v_train: Values, v_test: Values) -> Envelope:
    """The smallest s that never falls, with s(x) >= x, and v_test <= s(v_train) for every feature.

    v_train, v_test (M,) in [0, 1]: variation of informative features over training domains, and over all domains.
    It tells how variation expands from the training domains to all; s(0) > 0 says that no expansion function exists,
    since that must be 0 at 0. It reads labels of the test domain, so it explains and must not choose.
    Raises ValueError if shapes or values do not fit.
    """
    x, y = np.asarray(v_train, dtype=float), np.asarray(v_test, dtype=float)
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise ValueError(f"v_train and v_test must be (M,) with M >= 1, got {x.shape} and {y.shape}")
    for name, values in (("v_train", x), ("v_test", y)):
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"{name} must be in [0, 1], got {values.tolist()}")
    order = np.argsort(x, kind="stable")
    return Envelope(x[order], np.maximum.accumulate(y[order]))


class Stability(NamedTuple):
    """What `ExpansionSelection.measure` finds of one model.

    variation, informativeness (D,): of each feature. informative: how many have enough of it. mean_variation,
    mean_informativeness: over those, NaN without any.
    """

    variation: Float[Tensor, "D"]
    informativeness: Float[Tensor, "D"]
    informative: int
    mean_variation: float
    mean_informativeness: float


class ExpansionSelection:
    """Choose among trained models by accuracy in the training domains minus r0 times the variation of their features.

    `weathered select RUN...` does so with finished runs.
    delta in [0, 1]: informativeness from which on a feature counts. window, r0: see `select`. scaling, min_count,
    grid: see `variation`. Raises ValueError if one is out of range.
    """

    traits = Traits(
        needs={
            "group": "groups are the domains between which it compares features",
            "features": "it compares what the network says before its classifier",
        }
    )

    def __init__(
        self,
        delta: float = 0.3,
        window: float = 0.1,
        r0: float | Literal["auto"] = "auto",
        scaling: Scaling = "feature",
        min_count: int = 50,
        grid: int = 512,
    ):
        if not 0 <= delta <= 1:
            raise ValueError(f"delta must be in [0, 1], got {delta}")
        _check_rule(window, r0)
        if scaling not in ("feature", "global"):
            raise ValueError(f"scaling must be 'feature' or 'global', got {scaling!r}")
        if min_count < 2:
            raise ValueError(f"min_count must be at least 2, got {min_count}")
        if not 16 <= grid <= 65536:
            raise ValueError(f"grid must be in [16, 65536], got {grid}")
        self.delta, self.window = delta, window
        self.r0: float | Literal["auto"] = r0
        self.scaling: Scaling = scaling
        self.min_count, self.grid = min_count, grid

    def measure(self, features: Float[Tensor, "N D"], labels: Int[Tensor, "N"], domains: Int[Tensor, "N"]) -> Stability:
        """Variation and informativeness of a model's features on rows of the training domains.

        features (N, D): before the classifier, in evaluation mode. Give all models the same rows, and equally many of
        each class in each domain, as from `laws.equal_cells`: fewer samples look less stable. Raises as `variation`
        and `informativeness`; cells with too few samples are left out without a warning.
        """
        cells = cells_of(labels, domains, self.min_count)
        v, i = _by_feature(features, cells, self.scaling, self.grid, variation_of, informativeness_of)
        chosen = i >= self.delta
        return Stability(v, i, int(chosen.sum()), float(v[chosen].mean()), float(i[chosen].mean()))

    def choose(self, accuracy: Values, measured: Sequence[Stability]) -> Choice:
        """The choice among models with these accuracies (M,), see `select`."""
        return select(accuracy, [found.mean_variation for found in measured], self.window, self.r0)
