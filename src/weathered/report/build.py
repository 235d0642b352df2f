"""One self-contained HTML file from a `ReportInput`: texts and drawings are made here, templates only place them."""

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from weathered.audit.result import Chart, Series, plain
from weathered.core.atomic import write_text
from weathered.core.errors import DataError
from weathered.report.charts import Drawing, Interval, draw, draw_intervals
from weathered.report.model import ArmAudit, Curve, ReportArm, ReportInput, WorstSample
from weathered.report.pictures import data_uri
from weathered.report.text import Cell, Unit, cell, finite, interval, number, p_value, seconds
from weathered.report.verdict import corrected_p, level, verdict
from weathered.stats import Estimate

AUDIT_NAMES = {
    "accuracy": "Accuracy",
    "calibration": "Calibration",
    "corruption": "Robustness to corruptions",
    "ood": "Out-of-distribution detection",
    "rejection": "Rejection as outliers",
    "certified": "Certified robustness",
    "sets": "Sets of labels",
    "selective": "Selective prediction",
    "groups": "Groups",
    "segmentation": "Segmentation",
    "incremental": "Learning classes in phases",
    "few-shot": "Learning new classes from a few samples",
    "retrieval": "Finding captions and images",
    "shift": "New data",
    "robustness": "Inputs changed by an attacker",
    "shortcut": "Shortcuts",
    "backdoor": "A known trigger",
    "poison": "Signs of a planted trigger",
}


class View(NamedTuple):
    """A table as the template shows it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


class AuditView(NamedTuple):
    """One audit as the template shows it: key figures, charts, tables and notes."""

    name: str
    summary: View
    figures: tuple[Drawing, ...]
    tables: tuple[View, ...]
    notes: tuple[str, ...]


def build_report(report: ReportInput, path: Path) -> Path:
    """Write the report to `path` as one HTML file that needs no network, replacing what was there; returns the path."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is not a regular file; name another file for the report.")
    write_text(path, render(report))
    return path


