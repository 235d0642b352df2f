"""Hook of mkdocs: the entry "Methods" of the navigation, filled from the registry by slot."""

from typing import Any

from weathered.registry import ENTRIES


def on_config(config: Any) -> Any:
    """Replace the item `Methods: methods/index.md` by that page and one page per method, grouped by slot."""
    config.nav = [
        {"Methods": ["methods/index.md", *by_slot()]} if item == {"Methods": "methods/index.md"} else item
        for item in config.nav
    ]
    return config


def by_slot() -> list[dict[str, Any]]:
    groups: dict[str, list[str]] = {}
    for entry in ENTRIES:
        groups.setdefault(entry.slot, []).append(entry.slug)
    return [{slot: [{slug: f"methods/{slug}.md"} for slug in slugs]} for slot, slugs in groups.items()]
