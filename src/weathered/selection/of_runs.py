"""Choose among finished runs on the same data by accuracy in the training domains and how their features move.

Domains are the groups of the training rows. Features are those of training rows, equally many of each class in each
domain, in evaluation mode. Accuracy is the mean over training domains, on validation rows where the runs kept some,
else on test rows of the training domains. No row of another domain is read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from weathered.audit.result import plain, quoted
from weathered.core.errors import DataError, Incompatible, SpecError
from weathered.core.rng import generator
from weathered.data.dataset import Dataset
from weathered.data.prepare import Splits
from weathered.incremental.recipe_run import AnalyticClassifier
from weathered.loaded_run import LoadedRun, load_run
from weathered.nn.two_towers import TwoTowers
from weathered.recipe import DataOptions, Recipe
from weathered.scores.extract import extract
from weathered.selection.laws import cells_of, equal_cells
from weathered.selection.ood_expansion_selection import Choice, ExpansionSelection, Stability
from weathered.store import RunFolder


class Candidate(NamedTuple):
    """One run: its folder, methods, seed, accuracy on held-out rows of the training domains, and features."""

    path: str
    use: tuple[str, ...]
    seed: int
    accuracy: float
    stability: Stability


@dataclass(frozen=True)
class RunSelection:
    """What was chosen among runs: the candidates in the order they were named, the choice, and what it rests on.

    notes: sentences on the rows that were read and on what limits the choice.
    """

    candidates: tuple[Candidate, ...]
    choice: Choice
    method: ExpansionSelection
    notes: tuple[str, ...]

    @property
    def ranking(self) -> list[int]:
        """Positions from the choice down; runs without an informative feature are last, the more accurate first."""
        accuracy = [candidate.accuracy for candidate in self.candidates]
        criterion = [-float("inf") if c != c else float(c) for c in self.choice.criterion]
        return sorted(range(len(accuracy)), key=lambda i: (i != self.choice.chosen, -criterion[i], -accuracy[i], i))

    def to_json(self) -> dict[str, Any]:
        """The choice and each run, from the choice down, ready for json.dumps."""
        rows = []
        for rank, i in enumerate(self.ranking, 1):
            path, use, seed, accuracy, stability = self.candidates[i]
            rows.append(
                {
                    "rank": rank,
                    "run": path,
                    "use": use,
                    "seed": seed,
                    "accuracy": accuracy,
                    "variation": stability.mean_variation,
                    "informativeness": stability.mean_informativeness,
                    "informative_features": stability.informative,
                    "features": len(stability.variation),
                    "criterion": float(self.choice.criterion[i]),
                    "near": bool(self.choice.near[i]),
                }
            )
        return plain(
            {
                "chosen": self.candidates[self.choice.chosen].path,
                "most_accurate": self.candidates[self.choice.most_accurate].path,
                "r0": self.choice.r0,
                "options": vars(self.method),
                "runs": rows,
                "notes": self.notes,
            }
        )


def select_runs(
    folders: Sequence[RunFolder], method: ExpansionSelection, watch: Callable[[int, int], None] | None = None
) -> RunSelection:
    """Choose among finished runs on the same data with groups.

    watch: told how many of how many runs are measured. Runs are read one after another, one in memory at a time.
    Raises SpecError for fewer than two runs or one named twice, DataError where the data have no groups, differ
    between runs, or hold too few rows, Incompatible for runs without features or without classes.
    """
    _check_runs(folders)
    candidates: list[Candidate] = []
    notes: list[str] = []
    recipes: set[str] = set()
    held, rows = None, None
    for done, folder in enumerate(folders):
        if watch is not None:
            watch(done, len(folders))
        run = load_run(folder.path)
        _refuse_others(run)
        if held is None or rows is None:
            rows, about_rows = _training_rows(run, method.min_count)
            held, about_held = held_out(run.splits)
            notes += [*about_rows, *about_held]
        recipes.add(run.recipe.with_settings(seed=0).hash)
        candidates.append(measure_run(run, held, rows, method))
    if watch is not None:
        watch(len(folders), len(folders))
    notes.append(f"The pool is {len(candidates)} runs of {len(recipes)} recipes, each as it was after its last epoch.")
    without = [candidate.path for candidate in candidates if not candidate.stability.informative]
    if len(without) == len(candidates):
        most = max(float(candidate.stability.informativeness.max()) for candidate in candidates)
        raise DataError(
            f"no run has a feature with an informativeness of {method.delta:g} or more, {most:.3f} at most, so none "
            "can be chosen; give a smaller --delta."
        )
    if without:
        notes.append(
            f"{len(without)} of {len(candidates)} runs have no feature with an informativeness of {method.delta:g} or "
            f"more and cannot be chosen: {quoted(without)}."
        )
    choice = method.choose([c.accuracy for c in candidates], [c.stability for c in candidates])
    return RunSelection(tuple(candidates), choice, method, (*notes, *_about_rule(choice, method)))


def _about_rule(choice: Choice, method: ExpansionSelection) -> list[str]:
    near = int(choice.near.sum())
    if method.r0 != "auto" or near > 2:
        return []
    if near == 1:
        return [
            f"One run alone is within {method.window:g} of the best accuracy, so r0 is 0 and the choice is by "
            "accuracy; give more runs, a larger --window, or --r0."
        ]
    return [
        f"Two runs alone are within {method.window:g} of the best accuracy, and r0 makes their criteria equal where "
        "the more accurate varies more; give more runs, a larger --window, or --r0."
    ]


def held_out(splits: Splits) -> tuple[Dataset, list[str]]:
    """Rows of the training domains on which accuracy is measured, and what is to be said of them.

    Raises DataError if there are none.
    """
    trained = splits.train.extra["group"].unique()
    remedy = "Train with --validation 0.2, which keeps some for this."
    if splits.validation is not None:
        held = splits.validation
        note = f"Accuracy is the mean over training domains on {len(held)} validation rows; no test row was read."
    elif "group" not in splits.test.extra:
        raise DataError(
            f"{splits.test.name}: the runs kept no validation rows, and the test rows have no groups that would tell "
            f"which are of the training domains. {remedy}"
        )
    else:
        held = splits.test.select(torch.isin(splits.test.extra["group"], trained))
        if not len(held):
            raise DataError(
                f"{splits.test.name}: the runs kept no validation rows, and all test rows are of other domains, which "
                f"must not choose. {remedy}"
            )
        note = (
            f"Accuracy is the mean over training domains on {len(held)} test rows of these domains, because the runs "
            "kept no validation rows; as they chose, they are no longer unseen data for the run that was chosen. "
            f"{len(splits.test) - len(held)} test rows of other domains were not read."
        )
    notes = [note]
    if unseen := sorted(set(trained.tolist()) - set(held.extra["group"].tolist())):
        names = [splits.train.names_of_groups[g] for g in unseen]
        notes.append(f"Domains without held-out rows count for no accuracy: {quoted(names)}.")
    return held, notes


def mean_accuracy(logits: Tensor, labels: Int[Tensor, "N"], domains: Int[Tensor, "N"]) -> float:
    """Mean over domains of the share of rows whose largest logit is the label's, in [0, 1]. logits (N, C)."""
    correct, (places, number) = (logits.argmax(1) == labels).double(), domains.unique(return_inverse=True)
    hits = torch.bincount(number, weights=correct, minlength=len(places))
    return float((hits / torch.bincount(number)).mean())


