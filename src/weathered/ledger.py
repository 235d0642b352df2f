"""The ledger: what each method's claim was measured to be, one JSON file per claim."""

import json
from pathlib import Path
from typing import Any

from weathered.stats import interval_text

CLAIMS = Path(__file__).parents[2] / "claims"
"""The claims of a source checkout; an installed package carries its ledger beside this file."""


def ledger_folder() -> Path:
    """Where ledger files are: in the checkout, else in the package."""
    checkout = CLAIMS / "ledger"
    return checkout if checkout.is_dir() else Path(__file__).parent / "ledger"


def read_ledger(slug: str) -> dict[str, Any] | None:
    """The ledger of one claim, or None if it was never measured."""
    path = ledger_folder() / f"{slug}.json"
    return json.loads(path.read_text()) if path.exists() else None


def ledger_sentence(slug: str) -> str:
    """The measured result of a claim in one sentence."""
    record = read_ledger(slug)
    if record is None:
        return "not yet: the ledger holds no figure for it."
    low, high = record["interval"]
    span = interval_text(low, high, "+.3f", "(interval not known)")
    return (
        f"{record['verdict']}: {record['metric']} on {record['data']}, {record['main']} against {record['baseline']}: "
        f"{record['difference']:+.3f} {span} over {len(record['seeds'])} seeds."
    )
