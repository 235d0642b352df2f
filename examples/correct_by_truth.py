"""Corrections by a reviewer who is always right: the most suspected labels of a run, or as many random ones.

For experiments on data whose truth is known, in place of `weathered review RUN --export FILE`:

    python examples/correct_by_truth.py runs/RUN --share 0.1 --output top.csv
    python examples/correct_by_truth.py runs/RUN --share 0.1 --random 0 --output random.csv

Each file holds what the reviewer would have changed among the labels that were looked at; both look at equally many.
"""

import argparse
import csv
from pathlib import Path

import numpy as np

from weathered.audit.labels.audited_labels import read_audited_labels
from weathered.core.rng import generator
from weathered.loaded_run import load_run


def corrections(run: Path, share: float, random: int | None = None) -> tuple[list[tuple[int, str, str]], int]:
    """(row, old, new) of the wrong labels among those looked at, and how many were looked at.

    share in (0, 1]: of all training labels, the most suspicious first, or drawn from seed `random`.
    """
    import torch

    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    audited, train = read_audited_labels(run), load_run(run).splits.train
    if train.clean_labels is None:
        raise ValueError(f"{run}: the truth is not known; name it by --clean-column when you train")
    count = round(share * len(audited))
    order = (
        np.argsort(audited.rank) if random is None else torch.randperm(len(train), generator=generator(random)).numpy()
    )
    looked_at = np.sort(order[:count])
    truth, names = train.clean_labels.numpy(), train.class_names
    # where no class is right there is nothing to correct to
    wrong = looked_at[(truth[looked_at] != audited.label[looked_at]) & (truth[looked_at] >= 0)]
    return [(int(audited.source_row[i]), names[audited.label[i]], names[truth[i]]) for i in wrong.tolist()], count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--random", type=int, default=None, help="seed of random labels instead of the most suspected")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    rows, count = corrections(given.run, given.share, given.random)
    with given.output.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("row", "old", "new"), *rows])
    print(f"{count} labels looked at, {len(rows)} of them wrong: {given.output}")


if __name__ == "__main__":
    main()
