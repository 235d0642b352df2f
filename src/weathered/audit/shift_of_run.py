"""The shift audit of a finished run: its own test set, each of its groups, and the new data that the user names."""

import torch
from torch import Tensor

from weathered.audit.options import Audited, AuditOptions, audited_data, refuse_ridge_scores
from weathered.audit.pieces import Pieces, duration, seconds_of
from weathered.audit.result import AuditResult
from weathered.audit.shift import MOST, NewSet, audit_shift, find_shift
from weathered.core.errors import DataError
from weathered.core.rng import generator
from weathered.data.dataset import Dataset
from weathered.data.new_data import load_new
from weathered.loaded_run import LoadedRun
from weathered.stats import proportion_interval

OWN_TEST = "own test set"

FEWEST = 20
"""Rows of a group below which it is not tested."""


def shift(runs: Audited, options: AuditOptions) -> AuditResult:
    """Raises DataError for new data that do not fit the run."""
    run = runs[0]
    refuse_ridge_scores(run)
    test = audited_data(run, options)
    sets: dict[str, tuple[Dataset, bool]] = {OWN_TEST: (test, True)}
    small = []
    if test.has_groups:
        for code, name in enumerate(test.group_names):
            rows = (test.extra["group"] == code).nonzero()[:, 0]
            if len(rows) >= FEWEST:
                sets[f"test group {name}"] = (test.select(rows), True)
            elif len(rows):
                small.append(name)
    for spec in options.new:
        sets[spec] = load_new(run.recipe, spec, test, options.limit)
        if len(sets[spec][0]) < FEWEST:
            raise DataError(f"{spec}: a test for shift needs at least {FEWEST} rows, got {len(sets[spec][0])}.")
    if len(test) < FEWEST:
        raise DataError(f"{test.name}: a test for shift needs at least {FEWEST} test rows, got {len(test)}.")
    _announce(run, sets, options)
    with Pieces.of(run, "shift", new=options.new, limit=options.limit) as pieces:
        logits = {}
        for number, (name, (data, _)) in enumerate(sets.items()):
            if options.progress is not None:
                options.progress("shift", number, len(sets))
            logits[name] = pieces.get(f"logits-{number}", lambda data=data: {"logits": run.predict(data)})["logits"]
    seed = run.recipe.settings.seed
    own = NewSet(inputs_of(test, seed), logits[OWN_TEST], test.labels)
    train = inputs_of(run.splits.train, seed)
    found = {}
    for name, (data, labelled) in sets.items():
        new = NewSet(inputs_of(data, seed), logits[name], data.labels if labelled else None)
        found[name] = find_shift(train, own, new, seed)
    hits = int((logits[OWN_TEST].argmax(1) == test.labels).sum())
    notes = [f"Groups with fewer than {FEWEST} test rows are not tested: {', '.join(small)}."] if small else []
    if not options.new:
        notes.append("Only the run's own test set was compared; name new data with --new.")
    return audit_shift(found, proportion_interval(hits, len(test)), test.class_names, notes)


def inputs_of(data: Dataset, seed: int) -> Tensor:
    """At most `MOST` inputs, drawn at random, as floats."""
    rows = torch.arange(len(data))
    if len(data) > MOST:
        rows = torch.randperm(len(data), generator=generator(seed, "shift rows"))[:MOST].sort().values
    return data.floats(rows)


def _announce(run: LoadedRun, sets: dict[str, tuple[Dataset, bool]], options: AuditOptions) -> None:
    if options.announce is None:
        return
    test = sets[OWN_TEST][0]
    sample = test.select(torch.arange(min(len(test), 256)))
    rows = sum(len(data) for data, _ in sets.values())
    seconds = seconds_of(lambda: run.predict(sample)) * rows / len(sample)
    options.announce(f"shift: about {duration(seconds + FOREST_SECONDS * len(sets))}")


FOREST_SECONDS = 3.0
"""What one forest takes on a laptop at `MOST` rows a side."""
