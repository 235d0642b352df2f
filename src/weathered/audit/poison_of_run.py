"""The poison audit of a finished run: which rows and images it takes, how long it takes, what was done already."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weathered.audit.activation_clusters import Clusters, cluster_classes
from weathered.audit.backdoor_of_run import distilled_of
from weathered.audit.options import Audited, AuditOptions, audited_data, refuse_ridge_scores
from weathered.audit.pieces import Pieces, duration, seconds_of
from weathered.audit.poison import audit_poison
from weathered.audit.result import AuditResult
from weathered.audit.reversed_triggers import STEPS_OF_ROUND, Reversed, reverse_triggers
from weathered.core.errors import DataError, Incompatible
from weathered.core.predict import AtTestTime, device_of, eval_mode
from weathered.core.rng import derive_seed, generator
from weathered.data.dataset import Dataset
from weathered.scores.extract import extract

ROUNDS, BATCH = 60, 64
"""Of the search for masks."""

IMAGES = 1000
"""Clean images that the search draws from."""

AT_ONCE = 10
"""Classes whose masks are searched together."""


def poison(runs: Audited, options: AuditOptions) -> AuditResult:
    """The rows are those of training, or of a run that distilled them the synthetic images that it left.

    Raises DataError for tables, Incompatible for a model without features.
    """
    run, test = runs[0], audited_data(runs[0], options)
    refuse_ridge_scores(run)
    if not test.is_image:
        raise DataError(f"{test.name}: the poison audit needs images, but the data are {test.kind}.")
    distilled = distilled_of(run)
    rows = (
        run.splits.train if distilled is None else distilled.dataset(f"images distilled from {run.splits.train.name}")
    )
    seed, model = run.recipe.settings.seed, AtTestTime(run.run, run.model)
    classes = list(range(test.num_classes))
    groups = [classes[start : start + AT_ONCE] for start in range(0, len(classes), AT_ONCE)]
    chosen = torch.randperm(len(test), generator=generator(seed, "poison images"))[:IMAGES].sort().values
    images = test.floats(chosen).to(device_of(model))
    if options.announce is not None:
        options.announce(f"poison: {duration(_seconds(model, images, groups))}, as far as one step tells")
    total = ROUNDS * len(groups)

    def masks(number: int) -> dict[str, Tensor]:
        def watch(rounds: int, _: int) -> None:
            if options.progress is not None:
                options.progress("poison", number * ROUNDS + rounds, total)

        rng = generator(seed, "reversed triggers", number)
        with eval_mode(model):
            found = reverse_triggers(model, images, groups[number], rng, ROUNDS, BATCH, watch)
        return found._asdict()

    with Pieces.of(run, "poison", limit=options.limit, rounds=ROUNDS, batch=BATCH, images=IMAGES) as pieces:
        clusters = _clusters(pieces.get("clusters", lambda: _cluster_piece(run.model, rows, seed)))
        parts = [pieces.get(f"masks.{number}", lambda number=number: masks(number)) for number in range(len(groups))]
        found = Reversed(*(torch.cat([part[name] for part in parts]) for name in Reversed._fields))
        return audit_poison(rows, found, clusters)


def _cluster_piece(model: nn.Module, rows: Dataset, seed: int) -> dict[str, Tensor]:
    features = extract(model, rows).features
    if features is None:
        raise Incompatible(
            f"{rows.name}: the model offers no features, so its training rows cannot be clustered. Use cnn_small, "
            "resnet, mlp or a timm model."
        )
    found = cluster_classes(
        features.cpu().numpy(), rows.labels.numpy(), rows.num_classes, derive_seed(seed, "clusters") % 2**32
    )
    return {name: torch.from_numpy(values) for name, values in found._asdict().items()}


def _clusters(piece: dict[str, Tensor]) -> Clusters:
    return Clusters(*(piece[name].numpy() for name in Clusters._fields))


def _seconds(model: nn.Module, images: Tensor, groups: list[list[int]]) -> float:
    """How long the search takes, from one step for the first classes measured now."""
    rng = torch.Generator().manual_seed(0)
    with eval_mode(model):
        x = images[torch.randint(len(images), (min(BATCH, len(images)) * len(groups[0]),), generator=rng)]

        def step() -> None:
            asked = x.clone().requires_grad_()
            torch.autograd.grad(model(asked).sum(), asked)

        return seconds_of(step) * STEPS_OF_ROUND * ROUNDS * len(groups)
