"""Write the pages that follow from the code: one per method, their table, the claims, the facts, the commands.

Run from anywhere as `python docs/generate.py`, before mkdocs. Everything it writes is ignored by git.
"""

import shutil
import sys
from collections.abc import Iterable, Sequence
from inspect import isclass, isfunction
from pathlib import Path
from types import ModuleType
from typing import Any

import few_shot
from docstrings import literal, markdown
from rendering import command_lines, table
from secondary import secondary
from typer.testing import CliRunner

import comparisons
from weathered.assemble import import_part
from weathered.cli import app
from weathered.cli.describe import describe
from weathered.core.facts import FACTS, SLOTS
from weathered.ledger import CLAIMS, read_ledger
from weathered.registry import ENTRIES, PROBLEMS, Entry
from weathered.stats import interval_text, mean_interval, share_interval

DOCS = Path(__file__).parent

SECTIONS = ("Cost", "When")
"""The headings of a hand-written note, docs/notes/<slug>.md; before them `Alone` may stand, in place of the snippet
that `weathered show` prints."""

MEMBER = "    options:\n      heading_level: 3\n      show_root_full_path: false"
"""How a member of a method's module is shown on its page."""

VERDICTS = {
    "shown": "**Shown.** The 95 % interval of the difference lies on the claimed side of 0.",
    "not shown": (
        "**Not shown at this scale.** The 95 % interval of the difference contains 0, so these seeds cannot tell the "
        "two arms apart. The claim is weaker here than in the paper; that refutes nothing about larger data."
    ),
    "reversed": (
        "**Reversed at this scale.** The 95 % interval of the difference lies on the other side of 0: on this data "
        "the baseline was the better one."
    ),
}


def main(docs: Path = DOCS) -> None:
    """Write all generated pages below `docs`."""
    pages = docs / "methods"
    shutil.rmtree(pages, ignore_errors=True)
    pages.mkdir(parents=True)
    claims = sorted(path.stem.replace("_", "-") for path in CLAIMS.glob("*.py") if path.stem != "common")
    for entry in ENTRIES:
        (pages / f"{entry.slug}.md").write_text(method_page(entry))
    (pages / "index.md").write_text(index_page())
    (pages / "_facts.md").write_text(facts_table())
    (pages / "_commands.md").write_text(commands_page())
    (pages / "_few_shot.md").write_text(few_shot.tables())
    (docs / "comparisons.md").write_text(comparisons.page())
    (docs / "claims.md").write_text(claims_page({slug: read_ledger(slug) for slug in claims}))


def method_page(entry: Entry) -> str:
    """The page of one method, from the registry, its code, its note and the ledger."""
    facts = describe(entry.slug)
    note = read_note(entry.slug)
    alone = note.get("Alone") if note else None
    blocks = [
        f"# {entry.slug}",
        entry.summary,
        identity(entry),
        pointer(entry) if note is None else "",
        "## Alone\n\n" + (alone or f"```python\n{facts['alone']}```"),
        "## On the command line\n\n" + command_lines(entry),
        "## Options\n\n" + options_table(facts["options"]),
        "## What it needs and changes\n\n" + traits_lines(facts),
    ]
    for section in SECTIONS:
        if note:
            blocks.append(f"## {'When to use it, and when not' if section == 'When' else section}\n\n{note[section]}")
    blocks.append("## What it computes\n\n" + documentation(entry))
    blocks.append("## Measured here\n\n" + measured(entry))
    return "\n\n".join(block for block in blocks if block) + "\n"


def identity(entry: Entry) -> str:
    """What the method is for, where it stands and whom it is due to."""
    slot = f"bundle of {' and '.join(map(link, entry.parts))}" if entry.parts else entry.slot
    lines = [
        "- for: " + ("; ".join(f"{problem} ({PROBLEMS[problem]})" for problem in entry.problems) or "any problem"),
        f"- slot: {slot}",
        f"- source: {entry.paper}",
    ]
    if entry.path:
        lines.append(f"- import: `from weathered import {entry.class_name}`")
    return "\n".join(lines)


def link(slug: str) -> str:
    return f"[{slug}]({slug}.md)"


def pointer(entry: Entry) -> str:
    """For a part without a note of its own: where its method is described."""
    if not entry.card:
        return ""
    return f"Part of the method {link(entry.card)}: its cost, and when to use it, are described there."


