"""ZODE: one out-of-distribution test from the scores of several models, at a chosen share of accepted ID inputs.

Source: Xue et al., "Enhancing the Power of OOD Detection via Sample-Aware Model Selection", CVPR 2024, eqs. 3 and 6
and algorithm 1. Scores of n held-out in-distribution (ID) inputs turn the score of model j of m into a p-value, the
share of them that look at least as odd, and the step-up rule of Benjamini and Hochberg (JRSS B 1995) combines them:

    p_j(x) = (1 + #{i : score_j(x_i) >= score_j(x)}) / (n + 1)       or, as in the paper, #{...} / n
    k = max{ j : p_(j) <= j alpha / m };   none: x is ID; else x is OOD and the models holding p_(1..k) are selected
    q(x) = min_j m p_(j) / j,   so that the rule is q <= alpha     (Simes, Biometrika 1986)

Scores are higher = more OOD, as everywhere in this library, so q is higher = more ID; the paper turns scores round.
The first form of p is exactly valid for exchangeable ID inputs and never 0. alpha is one minus the accepted share.
Limits: m = 1 flags scores above a quantile of the calibration scores; m equal models decide as one. For independent
models alpha is kept exactly, for positively dependent ones at most alpha is lost; for any dependence at most
alpha (1 + 1/2 + ... + 1/m), which `dependence="any"` divides out (Benjamini and Yekutieli, Annals of Statistics 2001).
"""

from typing import Literal, Self, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from weathered.core.roles import Part
from weathered.scores.base import learnt

Dependence = Literal["positive", "any"]
Orientation = Literal["ood", "id"]


def conformal_p_values(
    calibration: Float[Tensor, "n m"], scores: Float[Tensor, "N m"], conformal: bool = True
) -> Float[Tensor, "N m"]:
    """Share of held-out ID scores that are at least as high, model by model; equal scores count as at least as high.

    calibration (n, m), scores (N, m): higher = more out-of-distribution, no NaN. conformal: count x itself too, which
    makes P(p <= t) <= t exact for exchangeable inputs; else the plain share, which may be 0 (eq. 3 of the paper).
    Returns (N, m) float64 in (0, 1], or [0, 1]. Raises ValueError if shapes do not fit or a score is NaN.
    """
    check_scores("calibration", calibration, None)
    check_scores("scores", scores, calibration.shape[1])
    if not len(calibration):
        raise ValueError("calibration needs at least one row, got none")
    return _counts(_sorted_columns(calibration), scores, conformal) / (len(calibration) + conformal)


def simes(p: Float[Tensor, "N m"]) -> Float[Tensor, "N"]:
    """min over j of m p_(j) / j: one p-value from m, at most alpha where Benjamini and Hochberg reject at level alpha.

    p (N, m) in [0, 1], m >= 1. Returns (N,) in [0, 1]; m equal values give that value. Raises ValueError if a value
    is outside [0, 1] or NaN. Source: Simes, Biometrika 1986.
    """
    check_scores("p", p, None)
    if p.numel() and not bool(((p >= 0) & (p <= 1)).all()):
        raise ValueError(f"p-values must be in [0, 1], got {float(p.min())} to {float(p.max())}")
    models = p.shape[1]
    return (p.double().sort(1).values * (models / _rungs(p))).amin(1)


def check_scores(name: str, values: Tensor, models: int | None) -> None:
    """Raise ValueError unless `values` are floats (N, m) without NaN, m >= 1 and equal to `models` where given."""
    if values.ndim != 2 or not values.is_floating_point() or values.shape[1] < 1:
        raise ValueError(
            f"{name} must be floats (inputs, models) with at least one model, got {tuple(values.shape)} of "
            f"{values.dtype}"
        )
    if models is not None and values.shape[1] != models:
        raise ValueError(f"{name} must have {models} columns, one for each calibrated model, got {values.shape[1]}")
    broken = torch.isnan(values).nonzero()
    if len(broken):
        raise ValueError(f"{name} must not be NaN, but model {int(broken[0, 1])} gives NaN for row {int(broken[0, 0])}")


def _rungs(values: Tensor) -> Tensor:
    return torch.arange(1, values.shape[1] + 1, dtype=torch.float64, device=values.device)


def _sorted_columns(calibration: Tensor) -> Tensor:
    """(m, n), ascending, float64."""
    return calibration.detach().double().T.contiguous().sort(1).values


def _counts(columns: Tensor, scores: Tensor, conformal: bool) -> Tensor:
    """How many of the n calibration scores are >= each score, and one more if conformal: (N, m), whole numbers."""
    rows = scores.detach().to(columns).T.contiguous()
    return (columns.shape[1] + conformal - torch.searchsorted(columns, rows, right=False)).T.double()


