"""Shift: whether new data are drawn like the training data, by how much they differ, and what that costs.

Two tests for each new set, and sizes of effect that do not grow with the number of samples:
    inputs       a random forest learns on half of the rows to tell new rows from training rows; on the other half the
                 AUROC of its score is the size of the effect, 0.5 for no difference, and Mann-Whitney's test is exact
                 about it (Lopez-Paz and Oquab, Revisiting Classifier Two-Sample Tests, ICLR 2017)
    predictions  Kolmogorov-Smirnov distances between the probabilities of each class on new rows and on test rows that
                 the model was not trained on, Bonferroni over classes (Rabanser et al., Failing Loudly, NeurIPS 2019)
p-values are Holm's over all tests of an audit. Where new labels are missing, accuracy is estimated by the share of new
rows whose confidence passes the threshold that the share of right answers passes on test rows (average thresholded
confidence, Garg et al., ICLR 2022).
Limits: new rows that are the training rows have AUROC about 0.5; any finite sample can miss a small shift.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor
from torch.nn import functional as F

from weathered.audit.ood_metrics import auroc
from weathered.audit.result import AuditResult, Chart, Series, Table, quoted
from weathered.core.rng import derive_seed, generator
from weathered.stats import Estimate, difference_of_proportions, proportion_interval

MOST = 2000
"""Rows of each side that the forest sees; a shift worth acting on shows in fewer."""

COMPONENTS, SIDE, TREES = 32, 16, 100
"""Principal components, the side to which images are shrunk before, and trees of the forest."""

LEVEL = 0.05


@dataclass(frozen=True)
class NewSet:
    """New rows: inputs (M, ...), logits (M, C), and labels (M,) where they are known."""

    inputs: Tensor
    logits: Float[Tensor, "M C"]
    labels: Int[Tensor, "M"] | None = None


class Findings(NamedTuple):
    """separability: AUROC of the forest. distance: the largest Kolmogorov-Smirnov distance, of class `moved`. inputs_p,
    predictions_p: of their tests, the latter over all classes. variation: between shares of predicted classes, in [0,
    1]. accuracy: measured, or None. expected: what confidence promises.
    """

    separability: Estimate
    inputs_p: float
    distance: Estimate
    moved: int
    predictions_p: float
    variation: float
    accuracy: Estimate | None
    expected: float


def describe_inputs(reference: Tensor, new: Tensor, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """What the forest sees of rows: columns of tables; of images brightness, contrast and roughness of each channel,
    and principal components of small copies. (N, D), (M, D).
    """
    both = torch.cat([reference, new]).float()
    flat = both.flatten(1)
    columns = []
    if both.ndim == 4:
        columns = [both.mean((2, 3)), both.std((2, 3)), *(both.diff(dim=axis).abs().mean((2, 3)) for axis in (2, 3))]
        if max(both.shape[2:]) > SIDE:
            flat = F.adaptive_avg_pool2d(both, SIDE).flatten(1)
    if flat.shape[1] > COMPONENTS:
        size = min(COMPONENTS, len(flat))
        flat = torch.from_numpy(PCA(size, svd_solver="randomized", random_state=seed).fit_transform(flat.numpy()))
    table = torch.cat([*columns, flat], 1).numpy()
    return table[: len(reference)], table[len(reference) :]


def separate(reference: np.ndarray, new: np.ndarray, seed: int, trees: int = TREES) -> tuple[Estimate, float]:
    """(AUROC on unseen rows, one-sided p-value) of a forest that learns to tell new rows (M, D) from others (N, D).

    Half of the rows of each side train the forest, the others test it. Raises ValueError for fewer than 4 rows a side.
    """
    if min(len(reference), len(new)) < 4:
        raise ValueError(f"a test for shift needs at least 4 rows on each side, got {len(reference)} and {len(new)}")
    rng = generator(seed, "shift halves")
    halves = []
    for rows in (reference, new):
        order = torch.randperm(len(rows), generator=rng).numpy()
        halves.append((rows[order[: len(rows) // 2]], rows[order[len(rows) // 2 :]]))
    (seen, held), (seen_new, held_new) = halves
    forest = RandomForestClassifier(
        trees, min_samples_leaf=5, class_weight="balanced", random_state=derive_seed(seed, "shift forest") % 2**32
    )
    forest.fit(np.concatenate([seen, seen_new]), np.repeat([0, 1], [len(seen), len(seen_new)]))
    scores = [np.asarray(forest.predict_proba(rows))[:, 1] for rows in (held, held_new)]
    p = float(stats.mannwhitneyu(scores[1], scores[0], alternative="greater").pvalue)
    return auroc(torch.from_numpy(scores[0]), torch.from_numpy(scores[1])), p


def kolmogorov_smirnov(reference: np.ndarray, new: np.ndarray) -> tuple[Estimate, int, float]:
    """(largest distance over columns, its column, Bonferroni's p-value) of columns (N, C) and (M, C).

    The interval adds the widths of Dvoretzky, Kiefer and Wolfowitz's bands of both sides, and is wide.
    """
    tests = [cast(Any, stats.ks_2samp)(a, b, method="asymp") for a, b in zip(reference.T, new.T, strict=True)]
    moved = int(np.argmax([test.statistic for test in tests]))
    value = float(tests[moved].statistic)
    slack = sum(np.sqrt(np.log(4 / LEVEL) / (2 * n)) for n in (len(reference), len(new)))
    p = min(1.0, len(tests) * float(min(test.pvalue for test in tests)))
    return Estimate(value, max(0.0, value - slack), min(1.0, value + slack), len(reference) + len(new)), moved, p


def expected_accuracy(confidence: np.ndarray, correct: np.ndarray, new: np.ndarray) -> float:
    """Share of new rows (M,) whose confidence passes the threshold that as many test rows (N,) pass as are correct."""
    right = int(correct.sum())
    if not right:
        return 0.0
    return float((new >= np.sort(confidence)[len(confidence) - right]).mean())


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm, Scandinavian Journal of Statistics 1979)."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[int(i)] = largest
    return adjusted


def find_shift(train: Tensor, test: NewSet, new: NewSet, seed: int) -> Findings:
    """What is found of one new set. train: inputs (N, ...) that the model was trained on. test: rows it never met."""
    assert test.labels is not None
    probability, of_new = (side.logits.double().softmax(1).numpy() for side in (test, new))
    correct = probability.argmax(1) == test.labels.numpy()
    separability, inputs_p = separate(*describe_inputs(train, new.inputs, seed), seed)
    distance, moved, predictions_p = kolmogorov_smirnov(probability, of_new)
    shares = [np.bincount(p.argmax(1), minlength=p.shape[1]) / len(p) for p in (probability, of_new)]
    accuracy = None
    if new.labels is not None:
        accuracy = proportion_interval(float((of_new.argmax(1) == new.labels.numpy()).sum()), len(of_new))
    return Findings(
        separability, inputs_p, distance, moved, predictions_p, float(np.abs(shares[0] - shares[1]).sum() / 2),
        accuracy, expected_accuracy(probability.max(1), correct, of_new.max(1)),
    )  # fmt: skip


def audit_shift(
    found: Mapping[str, Findings], test_accuracy: Estimate, class_names: Sequence[str], notes: Sequence[str] = ()
) -> AuditResult:
    """The audit of new sets by name. test_accuracy: on the run's own test set. Raises ValueError without a set."""
    if not found:
        raise ValueError("a shift audit needs at least one new set")
    names = list(found)
    adjusted = holm([p for one in found.values() for p in (one.inputs_p, one.predictions_p)])
    p_values = {name: (adjusted[2 * i], adjusted[2 * i + 1]) for i, name in enumerate(names)}
    most = max(names, key=lambda name: found[name].separability.value)
    summary = {
        "largest separability of inputs": found[most].separability,
        "largest distance of predictions": max((one.distance for one in found.values()), key=lambda e: e.value),
    }
    measured = {name: one.accuracy for name, one in found.items() if one.accuracy is not None}
    if measured:
        worst = min(measured, key=lambda name: measured[name].value)
        summary |= {
            "lowest accuracy on new data": measured[worst],
            "accuracy lost at most": difference_of_proportions(test_accuracy, measured[worst]),
        }
    return AuditResult(
        "shift",
        summary,
        {name: name == "lowest accuracy on new data" for name in summary},
        tables=(_table(found, p_values, class_names),),
        figures=(_chart(found),),
        notes=(*notes, *(_verdict(name, one, p_values[name]) for name, one in found.items()), *LIMITS),
    )


LIMITS = (
    "Separability is the AUROC of a forest that tells new rows from training rows: 0.5 is no difference, 1 is two "
    "different worlds. It says nothing of whether the difference matters to the model; distance and accuracy do.",
    "A test that finds nothing does not prove that nothing changed: small shifts hide in small samples. Expected "
    "accuracy rests on the model's confidence and is wrong where that is misled.",
)


def _verdict(name: str, one: Findings, p: tuple[float, float]) -> str:
    told = [what for what, value in zip(("inputs", "predictions"), p, strict=True) if value < LEVEL]
    if not told:
        return f"'{name}': no shift was found, neither of inputs nor of predictions."
    sizes = {
        "inputs": f"separability {one.separability.value:.3f}",
        "predictions": f"distance {one.distance.value:.3f}",
    }
    return f"'{name}': {' and '.join(told)} are shifted ({', '.join(sizes[what] for what in told)})."


def _table(
    found: Mapping[str, Findings], p_values: Mapping[str, tuple[float, float]], class_names: Sequence[str]
) -> Table:
    bounds = ("low", "high")
    tests = ("separability", *bounds, "p of inputs", "distance", *bounds, "p of predictions")
    columns = (
        "data", "n compared", *tests, "most moved class", "variation of predicted classes", "accuracy", *bounds,
        "expected accuracy",
    )  # fmt: skip
    rows = []
    for name, one in found.items():
        measured = ("-", "-", "-") if one.accuracy is None else one.accuracy[:3]
        rows.append(
            (name, one.separability.n, *one.separability[:3], p_values[name][0], *one.distance[:3], p_values[name][1],
             class_names[one.moved], one.variation, *measured, one.expected)
        )  # fmt: skip
    return Table("Shift by data set", columns, tuple(rows))


def _chart(found: Mapping[str, Findings]) -> Chart:
    values = [one.separability for one in found.values()]
    bars = Series("separability", list(found), *([getattr(e, f) for e in values] for f in ("value", "low", "high")))
    return Chart(
        "Separability from the training data", "bar", "data", "AUROC", (bars,),
        f"How well a forest tells rows of {quoted(list(found))} from training rows, with 95 % intervals; 0.5 is not at "
        "all.",
    )  # fmt: skip
