"""Markdown from rows and from entries of the registry."""

import re
from collections.abc import Iterable, Sequence

from weathered.assemble import import_part, resolve
from weathered.core.facts import traits_of
from weathered.registry import NOISE, TABLE, TAIL, TRAINING_SLOTS, Entry
from weathered.tricks.base import Trick

SPECS = {
    "backdoor": "backdoor:rate=0.05",
    "absgd": "absgd:temperature=-1",
    "corrections": "corrections:file=corrections.csv",
    "distillation": "distillation:teacher=runs/TEACHER",
    "corruption": "corruption:kind=fog,severity=3",
    "forward-correction": "forward-correction:noise_rate=0.4",
    "one-of": "one-of:parts=['mixup','cutmix']",
    "shortcut": "shortcut:kind=patch,halves=true",
    "open-set": "open-set:rate=0.2,source='npz:other.npz'",
}
"""How commands name a method that cannot do without an option."""

DISTANCES = " --model linf-net --optimizer adam --lr 0.03 --weight-decay 0"
"""The network, and the settings, of methods that are made for layers of distances."""

BLOCKS = " --make shortcut:halves=true --model chroma-vae --optimizer adam --lr 0.002 --weight-decay 0"
"""The network, and data and settings that show it, of a method that is made for two blocks of latents."""

FLAWS = {"symmetric": "--noise", "asymmetric": "--noise", "instance": "--noise", "long-tail": "--long-tail"}
"""Makers with an option of the command line of their own; a recipe takes all of them."""


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table; cells are markdown, their bars are escaped."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    rule = "|" + "---|" * len(headings)
    return "\n".join([line(headings), rule, *(line(row) for row in rows)])


def command_lines(entry: Entry) -> str:
    """How to use the method from the command line."""
    lines = "```bash\n" + "\n".join([f"weathered show {entry.slug}", *_uses(entry)]) + "\n```"
    if entry.slot == "maker" and entry.slug not in FLAWS:
        lines += f'\n\nIn a recipe:\n\n```toml\n[data]\nmake = ["{SPECS[entry.slug]}"]\n```'
    return lines


def _uses(entry: Entry) -> list[str]:
    flaw = ""
    if NOISE in entry.problems:
        flaw = " --noise symmetric:0.4"
    elif TAIL in entry.problems:
        flaw = " --long-tail 50"
    flaw += " --model resnet:small=true" if _changes_resnet(entry) else ""
    flaw += "".join(f" --aux {name}=patches" for name in _streams(entry))
    flaw += DISTANCES if _needs(entry, "linf_distances") else ""
    flaw += BLOCKS if _needs(entry, "latent_blocks") else ""
    # no other procedure trains that network
    usual = f"{entry.slug}:label_weight=0" if _needs(entry, "latent_blocks") else "ce"
    spec = SPECS.get(entry.slug, entry.slug)
    needs = traits_of(import_part(entry)).needs if entry.path else {}
    if "caption" in needs:
        host = "" if entry.slot == "procedure" else " --use contrastive"
        lines = [f"weathered train captions:400{host} --use {_quoted(spec)}"]
        return lines + [f"weathered compare captions:400{host} --arms plain,{_quoted(spec)} --seeds 3"] * bool(host)
    if entry.slot in (*TRAINING_SLOTS, "learner", "few-shot", "bundle", "trick"):
        lines = [f"weathered train digits{flaw} --use {_quoted(spec)}"]
        spelled = " ".join(f"--use {_quoted(str(use))}" for use in resolve([spec]))
        if ":" in spelled:
            lines.append(f"weathered train digits{flaw} {spelled} --dry-run")
        if entry.slot == "probe":
            lines.append(f"weathered compare digits{flaw} --use {_quoted(spec)} --arms ce,mixup --seeds 3")
        elif entry.problems and entry.slot not in ("learner", "few-shot"):
            lines.append(f"weathered compare digits{flaw} --arms {_quoted(f'{usual},{spec}')} --seeds 3")
        return lines
    if entry.slot == "maker":
        made = {"--long-tail": "50", "--noise": f"{entry.slug}:0.4"}
        if entry.slug == "shortcut":
            return [f"weathered train digits --make {_quoted(spec)}"]
        if entry.slug == "corrections":
            return ["weathered train photos/ --labels corrections.csv"]
        option = FLAWS.get(entry.slug)
        return [f"weathered train digits {option} {made[option]}"] if option else []
    return {
        "attack": [f"weathered audit runs/RUN --audits robustness --attacks {entry.slug} --epsilon 8/255 --limit 200"],
        "score": [f"weathered audit runs/RUN --audits ood --scores {entry.slug}"],
        "ensemble": ["weathered audit runs/FIRST runs/SECOND runs/THIRD --audits ood --scores energy"],
        "set": ["weathered audit runs/RUN --audits sets"],
        "selection": ["weathered select runs/FIRST runs/SECOND runs/THIRD --delta 0.3 --window 0.1"],
        "certificate": [f"weathered audit runs/RUN --audits certified{' --sigma 0.25' * (entry.slug == 'smoothing')}"],
    }[entry.slot]


def _needs(entry: Entry, fact: str) -> bool:
    return bool(entry.path) and fact in traits_of(import_part(entry)).needs


def _streams(entry: Entry) -> list[str]:
    """The names of the auxiliary data that the method cannot do without."""
    needs = traits_of(import_part(entry)).needs if entry.path else {}
    return [fact.partition(":")[2] for fact in needs if fact.startswith("aux:")]


def _changes_resnet(entry: Entry) -> bool:
    """Whether the method, or a part of it, sets an option that the model resnet alone has."""
    slugs = entry.parts or (entry.slug,)
    tricks = [import_part(TABLE[slug]) for slug in slugs if TABLE[slug].slot == "trick"]
    return any(trick.model is not Trick.model for trick in tricks)


def _quoted(spec: str) -> str:
    mark = '"' if "'" in spec else "'"
    return f"{mark}{spec}{mark}" if re.search(r"[^\w:=.,+-]", spec) else spec
