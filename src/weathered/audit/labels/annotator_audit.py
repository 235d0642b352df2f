"""How far each annotator can be trusted, where the data carry a column of labels for each."""

from collections.abc import Sequence
from shlex import quote

import numpy as np
import torch
from torch import Tensor

from weathered.audit.labels.annotators import MISSING, annotator_quality, dawid_skene, krippendorff_alpha
from weathered.audit.labels.findings import Findings
from weathered.audit.result import Table
from weathered.core.errors import DataError, SpecError
from weathered.core.rng import generator
from weathered.data.dataset import Dataset
from weathered.data.sources.rows import label_columns
from weathered.data.sources.tables import TableInputs
from weathered.recipe import DataOptions
from weathered.stats import Estimate, proportion_interval


def annotator_labels(data: DataOptions, train: Dataset, columns: Sequence[str]) -> Tensor:
    """The labels (N, M) that each of M annotators gave the training rows, -1 where one gave none.

    columns: at least two label columns of the training source, a csv or parquet file. Raises SpecError for fewer, and
    DataError for columns that are not there, hold other classes, or were features.
    """
    if len(columns) < 2 or len(set(columns)) < len(columns):
        raise SpecError(f"annotators need two different columns or more, got {', '.join(columns)}.")
    if isinstance(train.inputs, TableInputs) and (read := [c for c in columns if c in train.inputs.columns]):
        without = " ".join(f"--not-features {quote(column)}" for column in read)
        raise DataError(
            f"{data.train}: the run read {', '.join(read)} as features, which gives the labels away; train it again "
            f"with {without}."
        )
    return label_columns(data.train, columns, train.class_names)[train.rows_in_source]


def annotator_findings(given: Tensor, train: Dataset, columns: Sequence[str], seed: int) -> Findings:
    """Agreement beyond chance, and for each annotator agreement with the others and estimated accuracy.

    given (N, M): see `annotator_labels`. columns: M names. Rows without any label take no part.
    Raises DataError if no row is left.
    """
    labelled = (given != MISSING).any(1)
    if not labelled.any():
        raise DataError(f"no training row has a label in the columns {', '.join(columns)}.")
    left_out, given, train = int((~labelled).sum()), given[labelled], train.select(labelled)
    fitted = dawid_skene(given, train.num_classes)
    consensus = fitted.consensus.labels
    alpha = krippendorff_alpha(given, train.num_classes, generator(seed, "annotators"))
    truth = None if train.clean_labels is None else train.clean_labels.numpy()
    rows = []
    quality = annotator_quality(given, consensus, train.num_classes)
    for number, column in enumerate(columns):
        own = given[:, number].numpy()
        hits = () if truth is None else (own == truth)[own != MISSING]
        known = () if truth is None else (float(np.mean(hits)) if len(hits) else "",)
        estimates = (quality[number].agreement, fitted.quality[number])
        rows.append((column, quality[number].labelled, *(v for e in estimates for v in _three(e)), *known))
    headings = ("annotator", "n", "agrees with another", "low", "high", "estimated accuracy", "low ", "high ")
    known_heading = () if truth is None else ("true accuracy",)
    lowest = torch.where(given == MISSING, train.num_classes, given).amin(1)
    disputed = int((lowest != given.amax(1)).sum())
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
            *((f"Rows without a label of any annotator, left out: {left_out}.",) if left_out else ()),
        ),
    )


def _three(estimate: Estimate | None) -> tuple[float | str, float | str, float | str]:
    return ("", "", "") if estimate is None else (estimate.value, estimate.low, estimate.high)
