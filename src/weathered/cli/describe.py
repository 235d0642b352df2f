"""What `weathered show` and the documentation say of a method, read off its code and its ledger."""

import inspect
from collections.abc import Mapping
from typing import Any

from weathered.assemble import FILLED, entry_of, import_part
from weathered.cli.snippets import snippet
from weathered.core.facts import Traits
from weathered.core.spec import describe as describe_type
from weathered.core.spec import option_types, parameters
from weathered.ledger import ledger_sentence


def describe(slug: str) -> dict[str, Any]:
    """Everything known of one method, as plain data."""
    entry = entry_of(slug)
    parts = [import_part(entry_of(part)) for part in entry.parts] or [import_part(entry)]
    needs: dict[str, str] = {}
    breaks: dict[str, str] = {}
    options: dict[str, str] = {}
    honours: set[str] = set()
    for part in parts:
        traits = getattr(part, "traits", Traits())
        needs |= traits.needs
        breaks |= traits.breaks
        honours |= traits.honours
        options |= _options(part, dict(entry.defaults))
    return {
        "slug": entry.slug,
        "slot": entry.slot,
        "problems": list(entry.problems),
        "paper": entry.paper,
        "summary": entry.summary,
        "parts": list(entry.parts),
        "options": options,
        "needs": needs,
        "breaks": breaks,
        "honours": sorted(honours),
        "documentation": "\n\n".join(
            (f"{slug}: " if entry.parts else "") + (inspect.getdoc(part) or "")
            for slug, part in zip(entry.parts or (entry.slug,), parts, strict=True)
        ),
        "alone": snippet(entry.slug),
        "measured": ledger_sentence(entry.claim),
    }


def _options(part: Any, defaults: Mapping[str, Any]) -> dict[str, str]:
    hints = option_types(part)
    found = {}
    for name, parameter in parameters(part).items():
        if name in FILLED:
            found[name] = "filled by the data"
        else:
            value = defaults.get(name, parameter.default)
            default = "" if value is parameter.empty else f", default {value!r}"
            found[name] = describe_type(hints.get(name, parameter.annotation)) + default
    return found
