"""A recipe with an incremental learner: train on the base classes, freeze, then learn the other classes in phases."""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from weathered.audit.result import AuditResult, Chart, Series, Table
from weathered.core.errors import Incompatible, SpecError
from weathered.core.predict import device_of, eval_mode
from weathered.core.rng import derive_seed
from weathered.data.dataset import Dataset
from weathered.data.prepare import Splits
from weathered.incremental.acil import ACIL, random_expansion
from weathered.incremental.protocol import IncrementalResult, class_phases, run_incremental
from weathered.recipe import Recipe
from weathered.stats import Estimate


class AnalyticClassifier(nn.Module):
    """A frozen network whose head is the learner's: random expansion, then ridge weights; scores (B, C).

    Classes never seen score minus 1e9, so that they never win and the logits stay finite.
    """

    def __init__(self, network: nn.Module, learner: ACIL | None, width: int, expansion: int, num_classes: int):
        super().__init__()
        self.network = network.requires_grad_(False)
        self.expansion = nn.Parameter(torch.zeros(width, expansion, dtype=torch.float64), requires_grad=False)
        self.weight = nn.Parameter(torch.zeros(expansion, num_classes, dtype=torch.float64), requires_grad=False)
        self.register_buffer("seen", torch.ones(num_classes, dtype=torch.bool))
        if learner is not None:
            self.expansion.data.copy_(learner.V_)
            self.weight.data.copy_(learner.W_)
            self.get_buffer("seen").copy_(learner.class_counts_ > 0)

    def forward_features(self, x: Tensor) -> Tensor:
        return cast(Any, self.network).forward_features(x)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = cast(Any, self.network).forward_head(features, pre_logits=True)
        if pre_logits:
            return pooled
        scores = random_expansion(pooled, self.expansion) @ self.weight
        return scores.masked_fill(~self.get_buffer("seen"), -1e9).float()

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def phases_of(recipe: Recipe, num_classes: int) -> tuple[tuple[int, ...], ...]:
    """The recipe's groups of classes, in a random order drawn from the data seed."""
    base = recipe.data.base_classes or max(2, num_classes // 2)
    phases = recipe.data.phases or num_classes - base
    try:
        groups = class_phases(num_classes, base, phases, seed=derive_seed(recipe.data_seed, "class order") % 2**31)
    except ValueError as error:
        raise SpecError(f"base_classes and phases: {error}.") from error
    return tuple(tuple(group) for group in groups)


def base_split(splits: Splits, groups: tuple[tuple[int, ...], ...]) -> Splits:
    """The training rows of the base classes; labels keep their numbers, the test set is left whole."""
    rows = torch.isin(splits.train.labels, torch.tensor(groups[0]))
    return splits._replace(train=splits.train.select(rows, note=f"Base phase: {len(groups[0])} classes."))


def pooled_features(model: nn.Module, dataset: Dataset, batch_size: int = 1024) -> Tensor:
    """Features (N, b) of the frozen network, in evaluation mode."""
    if not hasattr(model, "forward_features"):
        raise Incompatible("an incremental learner needs 'features', but the model has no forward_features.")
    network, chunks, device = cast(Any, model), [], device_of(model)
    with eval_mode(model), torch.no_grad():
        for rows in torch.arange(len(dataset)).split(batch_size):
            x = dataset.floats(rows).to(device)
            chunks.append(network.forward_head(network.forward_features(x), pre_logits=True).float().cpu())
    return torch.cat(chunks)


def learn_phases(
    learner: ACIL, model: nn.Module, splits: Splits, test_labels: Tensor, groups: tuple[tuple[int, ...], ...]
) -> tuple[AnalyticClassifier, IncrementalResult]:
    """Run the class-incremental protocol on the network's features; the classifier with all classes, and the record."""
    train, test = pooled_features(model, splits.train), pooled_features(model, splits.test)
    result = run_incremental(learner, groups, (train, splits.train.labels), (test, test_labels))
    width, expansion = learner.V_.shape
    classifier = AnalyticClassifier(model, learner, width, expansion, splits.train.num_classes)
    return classifier.to(device_of(model)), result


def incremental_audit(result: IncrementalResult, class_names: tuple[str, ...]) -> AuditResult:
    """The protocol's record: accuracy on all classes seen so far after each phase, their average, and the last."""
    seen = [sum(len(group) for group in result.phases[: i + 1]) for i in range(len(result.phases))]
    rows = [
        (i, ", ".join(class_names[c] for c in group), count, e.value, e.low, e.high, e.n)
        for i, (group, count, e) in enumerate(zip(result.phases, seen, result.accuracies, strict=True))
    ]
    values = [e.value for e in result.accuracies]
    # phases share their test rows and get harder one by one: an interval over them would mean nothing
    average = Estimate(result.average, -math.inf, math.inf, len(values))
    curve = Series("accuracy", seen, values, [e.low for e in result.accuracies], [e.high for e in result.accuracies])
    return AuditResult(
        "incremental",
        {"last accuracy": result.accuracies[-1], "average accuracy over phases": average},
        {"last accuracy": True, "average accuracy over phases": True},
        tables=(
            Table(
                "Accuracy by phase",
                ("phase", "new classes", "classes seen", "accuracy", "low", "high", "n"),
                tuple(rows),
            ),
        ),
        figures=(
            Chart(
                "Accuracy on all classes seen so far",
                "line",
                "classes seen",
                "accuracy",
                (curve,),
                f"Accuracy goes from {values[0]:.3f} after the base phase to {values[-1]:.3f} after the last.",
            ),
        ),
        notes=(
            "The classifier equals one ridge regression on all data seen, given the backbone frozen after the base "
            "phase; it does not equal training the backbone on everything.",
        ),
    )
