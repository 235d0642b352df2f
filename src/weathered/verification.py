"""Claims: run what a paper says at small scale, paired over seeds, and write down what came out."""

import importlib.util
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from weathered.core.atomic import write_text
from weathered.core.errors import SpecError
from weathered.core.spec import near
from weathered.ledger import CLAIMS, ledger_folder
from weathered.stats import paired_comparison


@dataclass(frozen=True)
class Claim:
    """What a paper says in one sentence, and how to measure it at small scale.

    arms: names, the baseline and `main` among them. measure(seed) -> arm -> value of `metric`.
    The claim is that `main` is better than `baseline`.
    """

    slug: str
    sentence: str
    data: str
    metric: str
    baseline: str
    main: str
    arms: tuple[str, ...]
    measure: Callable[[int], dict[str, float]]
    higher_is_better: bool = True


def load_claims(names: Sequence[str] = (), folder: Path | None = None) -> dict[str, Claim]:
    """The claims in a folder by slug, all of them or the named ones.

    Raises SpecError for a name without a claim, with a suggestion, or a claim file without its constants.
    """
    folder = folder or CLAIMS
    if not folder.is_dir():
        raise SpecError(f"{folder} is not a folder of claims; run from a source checkout or give --claims FOLDER.")
    files = {path.stem.replace("_", "-"): path for path in sorted(folder.glob("*.py")) if path.stem != "common"}
    for name in names:
        if name not in files:
            raise SpecError(f"no claim '{name}'.{near(name, files)} There are: {', '.join(files)}.")
    return {slug: load_claim(path) for slug, path in files.items() if not names or slug in names}


def load_claim(path: Path) -> Claim:
    """Read one claim file."""
    module = _import_file(path)
    try:
        return Claim(
            slug=module.SLUG,
            sentence=module.SENTENCE,
            data=module.DATA,
            metric=module.METRIC,
            baseline=module.BASELINE,
            main=module.MAIN,
            arms=tuple(module.ARMS),
            measure=module.measure,
            higher_is_better=getattr(module, "HIGHER_IS_BETTER", True),
        )
    except AttributeError as error:
        raise SpecError(f"the claim {path} lacks the constant {error.name}.") from error


def _import_file(path: Path) -> ModuleType:
    # claims share a module of data preparation that lies beside them
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(f"weathered_claim_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise SpecError(f"{path} cannot be imported as a claim.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure_one(path: str, seed: int, threads: int) -> tuple[dict[str, float], float]:
    """One seed of one claim in a worker process: its values and the seconds it took."""
    import torch

    torch.set_num_threads(threads)
    claim = load_claim(Path(path))
    begun = time.monotonic()
    values = claim.measure(seed)
    if set(values) != set(claim.arms):
        raise SpecError(f"the claim {claim.slug} declares the arms {claim.arms} but measured {tuple(values)}.")
    return {name: float(value) for name, value in values.items()}, time.monotonic() - begun


def conclude(claim: Claim, seeds: Sequence[int], measured: Sequence[tuple[dict[str, float], float]]) -> dict[str, Any]:
    """The ledger record of a claim. verdict: `shown` if the interval lies on the claimed side of 0, `reversed` if on
    the other, else `not shown`."""
    values = {arm: [result[arm] for result, _ in measured] for arm in claim.arms}
    comparison = paired_comparison(values[claim.main], values[claim.baseline])
    estimate = comparison.difference
    better, worse = estimate.low > 0, estimate.high < 0
    if not claim.higher_is_better:
        better, worse = worse, better
    return {
        "slug": claim.slug,
        "claim": claim.sentence,
        "data": claim.data,
        "metric": claim.metric,
        "higher_is_better": claim.higher_is_better,
        "arms": list(claim.arms),
        "baseline": claim.baseline,
        "main": claim.main,
        "seeds": list(seeds),
        "values": values,
        "difference": estimate.value,
        "interval": [estimate.low, estimate.high],
        "p_value": comparison.p_value,
        "seconds": sum(seconds for _, seconds in measured),
        "versions": {name: version(name) for name in ("weathered", "torch", "numpy", "scikit-learn")},
        "python": platform.python_version(),
        "verdict": "shown" if better else "reversed" if worse else "not shown",
    }


def write_record(record: dict[str, Any], folder: Path | None = None) -> Path:
    """Write a record to the ledger and return its path."""
    path = (folder or ledger_folder()) / f"{record['slug']}.json"
    write_text(path, json.dumps(record, indent=2) + "\n")
    return path