def read_note(slug: str) -> dict[str, str] | None:
    """The sections of docs/notes/<slug>.md by heading, or None. Raises ValueError unless they are as in `SECTIONS`."""
    path = DOCS / "notes" / f"{slug}.md"
    if not path.exists():
        return None
    parts = ("\n" + path.read_text()).split("\n## ")
    sections = {title.strip(): body.strip() for title, _, body in (part.partition("\n") for part in parts[1:])}
    named = tuple(sections)
    if parts[0].strip() or named not in (SECTIONS, ("Alone", *SECTIONS)) or not all(sections.values()):
        raise ValueError(f"{path.name} must hold the sections {', '.join(SECTIONS)}, got {', '.join(sections)}")
    return sections


def options_table(options: dict[str, str]) -> str:
    """Name, type and default of each option."""
    if not options:
        return "None."
    rows = []
    for name, text in options.items():
        kind, _, default = text.partition(", default ")
        rows.append((f"`{name}`", kind, f"`{default}`" if default else ""))
    return table(("option", "takes", "default"), rows)


def traits_lines(facts: dict[str, Any]) -> str:
    """Needs, breaks and honours in words; the facts are explained on the page of checks."""
    lines = [f"- needs [`{fact}`](../checks.md#facts): {why}" for fact, why in facts["needs"].items()]
    lines += [f"- breaks [`{fact}`](../checks.md#facts): {how}" for fact, how in facts["breaks"].items()]
    if facts["honours"]:
        honoured = [slot for slot in SLOTS if slot in facts["honours"]]
        ignored = [slot for slot in SLOTS if slot not in facts["honours"] and slot != "procedure"]
        lines.append(f"- honours the slots {', '.join(honoured)}")
        if ignored:
            lines.append(f"- never calls {', '.join(ignored)}; a part in such a slot is refused")
    return "\n".join(lines) or "It needs nothing special and takes nothing away from other parts."


def documentation(entry: Entry) -> str:
    """What the code says of itself: the module, then its public functions and the class with their signatures."""
    if entry.parts:
        return f"It stands for its parts; the formulas are on the pages of {' and '.join(map(link, entry.parts))}."
    part = import_part(entry)
    module = sys.modules[part.__module__]
    neighbours = [other for other in ENTRIES if other.path.partition(":")[0] == module.__name__]
    classes = {other.class_name for other in neighbours if other is not entry}
    shared = [name for name in public_names(module) if name not in classes]
    names = shared if entry is neighbours[0] else [part.__name__]
    return "\n\n".join([markdown(module.__doc__ or ""), *(f"::: {module.__name__}.{name}\n{MEMBER}" for name in names)])


def public_names(module: ModuleType) -> list[str]:
    """Functions and classes that a module defines for others, in the order of its source."""
    return [
        name
        for name, value in vars(module).items()
        if (isfunction(value) or isclass(value)) and value.__module__ == module.__name__ and not name.startswith("_")
    ]


def measured(entry: Entry) -> str:
    """The ledger's word on the method, or that there is none."""
    record = read_ledger(entry.claim)
    if record is not None:
        return claim_block(record)
    return "The ledger holds no figure for it." if entry.problems else "Nothing is claimed for it."


def claim_block(record: dict[str, Any]) -> str:
    """One record of the ledger: the sentence, the arms with their means, the difference and the verdict."""
    seeds = record["seeds"]
    roles = {record["main"]: "claimed to be better", record["baseline"]: "baseline"}
    rows = [
        (arm, roles.get(arm, ""), *mean_and_interval(record["metric"], record["values"][arm])) for arm in record["arms"]
    ]
    span = interval_text(*record["interval"], "+.3f", "not known")
    direction = "higher" if record["higher_is_better"] else "lower"
    return "\n\n".join(
        [
            f"Claim: {literal(record['claim'])}",
            f"Data: {literal(record['data'])}. Metric: {literal(record['metric'])} ({direction} is better).",
            table(("arm", "role", f"mean of {len(seeds)} seeds", "95 % interval"), rows),
            f"Difference {record['main']} - {record['baseline']}, paired over the seeds "
            f"{', '.join(map(str, seeds))}: {record['difference']:+.3f}, 95 % interval {span}.",
            VERDICTS[record["verdict"]],
            *secondary(record, mean_and_interval),
            f"Measured in {record['seconds']:.0f} s of computation with "
            f"{', '.join(f'{name} {number}' for name, number in record['versions'].items())}. "
            f"`weathered verify {record['slug']}` measures it again.",
        ]
    )


