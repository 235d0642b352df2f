"""Attacks by name, as on the command line: `pgd:steps=50`."""

from collections.abc import Sequence

from weathered.assemble import entry_of, import_part
from weathered.attacks.base import Attack, Norm, check_budget
from weathered.core.errors import SpecError
from weathered.core.spec import check_options, near, parse
from weathered.registry import TABLE

BUDGET = ("epsilon", "norm", "early_stop")
"""What one audit gives to all of its attacks."""

DEFAULT = ("fgsm", "pgd", "attack-ensemble")
CLIP_DEFAULT = ("fgsm", "pgd", "apgd-ce", "apgd-t")
"""Attacks of an audit where none are named, of images and of clips."""


def build_attacks(specs: Sequence[str], epsilon: float, norm: Norm) -> dict[str, Attack]:
    """Attacks of one budget by their specs, in the order given; a bundle stands for its parts.

    Raises SpecError for names that are no attack, given twice, or with options that do not fit.
    """
    try:
        check_budget(epsilon, norm)
    except ValueError as error:
        raise SpecError(f"{error}.") from None
    known = [entry.slug for entry in TABLE.values() if entry.slot == "attack"]
    if not specs:
        raise SpecError(f"expected at least one attack; there are: {', '.join(known)}.")
    found: dict[str, Attack] = {}
    for spec in specs:
        slug, options = parse(spec)
        if slug not in known:
            raise SpecError(f"no attack '{slug}'.{near(slug, known)} There are: {', '.join(known)}.")
        entry = entry_of(slug)
        if entry.parts and options:
            raise SpecError(f"{slug} takes no options; name its attacks instead: {', '.join(entry.parts)}.")
        for part in entry.parts or (slug,):
            kind = import_part(entry_of(part))
            if entry.parts and norm not in kind.norms:
                continue
            name = spec if not entry.parts else part
            if name in found:
                raise SpecError(f"the attack {name} is there twice{' (once in ' + slug + ')' if entry.parts else ''}.")
            check_options(part, kind, options, hidden=BUDGET)
            try:
                found[name] = kind(epsilon=epsilon, norm=norm, **options)
            except ValueError as error:
                raise SpecError(f"{part}: {error}.") from None
    return found


def parse_length(text: str) -> float:
    """A number or a fraction such as 8/255. Raises SpecError for anything else."""
    top, slash, bottom = text.partition("/")
    try:
        return float(top) / float(bottom) if slash else float(top)
    except (ValueError, ZeroDivisionError):
        raise SpecError(f"'{text}' is no length; write a number such as 0.1, or a fraction such as 8/255.") from None
