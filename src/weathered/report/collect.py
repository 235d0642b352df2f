"""From finished runs to what a report shows."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from weathered.assemble import resolve
from weathered.comparison import Arm, CompareResult
from weathered.core.errors import DataError
from weathered.data.prepare import prepare
from weathered.metrics import METRICS, SHOTS, Metric, metric_named
from weathered.recipe import Recipe
from weathered.report.build import build_report
from weathered.report.model import ArmAudit, Curve, Method, ReportArm, ReportInput, WorstSample
from weathered.report.objectives import loss_note, objective_of, test_note
from weathered.stats import mean_interval, share_interval
from weathered.store import RunFolder

WORST = 24
"""Samples shown as pictures."""


def report_on_comparison(result: CompareResult, path: Path, commands: Sequence[str] = ()) -> Path:
    """Write the HTML report of a comparison, or of a single run, and return its path."""
    best = result.ranking()[0]
    record = best.folders[0].read_json("run.json")
    single = len(result.arms) == 1
    shown = [arm for arm in (best, result.arm(result.baseline)) if arm.values]
    worst = worst_samples(best.folders[0])
    objectives = {arm.name: objective_of(arm.folders[0].read_json("run.json")) for arm in result.arms}
    last = "phase" if all(o.base for o in objectives.values()) else "epoch"
    report = ReportInput(
        title="Training report"
        if single
        else f"{len(result.arms)} ways to train on {record['recipe']['data']['train']}",
        metric=f"{result.metric.name} on novel classes"
        if re.fullmatch(SHOTS, result.metric.name)
        else f"test {result.metric.name} after the last {last}",
        percent=result.metric.share,
        higher_is_better=result.metric.higher_is_better,
        data=describe_data(record, result.recipe.data.make),
        arms=tuple(report_arm(result, arm) for arm in result.arms),
        baseline=None if single else result.baseline,
        test_curves=tuple(curve for arm in result.arms if (curve := curve_of(arm, "test_accuracy"))),
        loss_curves=tuple(curve for arm in result.arms if (curve := curve_of(arm, "train_loss"))),
        test_note=test_note(objectives),
        loss_note=loss_note(objectives),
        audits=tuple(
            ArmAudit(name, audit)
            for name, folder in {arm.name: arm.folders[0] for arm in shown}.items()
            for audit in folder.read_json("audit.json").values()
        ),
        worst=worst,
        worst_title=f"Training samples whose label {'the model' if single else best.name} doubts most",
        recipe={key: value for key, value in record["resolved"].items() if key != "use"},
        environment={
            **record["versions"],
            "python": record["python"],
            "platform": record["platform"],
            "device": record["device"],
            "threads": record["threads"],
        },
        commands=tuple(commands),
        notes=_notes(result, record["data_notes"], bool(worst)),
    )
    return build_report(report, path)


def _notes(result: CompareResult, data_notes: Sequence[str], pictured: bool) -> tuple[str, ...]:
    notes, seeds = list(data_notes), result.seeds
    if len(seeds) > 1:
        whole = "result" if len(result.arms) == 1 else "ranking"
        notes.append(f"Audits and pictures are those of seed {seeds[0]}; the {whole} is over all {len(seeds)}.")
    if not pictured:
        notes.append("No samples are shown: the model gives no probabilities of classes, so none can be called worst.")
    notes += [f"{name} was left out: {reason}" for name, reason in result.refused.items()]
    return (*notes, *result.notes(), *(f"Run {name} failed: {error}" for name, error in result.failed.items()))


def describe_data(record: dict, make: Sequence[str]) -> str:
    """The data of a run in words. make: the makers that all arms share."""
    data, size, classes = record["recipe"]["data"], record["train_size"], len(record["classes"])
    made = f" with {' and '.join(make)}" if make else ""
    base = objective_of(record).base
    of = f"of {classes} classes" if base is None else f"of the {base[0]} base classes, {classes} classes in all"
    return f"{data['train']}{made}, {size} training samples {of}"


def report_arm(result: CompareResult, arm: Arm) -> ReportArm:
    return ReportArm(
        name=arm.name,
        methods=tuple(Method(use.slug, use.options) for use in resolve((*result.recipe.use, *arm.use))),
        values=tuple(arm.values[result.metric.name]),
        estimate=arm.estimate(result.metric),
        seconds=sum(arm.seconds) / len(arm.seconds),
        comparison=None if arm.name == result.baseline else result.against_baseline(arm),
        figures={name: arm.estimate(_metric_of(name)) for name in arm.values},
    )


def _metric_of(name: str) -> Metric:
    return metric_named(name) if name in METRICS or re.fullmatch(SHOTS, name) else Metric(name, share=False)


def curve_of(arm: Arm, key: str) -> Curve | None:
    """A line of metrics.jsonl over epochs, mean and interval over seeds; None if it was never written."""
    runs = [{line["epoch"]: line[key] for line in folder.metrics() if key in line} for folder in arm.folders]
    epochs = sorted(set.intersection(*(set(run) for run in runs)))
    if not epochs:
        return None
    interval = share_interval if key == "test_accuracy" else mean_interval
    estimates = [interval([run[epoch] for run in runs]) for epoch in epochs]
    several = len(runs) > 1
    return Curve(
        arm.name,
        tuple(float(epoch) for epoch in epochs),
        tuple(e.value for e in estimates),
        tuple(e.low for e in estimates) if several else None,
        tuple(e.high for e in estimates) if several else None,
    )


def worst_samples(folder: RunFolder, count: int = WORST) -> tuple[WorstSample, ...]:
    """The training samples whose given label the run finds least probable; none if it gives no probabilities."""
    path = folder.path / "per_sample.parquet"
    try:
        table = pq.read_table(path, filters=[("split", "=", "train")]).to_pydict()
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} is damaged or missing; delete the run's folder and train it again.") from error
    if "label_probability" not in table:
        return ()
    order = np.argsort(np.asarray(table["label_probability"]), kind="stable")[:count]
    recipe = Recipe.from_tree(folder.read_json("run.json")["recipe"])
    train = prepare(recipe).train
    pictures = train.pictures(torch.as_tensor(order))
    names = train.class_names
    samples = []
    for position, row in enumerate(order.tolist()):
        clean = table["clean_label"][row]
        truth = None if train.clean_labels is None else names[clean] if clean >= 0 else "none of the classes"
        samples.append(
            WorstSample(
                name=f"row {table['index'][row]}",
                label=names[table["label"][row]],
                predicted=names[table["predicted"][row]],
                loss=table["loss"][row],
                confidence=table["confidence"][row],
                truth=truth,
                image=None if pictures is None else pictures[position].numpy(),
            )
        )
    return tuple(samples)
