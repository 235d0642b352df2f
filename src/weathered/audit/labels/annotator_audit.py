"""How far each annotator can be trusted, where the data carry a column of labels for each."""

from collections.abc import Sequence
from pathlib import Path
from shlex import quote

import torch
from torch import Tensor

from weathered.audit.labels.annotators import annotator_quality, dawid_skene, krippendorff_alpha
from weathered.audit.labels.findings import Findings
from weathered.audit.result import Table
from weathered.core.errors import DataError, SpecError
from weathered.core.rng import generator
from weathered.data.dataset import Dataset
from weathered.data.sources.load import label_columns
from weathered.data.sources.tables import TableInputs
from weathered.recipe import DataOptions
from weathered.stats import Estimate, proportion_interval


def annotator_labels(data: DataOptions, train: Dataset, columns: Sequence[str]) -> Tensor:
    """The labels (N, M) that each of M annotators gave the training rows.

    columns: at least two label columns of the training source. Raises SpecError for fewer, and DataError for columns
    that are not there, hold other classes, or were features.
    """
    if len(columns) < 2 or len(set(columns)) < len(columns):
        raise SpecError(f"annotators need two different columns or more, got {', '.join(columns)}.")
    if isinstance(train.inputs, TableInputs) and (read := [c for c in columns if c in train.inputs.columns]):
        without = " ".join(f"--not-features {quote(column)}" for column in read)
        raise DataError(
            f"{data.train}: the run read {', '.join(read)} as features, which gives the labels away; train it again "
            f"with {without}."
        )
    root = None if data.root is None else Path(data.root)
    return label_columns(data.train, columns, train.class_names, root=root, not_features=data.not_features)[
        train.rows_in_source
    ]


def annotator_findings(given: Tensor, train: Dataset, columns: Sequence[str], seed: int) -> Findings:
    """Agreement beyond chance, and for each annotator agreement with the others and estimated accuracy.

    given (N, M): see `annotator_labels`. columns: M names.
    """
    fitted = dawid_skene(given, train.num_classes)
    consensus = fitted.consensus.labels
    alpha = krippendorff_alpha(given, train.num_classes, generator(seed, "annotators"))
    truth = None if train.clean_labels is None else train.clean_labels.numpy()
    rows = []
    quality = annotator_quality(given, consensus, train.num_classes)
    for number, column in enumerate(columns):
        known = () if truth is None else (float((given[:, number].numpy() == truth).mean()),)
        estimates = (quality[number].agreement, fitted.quality[number])
        rows.append((column, quality[number].labelled, *(v for e in estimates for v in _three(e)), *known))
    headings = ("annotator", "n", "agrees with another", "low", "high", "estimated accuracy", "low ", "high ")
    known_heading = () if truth is None else ("true accuracy",)
    disputed = int((given != given[:, :1]).any(1).sum())
    differs = int((torch.from_numpy(consensus) != train.labels).sum())
    return Findings(
        summary={
            "agreement of annotators": alpha,
            "rows with disagreement": proportion_interval(disputed, len(given)),
            "labels against the consensus": proportion_interval(differs, len(given)),
        },
        higher_is_better={
            "agreement of annotators": True,
            "rows with disagreement": False,
            "labels against the consensus": False,
        },
        tables=(Table("Annotators", (*headings, *known_heading), tuple(rows)),),
        notes=(
            "Agreement of annotators is Krippendorff's alpha: 1 is perfect, 0 what chance gives. Estimated accuracy "
            "and consensus come from the model of Dawid and Skene (1979); errors that annotators share are not seen.",
        ),
    )


def _three(estimate: Estimate | None) -> tuple[float | str, float | str, float | str]:
    return ("", "", "") if estimate is None else (estimate.value, estimate.low, estimate.high)