def measure_run(run: LoadedRun, held: Dataset, rows: Int[Tensor, "M"], method: ExpansionSelection) -> Candidate:
    """Accuracy of a run on held-out rows, and the stability of its features on these training rows.

    Raises Incompatible for a network without features.
    """
    train = run.splits.train.select(rows)
    features = extract(run.model, train).features
    if features is None:
        raise Incompatible(
            f"{run.folder.path}: the choice is by features before the classifier, but this network has no "
            "forward_features and forward_head. Leave it out."
        )
    found = method.measure(features.flatten(1), train.labels, train.extra["group"])
    accuracy = mean_accuracy(run.predict(held), held.labels, held.extra["group"])
    return Candidate(str(run.folder.path), run.recipe.use, run.recipe.settings.seed, accuracy, found)


def _training_rows(run: LoadedRun, min_count: int) -> tuple[Int[Tensor, "M"], list[str]]:
    """The rows whose features are compared, and what is to be said of them. Raises DataError if there are too few."""
    train = run.splits.train
    groups, names = train.extra["group"], train.names_of_groups
    try:
        cells = cells_of(train.labels, groups, min_count)
    except ValueError as error:
        raise DataError(f"{train.name}: {error}.") from error
    several = len(cells.domains) > 1
    if several and int(cells.present.sum(0).max()) < 2:
        raise DataError(
            f"{train.name}: no class has {min_count} training rows in two domains, so nothing says what moves between "
            "them; give more rows, or a smaller --min-count at the price of more noise."
        )
    rows = equal_cells(train.labels, groups, min_count, generator(run.recipe.data_seed, "selection cells"))
    each = len(rows) // int(cells.present.sum())
    domains = quoted([names[int(g)] for g in cells.domains])
    notes = [f"Variation is between {len(cells.domains)} training domains, {domains}, on {each} rows of each class."]
    if not several:
        notes = [
            f"All training rows are of one domain, {domains}, so every variation is 0 and the choice is by accuracy."
        ]
    if missing := cells.missing:
        listing = [f"{train.class_names[y]} in {names[e]} ({n})" for e, y, n in missing]
        notes.append(f"Left out for fewer than {min_count} training rows: {quoted(listing)}.")
    return rows, notes


