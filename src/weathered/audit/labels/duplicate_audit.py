"""Duplicates among the training rows, and duplicates under different labels, without any model."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from weathered.audit.labels.duplicates import near_duplicates
from weathered.audit.labels.findings import Findings
from weathered.audit.result import Table
from weathered.core.watch import Progress
from weathered.data.dataset import Dataset
from weathered.stats import proportion_interval

SIDE = 16
"""Images are compared at this size at the most: copies that were resized or saved again stay alike."""

ALIKE = 0.99
"""Cosine similarity, of pixels without their mean, from which on two inputs are near duplicates."""

FLAT = 1e-5
"""Below this distance from the mean everywhere an input is of one value; rounding is smaller."""

MOST_ROWS = 100_000
"""The work grows with the square of the rows; above this many near duplicates are not looked for."""

SHOWN = 20
BLOCK = 4096


def duplicate_findings(train: Dataset, progress: Progress | None = None) -> Findings:
    """Shares of rows with a near duplicate, and of those whose duplicate has another label, with the closest pairs."""
    if len(train) > MOST_ROWS:
        return Findings(
            notes=(f"Duplicates were not looked for: {len(train)} rows are more than {MOST_ROWS}, and the work grows "
                   "with their square. `weathered.audit.labels.near_duplicates` takes any number.",)
        )  # fmt: skip
    found = near_duplicates(comparable(train, progress), train.labels, ALIKE)
    groups, n = found.duplicates, len(train)
    conflicts = np.flatnonzero(found.partner >= 0)
    order = conflicts[np.argsort(-found.similarity[conflicts], kind="stable")]
    names, labels, source = train.class_names, train.labels.numpy(), train.rows_in_source.numpy()
    rows, seen = [], set()
    for row in order.tolist():
        other = int(found.partner[row])
        pair = (min(row, other), max(row, other))
        if pair not in seen and len(rows) < SHOWN:
            seen.add(pair)
            rows.append(
                (int(source[row]), names[labels[row]], int(source[other]), names[labels[other]],
                 float(found.similarity[row]))
            )  # fmt: skip
    tables = ()
    if rows:
        columns = ("row", "its label", "other row", "the other's label", "similarity")
        tables = (Table("Most similar pairs under different labels", columns, tuple(rows)),)
    return Findings(
        summary={
            "near duplicates": proportion_interval(int((groups.size > 1).sum()), n),
            "duplicates under another label": proportion_interval(int(groups.conflict.sum()), n),
        },
        higher_is_better={"near duplicates": False, "duplicates under another label": False},
        tables=tables,
        notes=(
            f"Near duplicates are inputs whose {'columns' if 'table' in train.facts else 'pixels'}, less their mean, "
            f"have a cosine similarity of {ALIKE} or more; they are joined into groups. Of two labels of one input at "
            "least one is wrong, or it shows both classes. Very simple inputs, such as small drawings, may be alike "
            "without being copies.",
        ),
    )


def comparable(train: Dataset, progress: Progress | None = None) -> Tensor:
    """Rows (N, D) float32 in which copies are alike: small images without their mean, or standardised columns.

    An image of one value has no direction of its own; it is given one by that value.
    """
    parts, means = [], []
    pictures = "table" not in train.facts
    for index in torch.arange(len(train)).split(BLOCK):
        x = train.floats(index)
        # frames as channels of one image
        x = x.flatten(1, 2) if train.is_clip else x
        if pictures:
            x = adaptive_avg_pool2d(x, (min(SIDE, x.shape[-2]), min(SIDE, x.shape[-1]))).flatten(1)
            means.append(x.mean(1))
            x = x - means[-1][:, None]
        parts.append(x)
        if progress is not None:
            progress("reading inputs", int(index[-1]) + 1, len(train))
    rows = torch.cat(parts)
    if pictures:
        return _with_direction(rows, torch.cat(means))
    spread = rows.std(0)
    return _with_direction(
        (rows - rows.mean(0)) / torch.where(spread > 0, spread, torch.ones_like(spread)), torch.zeros(len(rows))
    )


def _with_direction(rows: Tensor, values: Tensor) -> Tensor:
    """Two more columns: zero, but for rows (N, D) without spread a direction that turns with their value in [0, 1]."""
    flat = rows.abs().amax(1) < FLAT
    angle = values * (torch.pi / 2)
    direction = torch.stack([angle.cos(), angle.sin()], 1) * flat[:, None]
    return torch.cat([rows.masked_fill(flat[:, None], 0.0), direction], 1)