def render(report: ReportInput) -> str:
    """The report as HTML text."""
    environment = Environment(
        loader=PackageLoader("weathered.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = _asset("report.css"), _asset("report.js")
    return environment.get_template("report.html.jinja").render(
        report=report,
        verdict=verdict(report),
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        overview=_overview(report),
        overview_caption=_overview_caption(report),
        ranking=_ranking(report),
        figures=_figures(report) if len(report.arms) > 1 else None,
        curves=[draw(chart) for chart in _curve_charts(report)],
        glance=_glance(report.audits) if len({audit.arm for audit in report.audits}) > 1 else None,
        audits=_audits(report),
        worst=[_worst(sample) for sample in report.worst],
        recipe=_flat(report.recipe),
        environment=_flat(report.environment),
        methods=[(arm, [(m.slug, _flat(m.options)) for m in arm.methods]) for arm in report.ranking()],
    )


def _asset(name: str) -> str:
    return (files("weathered.report") / "templates" / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    """The word by which a content security policy allows exactly this inline text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _overview(report: ReportInput) -> Markup | None:
    if len(report.arms) == 1 and len(report.arms[0].values) == 1:
        return None
    unit, ranking = Unit.of(report.percent), report.ranking()
    rows = [
        Interval(
            arm.name, *(v * unit.factor for v in arm.estimate[:3]), dots=tuple(v * unit.factor for v in arm.values)
        )
        for arm in ranking
    ]
    spans = "; ".join(
        f"{arm.name} {unit.value(arm.estimate.value)}, 95 % interval "
        f"{unit.interval(arm.estimate.low, arm.estimate.high)}, n = {arm.estimate.n}"
        for arm in ranking
    )
    label = f"{report.metric}{' in %' if report.percent else ''}"
    title = f"{report.metric} of each arm".capitalize()
    return draw_intervals(title, f"{spans}.", label, rows, report.baseline)


def _overview_caption(report: ReportInput) -> str:
    if all(len(arm.values) == 1 for arm in report.arms):
        return "One seed each, so without intervals. The dashed line is the baseline."
    baseline = " The dashed line is the baseline's mean." if report.baseline else ""
    return f"Large dots are means, bars their 95 % intervals over seeds, small dots single seeds.{baseline}"


def _ranking(report: ReportInput) -> View:
    unit, corrected = Unit.of(report.percent), corrected_p(report)
    compared = bool(corrected)
    columns = ["arm", f"{report.metric}{' (%)' if report.percent else ''}", "95 % interval", "n seeds"]
    if compared:
        columns += [
            f"against {report.baseline}{' (points)' if report.percent else ''}",
            "95 % interval",
            "p",
            "p, Holm",
        ]
    rows = []
    for arm in report.ranking():
        value, low, high, n = arm.estimate
        span = "one seed" if n == 1 else unit.interval(low, high)
        cells = [Cell(arm.name, arm.name, False), _shown(unit.bare(value), value), _shown(span, low), cell(n)]
        if compared:
            cells += _against(arm, corrected, unit)
        rows.append((*cells, _shown(seconds(arm.seconds), arm.seconds)))
    if len(rows) > 1:
        columns, rows = ["rank", *columns], [(cell(rank), *row) for rank, row in zip(_ranks(report), rows, strict=True)]
    return View("Ranking" if len(rows) > 1 else "Result", (*columns, "time per run"), tuple(rows))


def _ranks(report: ReportInput) -> list[int]:
    """The rank of each arm from best to worst; arms that are level share one."""
    ranks: list[int] = []
    ranking = report.ranking()
    for place, arm in enumerate(ranking, 1):
        ranks.append(ranks[-1] if place > 1 and level(arm, ranking[place - 2]) else place)
    return ranks


def _against(arm: ReportArm, corrected: Mapping[str, float], unit: Unit) -> list[Cell]:
    if arm.comparison is None:
        return [Cell("baseline", "0", True), *[Cell("", "", True)] * 3]
    value, low, high, n = arm.comparison.difference
    difference = _shown(unit.signed(value), value)
    if n < 2:
        return [difference, *[Cell("one seed", "", True)] * 3]
    if not finite(low):
        return [difference, *[Cell("not known", "", True)] * 3]
    p_values = (arm.comparison.p_value, corrected[arm.name])
    return [
        difference,
        _shown(unit.interval(low, high, signed=True), low),
        *(_shown(p_value(p).removeprefix("p\u00a0").removeprefix("=\u00a0"), p) for p in p_values),
    ]


def _shown(words: str, value: float) -> Cell:
    return Cell(words, repr(float(value)) if finite(value) else "", True)


def _curve_charts(report: ReportInput) -> list[Chart]:
    unit, metric = Unit.of(report.curve_percent), report.curve_metric
    test_label = f"{metric} in %" if report.curve_percent else metric
    charts = []
    if report.test_curves:
        title = f"{metric.capitalize()} over epochs"
        charts.append(_curve_chart(title, test_label, report.test_curves, report.test_note, unit.value, unit.factor))
    if report.loss_curves:
        title = "Training loss over epochs"
        charts.append(_curve_chart(title, "mean training loss", report.loss_curves, report.loss_note, number, 1.0))
    return charts


def _curve_chart(
    title: str, label: str, curves: Sequence[Curve], note: str, write: Callable[[float], str], factor: float
) -> Chart:
    """One chart of all arms. note: a sentence below it. write: a value as text. factor: from values to the axis."""

    def scaled(values: Sequence[float] | None) -> tuple[float, ...] | None:
        return None if values is None else tuple(factor * value for value in values)

    several = any(curve.low for curve in curves)
    last = ", ".join(f"{curve.arm} {write(curve.mean[-1])}" for curve in curves)
    words = f"{'Mean over seeds; after' if several else 'After'} the last epoch: {last}"
    bands = "; bands are 95 % intervals over seeds" if several else ""
    return Chart(
        title=title,
        kind="line",
        x_label="epoch",
        y_label=label,
        series=tuple(Series(c.arm, c.epochs, scaled(c.mean) or (), scaled(c.low), scaled(c.high)) for c in curves),
        description=f"{words}{bands}. {note}".strip(),
    )


def _audits(report: ReportInput) -> list[tuple[str, list[AuditView]]]:
    """Audits by arm, the best arm first."""
    order = [arm.name for arm in report.ranking()]
    arms = sorted(
        dict.fromkeys(audit.arm for audit in report.audits), key=lambda a: order.index(a) if a in order else len(order)
    )
    return [(arm, [_audit(audit.result) for audit in report.audits if audit.arm == arm]) for arm in arms]


def _audit(result: Mapping[str, Any]) -> AuditView:
    rows = tuple(
        (
            Cell(name, name, False),
            cell(found["value"]),
            Cell(interval(found["low"], found["high"]), "" if found["low"] is None else repr(found["low"]), True),
            cell(found["n"]),
            Cell("higher" if found["higher_is_better"] else "lower", str(found["higher_is_better"]), False),
        )
        for name, found in result["summary"].items()
    )
    charts = [Chart(**{**c, "series": tuple(Series(**s) for s in c["series"])}) for c in result["figures"]]
    tables = [
        View(t["title"], tuple(t["columns"]), tuple(tuple(cell(v) for v in row) for row in t["rows"]))
        for t in result["tables"]
    ]
    summary = View("Key figures", ("figure", "value", "95 % interval", "n", "better is"), rows)
    slug = str(result["audit"])
    title = AUDIT_NAMES.get(slug, slug)
    return AuditView(title, summary, tuple(map(draw, charts)), tuple(tables), tuple(result["notes"]))


def _figures(report: ReportInput) -> View | None:
    """Every figure of every arm over its seeds, one row for each arm; None where nothing but the metric is known."""
    names = list(dict.fromkeys(name for arm in report.arms for name in arm.figures))
    if len(names) < 2:
        return None

    def written(found: Estimate | None) -> Cell:
        return Cell("", "", True) if found is None else _with_interval(plain(found._asdict()))

    rows = [
        (Cell(arm.name, arm.name, False), *(written(arm.figures.get(name)) for name in names))
        for arm in report.ranking()
    ]
    return View("All figures of all arms, means over seeds with 95 % intervals", ("arm", *names), tuple(rows))


def _glance(audits: Sequence[ArmAudit]) -> View:
    """Every figure of every audit, one column per arm."""
    arms = list(dict.fromkeys(audit.arm for audit in audits))
    found = {
        (audit.result["audit"], name, audit.arm): value
        for audit in audits
        for name, value in audit.result["summary"].items()
    }
    rows = []
    for audit, name in dict.fromkeys((audit, name) for audit, name, _ in found):
        cells = [Cell(AUDIT_NAMES.get(str(audit), str(audit)), str(audit), False), Cell(name, name, False)]
        for arm in arms:
            value = found.get((audit, name, arm))
            cells.append(Cell("", "", True) if value is None else _with_interval(value))
        rows.append(tuple(cells))
    return View("All figures, arm by arm", ("audit", "figure", *arms), tuple(rows))


def _with_interval(found: Mapping[str, Any]) -> Cell:
    words = f"{number(found['value'])} ({interval(found['low'], found['high'])}; n = {number(found['n'])})"
    return Cell(words, "" if found["value"] is None else repr(found["value"]), True)


def _worst(sample: WorstSample) -> dict[str, Any]:
    judged = sample.truth is not None
    return {
        "sample": sample,
        "source": None if sample.image is None else data_uri(sample.image),
        "pixelated": sample.image is not None and max(sample.image.shape[1:]) < 96,
        "alt": f"{sample.name}: labelled {sample.label}, predicted {sample.predicted}",
        "flag": "label is wrong" if judged and sample.truth != sample.label else "",
        "loss": number(float(sample.loss)),
        "confidence": f"{float(sample.confidence):.3f}",
    }


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, text) in their order."""
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            rows += _flat(value, f"{name}.")
        elif isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
            rows += [pair for i, item in enumerate(value, 1) for pair in _flat({str(i): item}, f"{name}.")]
        elif isinstance(value, (list, tuple)):
            rows.append((name, ", ".join(map(str, value)) or "none"))
        else:
            rows.append((name, _plain(value)))
    return rows


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None or value == {} else str(value)
