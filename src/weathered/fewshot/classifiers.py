"""Classifiers of one episode's few rows: logistic regression, support vectors, nearest centroid, a fine-tuned head.

Each takes rows (E, R, D) with labels (R,), the same for all E episodes, and queries (E, B, D), and gives labels (E, B).
Weights (R,) multiply the loss of rows, or their share in a centroid; features are used as they are.
Limit cases: with one row of a class its centroid is that row; without gradient steps the head knows nothing and answers
class 0.
Sources: multinomial logistic regression and the linear support vector machine are scikit-learn's; nearest centroid:
Snell et al., Prototypical Networks, NeurIPS 2017, on features that stand still; the head: the "Baseline" of Chen et
al., A Closer Look at Few-shot Classification, ICLR 2019, whose SGD settings are the defaults, from weights of zero.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from weathered.core.rng import generator
from weathered.fewshot.episodes import FewShotMethod, pooled

Rows = Float[Tensor, "E R D"]
Labels = Int[Tensor, "R"]
Queries = Float[Tensor, "E B D"]
Weights = Float[Tensor, "R"] | None
Classifier = Callable[[Rows, Labels, Queries, Weights], Int[Tensor, "E B"]]


def logistic_regression(rows: Rows, labels: Labels, queries: Queries, weights: Weights = None) -> Int[Tensor, "E B"]:
    """Multinomial logistic regression with L2 penalty, C = 1, fitted by lbfgs in at most 1000 iterations."""
    return _with_scikit_learn(lambda: LogisticRegression(C=1.0, max_iter=1000), rows, labels, queries, weights)


def support_vectors(rows: Rows, labels: Labels, queries: Queries, weights: Weights = None) -> Int[Tensor, "E B"]:
    """Linear support vector machine, one class against the rest, C = 10."""
    return _with_scikit_learn(lambda: LinearSVC(C=10.0, random_state=0), rows, labels, queries, weights)


def nearest_centroid(rows: Rows, labels: Labels, queries: Queries, weights: Weights = None) -> Int[Tensor, "E B"]:
    """The class whose mean row is nearest in Euclidean distance."""
    check_rows(rows, labels, queries, weights)
    share = one_hot(labels).to(rows)
    share = share if weights is None else share * weights.to(rows)[:, None]
    centroids = (share / share.sum(0)).T @ rows
    return torch.cdist(queries, centroids).argmin(2)


def linear_head(
    rows: Rows,
    labels: Labels,
    queries: Queries,
    numbers: Sequence[int],
    seed: int = 0,
    learning_rate: float = 0.01,
    epochs: int = 100,
    batch_size: int = 4,
) -> Int[Tensor, "E B"]:
    """A linear classifier fine-tuned by SGD from zero, all episodes at once; momentum and dampening 0.9, decay 0.001.

    numbers: one for each episode; they and `seed` key the order of rows. Raises ValueError if learning_rate <= 0,
    epochs < 0 or batch_size < 1, or rows and labels do not fit.
    """
    check_rows(rows, labels, queries, None)
    if not learning_rate > 0 or epochs < 0 or batch_size < 1:
        raise ValueError(
            "expected learning_rate > 0, epochs >= 0 and batch_size >= 1, "
            f"got {learning_rate}, {epochs} and {batch_size}"
        )
    keys = [torch.rand(epochs, len(labels), generator=generator(seed, "linear head", n)) for n in numbers]
    orders = torch.stack(keys).argsort(2)
    W = rows.new_zeros(len(rows), rows.shape[2], int(labels.max()) + 1).requires_grad_()
    b = rows.new_zeros(len(rows), 1, W.shape[2]).requires_grad_()
    optimizer = torch.optim.SGD([W, b], learning_rate, momentum=0.9, dampening=0.9, weight_decay=1e-3)
    episode = torch.arange(len(rows))[:, None]
    with torch.enable_grad():
        for order in orders.unbind(1):
            for batch in order.split(batch_size, 1):
                optimizer.zero_grad()
                logits = rows[episode, batch] @ W + b
                losses = cross_entropy(logits.flatten(0, 1), labels[batch].flatten(), reduction="none")
                losses.view(len(rows), -1).mean(1).sum().backward()
                optimizer.step()
    return (queries @ W + b).argmax(2)


def on_support(classify: Classifier) -> FewShotMethod:
    """The few-shot method that fits a classifier to the pooled support alone."""

    def method(support: Tensor, queries: Tensor, numbers: Sequence[int]) -> Tensor:
        return classify(*support_rows(support), queries, None)

    return method


def head_on_support(seed: int = 0) -> FewShotMethod:
    """The few-shot method that fine-tunes a linear head on the pooled support."""

    def method(support: Tensor, queries: Tensor, numbers: Sequence[int]) -> Tensor:
        return linear_head(*support_rows(support), queries, numbers, seed)

    return method


LOGISTIC = "logistic regression"
"""The baseline that differences are taken to."""


def baselines(seed: int = 0) -> dict[str, FewShotMethod]:
    """What every few-shot method is compared with, by name."""
    return {
        LOGISTIC: on_support(logistic_regression),
        "nearest centroid": on_support(nearest_centroid),
        "linear head": head_on_support(seed),
    }


def support_rows(support: Float[Tensor, "E N K *F"]) -> tuple[Rows, Labels]:
    """Pooled rows (E, N K, D) class by class, and their labels."""
    rows = pooled(support, 3)
    return rows.flatten(1, 2), torch.arange(rows.shape[1]).repeat_interleave(rows.shape[2])


def check_rows(rows: Tensor, labels: Tensor, queries: Tensor, weights: Tensor | None) -> None:
    """Raise ValueError unless shapes fit, values are finite, every class has a row and weights are positive."""
    if rows.ndim != 3 or queries.ndim != 3 or rows.shape[::2] != queries.shape[::2]:
        raise ValueError(
            f"expected rows (E, R, D) and queries (E, B, D), got {tuple(rows.shape)} and {tuple(queries.shape)}"
        )
    if labels.shape != rows.shape[1:2] or labels.is_floating_point() or not len(labels):
        raise ValueError(f"labels must be {rows.shape[1]} integers, got {tuple(labels.shape)} of {labels.dtype}")
    counts = labels.bincount() if int(labels.min()) >= 0 else labels.new_zeros(1)
    if len(counts) < 2 or not bool((counts > 0).all()):
        raise ValueError(
            f"every class from 0 on needs support, at least two of them, got labels {labels.unique().tolist()}"
        )
    if not bool(torch.isfinite(rows).all()) or not bool(torch.isfinite(queries).all()):
        raise ValueError("features must be finite, got NaN or infinity")
    if weights is not None and (weights.shape != labels.shape or not bool((weights > 0).all())):
        raise ValueError(f"weights must be {len(labels)} numbers > 0, got shape {tuple(weights.shape)}")


def _with_scikit_learn(
    make: Callable[[], Any], rows: Tensor, labels: Tensor, queries: Tensor, weights: Tensor | None
) -> Tensor:
    check_rows(rows, labels, queries, weights)
    y, w = labels.numpy(), None if weights is None else weights.numpy()
    pairs = zip(rows.detach().cpu().numpy(), queries.cpu().numpy(), strict=True)
    with warnings.catch_warnings():
        # the number of iterations is part of the method
        warnings.simplefilter("ignore", ConvergenceWarning)
        return torch.stack([torch.as_tensor(make().fit(x, y, sample_weight=w).predict(query)) for x, query in pairs])
