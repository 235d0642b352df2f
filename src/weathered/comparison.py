"""Compare arms over seeds: the same data, the same settings, paired statistics against the baseline."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from weathered.arms import check_comparison, plan, refusals
from weathered.audit.kept import audit_where_missing, kept_audits
from weathered.audit.result import plain
from weathered.core.atomic import write_text
from weathered.core.errors import DataError, WeatheredError
from weathered.core.spec import parse
from weathered.metrics import Metric, metric_named, usual_metric
from weathered.recipe import DataOptions, Recipe
from weathered.run_record import unlike
from weathered.stats import Comparison, Estimate, mean_interval, paired_comparison, share_interval
from weathered.store import RunFolder
from weathered.sweep import Launcher, Watcher, run_all
from weathered.unread import unread_by_all


@dataclass(frozen=True)
class Arm:
    """One recipe of a comparison over all seeds: its name, its methods, and its value of each metric per seed."""

    name: str
    use: tuple[str, ...]
    folders: tuple[RunFolder, ...]
    values: dict[str, list[float]]
    seconds: list[float]

    def estimate(self, metric: Metric) -> Estimate:
        """Mean over seeds and its interval; that of a share is cut to [0, 1]."""
        values = self.values[metric.name]
        return share_interval(values) if metric.share else mean_interval(values)


@dataclass(frozen=True)
class CompareResult:
    """Arms in the order given, the baseline first named, what ranks them, and the folder of the comparison.

    failed: run -> what stopped it. refused: arm -> why its parts do not go together. audits: those made of every run.
    """

    arms: tuple[Arm, ...]
    baseline: str
    seeds: tuple[int, ...]
    recipe: Recipe
    path: Path
    metric: Metric
    failed: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    audits: tuple[str, ...] = ()

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    def against_baseline(self, arm: Arm) -> Comparison:
        """Paired difference of an arm and the baseline, seed by seed."""
        return paired_comparison(arm.values[self.metric.name], self.arm(self.baseline).values[self.metric.name])

    def notes(self) -> tuple[str, ...]:
        """Sentences on what differs between the runs other than their recipes, as code, devices and threads, and on
        data that none of them reads, and on tricks that change nothing.
        """
        records = [folder.read_json("run.json") for arm in self.arms for folder in arm.folders]
        idle = dict.fromkeys(note for record in records for note in record.get("idle", []))
        return (*unlike(records), *unread_by_all(records), *idle)

    def ranking(self) -> list[Arm]:
        """Arms from best to worst mean."""
        sign = -1 if self.metric.higher_is_better else 1
        return sorted(self.arms, key=lambda arm: sign * arm.estimate(self.metric).value)

    def to_json(self) -> dict[str, Any]:
        """The ranking with intervals and paired tests."""
        rows = []
        for arm in self.ranking():
            estimate, against = arm.estimate(self.metric), self.against_baseline(arm)
            rows.append(
                {
                    "arm": arm.name,
                    "use": list(arm.use),
                    self.metric.name: estimate._asdict(),
                    "values": arm.values,
                    "difference": None if arm.name == self.baseline else against.difference._asdict(),
                    "p_value": None if arm.name == self.baseline else against.p_value,
                    "seconds": sum(arm.seconds) / len(arm.seconds),
                    "runs": [folder.path.name for folder in arm.folders],
                }
            )
        return {
            "metric": self.metric.name,
            "baseline": self.baseline,
            "seeds": list(self.seeds),
            "recipe": self.recipe.to_tree(),
            "ranking": rows,
            "notes": list(self.notes()),
            "failed": self.failed,
            "refused": self.refused,
            "audits": list(self.audits),
        }


def compare(
    recipe: Recipe,
    arms: dict[str, tuple[str, ...]],
    seeds: Sequence[int] = (0, 1, 2),
    out: Path = Path("runs"),
    *,
    baseline: str | None = None,
    metric: str | None = None,
    leave_out_refused: bool = False,
    audits: Sequence[str] = (),
    audit_limit: int | None = None,
    launcher: Launcher = "local",
    workers: int | None = None,
    watcher: Watcher | None = None,
    audit_watch: Callable[[int, int], None] | None = None,
) -> CompareResult:
    """Train every arm with every seed and compare a figure of the test set after the last epoch.

    recipe: what all arms share. arms: name -> methods. baseline: the arm to compare with, `ce` or the first by
    default. metric: a name of `METRICS`; accuracy by default, mean IoU for masks. leave_out_refused: go on without
    arms that are refused, other than the baseline. audits: names of audits made of every run, whose figures are
    compared as well; audit_limit: at most so many test samples for each; audit_watch: told how many of them are done.
    Runs that are finished in `out` are not trained again. Raises a
    WeatheredError if an arm is refused, if no run succeeded, or if an arm lacks the metric.
    """
    baseline, asked = check_comparison(arms, seeds, baseline, metric, audits)
    planned = plan(recipe, arms, seeds)
    refused = refusals(planned, recipe.data, asked)
    for name, error in refused.items():
        if not leave_out_refused or name == baseline:
            raise type(error)(f"arm '{name}': {error}") from error
    planned = {name: recipes for name, recipes in planned.items() if name not in refused}
    everything = [item for recipes in planned.values() for item in recipes]
    outcomes = run_all(everything, out, launcher=launcher, workers=workers, watcher=watcher)
    failed = {outcome.folder.path.name: outcome.error for outcome in outcomes if outcome.error}
    whole: dict[str, list[RunFolder]] = {}
    for name, recipes in planned.items():
        folders = [RunFolder(out / item.hash) for item in recipes]
        broken = [failed[f.path.name] for f in folders if f.path.name in failed]
        if broken and name == baseline:
            raise WeatheredError(f"the baseline '{name}' failed: {broken[0]}")
        if not broken:
            whole[name] = folders
    audit_where_missing([run for folders in whole.values() for run in folders], audits, audit_limit, audit_watch)
    collected = [_collect(name, arms[name], folders, audits) for name, folders in whole.items()]
    chosen = _metric_of(collected, asked)
    reasons = {name: str(error) for name, error in refused.items()}
    identity = [baseline, *arms, *(item.hash for item in everything), *([] if asked is None else [asked.name]), *audits]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
    path = out / f"compare-{digest}"
    result = CompareResult(
        tuple(collected), baseline, tuple(seeds), recipe, path, chosen, failed, reasons, tuple(audits)
    )
    write_text(result.path / "comparison.json", json.dumps(plain(result.to_json()), indent=2) + "\n")
    return result


def read_comparison(path: Path) -> CompareResult:
    """A comparison read back from its folder; the runs are looked for beside it. Raises DataError if one is gone."""
    tree = RunFolder(path).read_json("comparison.json")
    rows = sorted(tree["ranking"], key=lambda row: row["arm"] != tree["baseline"])
    audits = tuple(tree.get("audits", ()))
    arms = tuple(
        _collect(row["arm"], tuple(row["use"]), [RunFolder(path.parent / name) for name in row["runs"]], audits)
        for row in rows
    )
    recipe = Recipe.from_tree(tree["recipe"], str(path))
    metric, refused = metric_named(tree["metric"]), tree.get("refused", {})
    seeds, failed = tuple(tree["seeds"]), tree["failed"]
    return CompareResult(arms, tree["baseline"], seeds, recipe, path, metric, failed, refused, audits)


def comparison_of(folders: Sequence[RunFolder], out: Path) -> CompareResult:
    """Finished runs as a comparison: those that differ in nothing but the seed form an arm, the first the baseline.

    Only seeds that all arms have are compared; data may differ in corrections of labels. Raises DataError if runs are
    unfinished, share no seed, or were trained on other data than each other.
    """
    groups: dict[str, dict[int, RunFolder]] = {}
    recipes: dict[str, Recipe] = {}
    for folder in folders:
        if folder.state != "done":
            raise DataError(f"{folder.path} is not finished; go on with it by 'weathered train ... --resume'.")
        recipe = Recipe.from_tree(folder.read_json("run.json")["recipe"], str(folder.path))
        if recipes and _uncorrected(recipe.data) != _uncorrected(next(iter(recipes.values())).data):
            raise DataError(
                f"{folder.path} was trained on other data than {folders[0].path}; compare runs on the same."
            )
        key = recipe.with_settings(seed=0).hash
        groups.setdefault(key, {})[recipe.settings.seed] = folder
        recipes.setdefault(key, recipe)
    seeds = sorted(set.intersection(*(set(runs) for runs in groups.values())))
    if not seeds:
        raise DataError("the runs share no seed, so they cannot be compared; report on them one by one.")
    arms = []
    for number, (key, runs) in enumerate(groups.items(), 1):
        use = (*recipes[key].use, *_corrections(recipes[key].data))
        name = "+".join(use) or "cross-entropy"
        taken = [arm.name for arm in arms]
        unique = f"{name} ({number})" if name in taken else name
        arms.append(_collect(unique, use, [runs[seed] for seed in seeds]))
    # what arms share has no methods of its own: each arm carries all of its recipe's
    first = next(iter(recipes.values()))
    first = replace(first, use=(), data=replace(_uncorrected(first.data), base_classes=None, phases=None))
    return CompareResult(tuple(arms), arms[0].name, tuple(seeds), first, out, _metric_of(arms, None))


def _corrections(data: DataOptions) -> tuple[str, ...]:
    return tuple(spec for spec in data.make if parse(spec)[0] == "corrections")


def _uncorrected(data: DataOptions) -> DataOptions:
    return replace(data, make=tuple(spec for spec in data.make if spec not in _corrections(data)))


def _metric_of(arms: Sequence[Arm], asked: Metric | None) -> Metric:
    """What ranks these arms. Raises DataError if one of them does not have it for every seed."""
    metric = asked or usual_metric(arms[0].values)
    for arm in arms:
        if metric.name not in arm.values:
            raise DataError(
                f"not every run of arm '{arm.name}' has the metric '{metric.name}'; the runs are kept. "
                f"Rank by one of {', '.join(arm.values)}."
            )
    return metric


def _collect(name: str, use: tuple[str, ...], folders: list[RunFolder], audits: Sequence[str] = ()) -> Arm:
    records = [folder.read_json("run.json") for folder in folders]
    figures = [record["results"] for record in records]
    for audit in audits:
        made = [kept_audits(folder)[audit]["summary"] for folder in folders]
        # what a run measured itself is on all test samples
        figures = [{**summary, **found} for summary, found in zip(made, figures, strict=True)]
    # a figure such as tail accuracy may exist for some seeds only
    metrics = [name for name in figures[0] if all(name in found for found in figures)]
    values = {metric: [found[metric]["value"] for found in figures] for metric in metrics}
    return Arm(name, use, tuple(folders), values, [record["seconds"] for record in records])