def mean_and_interval(metric: str, values: Sequence[float]) -> tuple[str, str]:
    """Two cells: the mean over seeds and its interval, cut to [0, 1] where the metric says that range."""
    estimate = (share_interval if ", in [0, 1]" in metric else mean_interval)(values)
    return f"{estimate.value:.3f}", interval_text(estimate.low, estimate.high, ".3f", "not known")


def claims_page(records: dict[str, dict[str, Any] | None]) -> str:
    """The ledger as one table, then each claim with its arms; claims without a record (None) are named."""
    found = {slug: record for slug, record in records.items() if record is not None}
    rows = []
    for slug, record in found.items():
        rows.append(
            (
                f"[{slug}](#{slug})",
                f"{record['main']} - {record['baseline']}",
                f"{record['difference']:+.3f}",
                interval_text(*record["interval"], "+.3f", "not known"),
                str(len(record["seeds"])),
                record["verdict"],
            )
        )
    counts = {verdict: sum(record["verdict"] == verdict for record in found.values()) for verdict in VERDICTS}
    missing = [slug for slug in records if slug not in found]
    blocks = [
        "# Claims",
        "A claim is what a paper says in one sentence, and a program that measures it at small scale, paired over "
        "seeds. `weathered verify` runs the programs and writes the ledger; this page is made from the ledger.",
        "A small scale can show less than a paper: small networks, small data, few seeds. Where "
        "a claim is not shown, or the opposite is, this page says so.",
        f"{len(found)} of {len(records)} claims are measured: "
        + ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        + ".",
    ]
    if rows:
        blocks.append(table(("method", "compared", "difference", "95 % interval", "seeds", "verdict"), rows))
    if missing:
        blocks.append("Not measured yet: " + ", ".join(missing) + ".")
    blocks += [f"## {slug}\n\n{claim_block(record)}" for slug, record in found.items()]
    return "\n\n".join(blocks) + "\n"


def index_page() -> str:
    """All methods by problem, the textbook parts last."""
    blocks = ["# Methods", "Each name is what `--use`, `--arms` and `weathered show` take."]
    for problem, meaning in PROBLEMS.items():
        entries = [entry for entry in ENTRIES if problem in entry.problems]
        blocks.append(f"## {problem}\n\n{meaning[0].upper()}{meaning[1:]}.\n\n{entry_table(entries)}")
    blocks.append("## any problem\n\n" + entry_table(entry for entry in ENTRIES if not entry.problems))
    return "\n\n".join(blocks) + "\n"


def entry_table(entries: Iterable[Entry]) -> str:
    rows = [(link(entry.slug), entry.slot, entry.summary, entry.paper, verdict_of(entry)) for entry in entries]
    return table(("method", "slot", "what it does", "source", "claim"), rows)


def verdict_of(entry: Entry) -> str:
    record = read_ledger(entry.claim)
    return f"[{record['verdict']}](../claims.md#{record['slug']})" if record else ""


def facts_table() -> str:
    """Each fact, what it means, which methods need it and which break it."""
    described = {entry.slug: describe(entry.slug) for entry in ENTRIES}

    def users(kind: str, fact: str) -> str:
        slugs = [slug for slug, facts in described.items() if any(k.partition(":")[0] == fact for k in facts[kind])]
        return ", ".join(f"[{slug}](methods/{slug}.md)" for slug in slugs)

    rows = [(f"`{fact}`", meaning, users("needs", fact), users("breaks", fact)) for fact, meaning in FACTS.items()]
    return table(("fact", "meaning", "needed by", "broken by"), rows) + "\n"


def commands_page() -> str:
    """The help of every command, as the command line prints it."""
    runner, environment = CliRunner(), {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    blocks = []
    for command in app.registered_commands:
        shown = runner.invoke(app, [str(command.name), "--help"], env=environment, prog_name="weathered").output
        blocks.append(f"## weathered {command.name}\n\n```text\n{shown.strip()}\n```")
    return "\n\n".join(blocks) + "\n"


if __name__ == "__main__":
    main()
