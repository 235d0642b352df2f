"""How well a score finds wrong labels where the right ones are known: precision and recall, with 95 % intervals.

Finding a label is right when it differs from the clean one. The score is lower = more suspicious.
"""

import numpy as np
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve

from weathered.audit.ood_metrics import auroc
from weathered.audit.result import Chart, Series
from weathered.stats import Estimate, proportion_interval

CURVE_POINTS = 200


def average_precision(score: np.ndarray, wrong: np.ndarray) -> Estimate:
    """Mean of the precision over the wrong labels, each at its own place in the ranking; n is their number.

    score (N,): lower = more suspicious; ties are ranked together. wrong (N,): bool, with at least one True. A random
    ranking scores the share of wrong labels. The interval treats it as a share of the n wrong labels, as Boyd, Eng and
    Page (ECML PKDD 2013) found to cover well, in Wilson's form, which stays inside [0, 1]. Raises ValueError if no
    label is wrong.
    """
    positives = int(wrong.sum())
    if not positives:
        raise ValueError("average precision needs at least one wrong label")
    value = float(average_precision_score(wrong, _suspicion(score)))
    return proportion_interval(min(value, 1.0) * positives, positives)


def area_under_roc(score: np.ndarray, wrong: np.ndarray) -> Estimate:
    """Probability that a wrong label scores lower than a right one, ties counting half; interval as in `auroc`."""
    suspicion = torch.from_numpy(_suspicion(score))
    return auroc(suspicion[torch.from_numpy(~wrong)], suspicion[torch.from_numpy(wrong)])


def precision_and_recall(found: np.ndarray, wrong: np.ndarray) -> tuple[Estimate | None, Estimate]:
    """Share of the found labels (N,) bool that are wrong, None if none was found; share of the wrong that was found."""
    hits, named = int((found & wrong).sum()), int(found.sum())
    return proportion_interval(hits, named) if named else None, proportion_interval(hits, int(wrong.sum()))


def precision_recall_chart(score: np.ndarray, wrong: np.ndarray) -> Chart:
    """Precision over recall as the list of most suspicious labels grows, thinned to `CURVE_POINTS` points."""
    precision, recall, _ = precision_recall_curve(wrong, _suspicion(score))
    # from the shortest list on; the first point of scikit-learn's curve is no list at all
    precision, recall = precision[-2::-1], recall[-2::-1]
    places = np.searchsorted(recall, np.linspace(recall[0], 1, CURVE_POINTS))
    places = np.unique(np.minimum(places, len(recall) - 1))
    half = int(np.searchsorted(recall, 0.5))
    return Chart(
        title="Precision and recall of the ranking",
        kind="line",
        x_label="share of the wrong labels found",
        y_label="share of wrong labels among those looked at",
        series=(Series("ranking", recall[places].tolist(), precision[places].tolist()),),
        description="The further the list of most suspicious labels is followed, the more of the wrong labels it holds "
        f"(to the right). When it holds half of them, {precision[half]:.0%} of the labels looked at are wrong; in "
        f"random order it would be {wrong.mean():.0%}.",
    )


def _suspicion(score: np.ndarray) -> np.ndarray:
    return -np.asarray(score, dtype=np.float64)