def _refuse_others(run: LoadedRun) -> None:
    splits = run.splits
    other = isinstance(run.model, (TwoTowers, AnalyticClassifier)) or run.recipe.few_shot is not None
    if splits.train.is_segmentation or other:
        raise Incompatible(
            f"{run.folder.path}: the choice is among classifiers of one label for each sample, trained on all classes "
            "at once. Leave it out."
        )
    if "group" not in splits.train.extra:
        raise DataError(
            f"{run.folder.path}: the training rows have no groups, which are the domains here; train with "
            "--group-column."
        )


def _check_runs(folders: Sequence[RunFolder]) -> None:
    if len({folder.path.resolve() for folder in folders}) < len(folders):
        raise SpecError("a run is named twice; each may be chosen once.")
    if len(folders) < 2:
        raise SpecError("there is one run, so there is nothing to choose; name several, or a folder that holds them.")
    for folder in folders:
        if folder.state != "done":
            raise DataError(
                f"{folder.path} is not finished. Go on with it by 'weathered train ... --resume', or leave it out."
            )
    known = [_data_of(folder) for folder in folders]
    for folder, data in zip(folders[1:], known[1:], strict=True):
        differing = [f.name for f in fields(DataOptions) if getattr(data, f.name) != getattr(known[0], f.name)]
        if differing == ["seed"]:
            raise DataError(
                f"{folder.path} has other training rows than {folders[0].path}, because its data were split by another "
                "seed. Train with one --data-seed and several --seed."
            )
        if differing:
            raise DataError(
                f"{folder.path} was trained on other data than {folders[0].path}: they differ in "
                f"{', '.join(differing)}. Name runs on the same rows, labels and groups."
            )


def _data_of(folder: RunFolder) -> DataOptions:
    """The data of a run with its seed filled in, without auxiliary data, which leave the training rows as they are."""
    recipe = Recipe.from_tree(folder.read_json("run.json")["recipe"], str(folder.path / "run.json"))
    return replace(recipe.data, aux=(), seed=recipe.data_seed)