class ZODE(Part):
    """Combine the out-of-distribution scores of m models so that 1 - alpha of ID inputs stay accepted. CVPR 2024.

    alpha in (0, 1): share of ID inputs that may be flagged, 0.05 in the paper; not the accepted share.
    conformal: p-values that count the input itself, exactly valid; False gives the paper's.
    dependence: `positive` for models whose scores rise together or are independent; `any` divides alpha by
    1 + 1/2 + ... + 1/m and holds always. higher_is: what a higher score means, `ood` as everywhere here, or `id`.
    calibration_ (m, n): the sorted calibration scores, as higher = more OOD.
    Raises ValueError for values outside these.
    """

    def __init__(
        self,
        alpha: float = 0.05,
        conformal: bool = True,
        dependence: Dependence = "positive",
        higher_is: Orientation = "ood",
    ):
        if not 0 < alpha < 1:
            raise ValueError(f"alpha must be in (0, 1), got {alpha}")
        if dependence not in get_args(Dependence):
            raise ValueError(f"dependence must be 'positive' or 'any', got '{dependence}'")
        if higher_is not in get_args(Orientation):
            raise ValueError(f"higher_is must be 'ood' or 'id', got '{higher_is}'")
        self.alpha, self.conformal, self.dependence, self.higher_is = alpha, conformal, dependence, higher_is
        self.calibration_: Tensor | None = None

    def fit(self, scores: Float[Tensor, "n m"]) -> Self:
        """Keep the scores of n held-out ID inputs under m models; they must come from no model's training data.

        Raises ValueError if there is no model, a score is NaN, or n + 1 < m / alpha (for `any` dependence m / alpha
        times 1 + 1/2 + ... + 1/m): conformal p-values could then never reach the first rung, and the paper's would
        reach it by p = 0 alone, which ID inputs have more often than the rung allows.
        """
        check_scores("scores", scores, None)
        size, models = scores.shape
        least = models * self._penalty(models) / self.alpha
        if size + 1 < least * (1 - 1e-12):
            raise ValueError(
                f"{models} models at alpha {self.alpha} need n + 1 >= {least:.6g} calibration inputs, got n = {size}; "
                "give more inputs, fewer models or a larger alpha"
            )
        self.calibration_ = _sorted_columns(self._oriented(scores))
        return self

    def p_values(self, scores: Float[Tensor, "N m"]) -> Float[Tensor, "N m"]:
        """The p-value of each model, (N, m) float64: low = odd for that model.

        Raises ValueError before `fit`, if the number of models differs, or if a score is NaN.
        """
        calibration = learnt(self.calibration_, self)
        return self._counts(scores) / (calibration.shape[1] + self.conformal)

    def p_value(self, scores: Float[Tensor, "N m"]) -> Float[Tensor, "N"]:
        """The combined p-value q, (N,) float64 in (0, 1] (0 is possible without `conformal`): higher = more ID.

        An input is flagged where q <= alpha. Errors as in `p_values`.
        """
        return self._ladder(self._counts(scores).sort(1).values).amin(1).clamp_max(1.0)

    def score(self, scores: Float[Tensor, "N m"]) -> Float[Tensor, "N"]:
        """-log q, (N,) float64 >= 0: higher = more OOD, at most log((n + 1) / m); infinite where q is 0.

        For AUROC, or for thresholds other than alpha. Errors as in `p_values`.
        """
        return -self.p_value(scores).log()

    def predict(self, scores: Float[Tensor, "N m"]) -> Bool[Tensor, "N"]:
        """Whether each input is flagged as OOD, (N,) bool. Errors as in `p_values`."""
        return self.p_value(scores) <= self.alpha

    def selected(self, scores: Float[Tensor, "N m"]) -> Bool[Tensor, "N m"]:
        """The models that hold the k smallest p-values of a flagged input, (N, m) bool; no model for the others.

        k is the last rung reached; a p-value equal to the k-th is among them. Errors as in `p_values`.
        """
        counts = self._counts(scores)
        ranked = counts.sort(1).values
        reached = self._ladder(ranked) <= self.alpha
        highest = torch.where(reached, ranked, -1.0).amax(1, keepdim=True)
        return counts <= highest

    def state_dict(self) -> dict[str, Tensor]:
        """The calibration scores, copied; empty before `fit`."""
        return {} if self.calibration_ is None else {"calibration_": self.calibration_.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave. Raises ValueError if it holds something else."""
        if set(state) not in (set(), {"calibration_"}):
            raise ValueError(f"ZODE learns ['calibration_'], but the state holds {sorted(state)}")
        self.calibration_ = state["calibration_"].clone() if state else None

    def _oriented(self, scores: Tensor) -> Tensor:
        return scores if self.higher_is == "ood" else -scores

    def _penalty(self, models: int) -> float:
        return sum(1 / j for j in range(1, models + 1)) if self.dependence == "any" else 1.0

    def _counts(self, scores: Tensor) -> Tensor:
        calibration = learnt(self.calibration_, self)
        check_scores("scores", scores, calibration.shape[0])
        return _counts(calibration, self._oriented(scores), self.conformal)

    def _ladder(self, ranked: Tensor) -> Tensor:
        """m p_(j) / j of sorted counts, (N, m); whole numbers until one division, so that q = alpha is not missed."""
        models, size = ranked.shape[1], learnt(self.calibration_, self).shape[1]
        return ranked * models / (_rungs(ranked) * (size + self.conformal)) * self._penalty(models)
