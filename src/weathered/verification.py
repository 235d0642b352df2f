"""Claims: run what a paper says at small scale, paired over seeds, and write down what came out."""

import importlib
import importlib.util
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

from weathered.audit.result import plain
from weathered.claim_source import claim_digest
from weathered.core.atomic import write_text
from weathered.core.errors import SpecError
from weathered.core.spec import near
from weathered.ledger import CLAIMS, ledger_folder
from weathered.stats import paired_comparison


class Measured(NamedTuple):
    """One seed of a claim with secondary figures: arm -> value, and secondary metric -> arm -> value."""

    values: Mapping[str, float]
    also: Mapping[str, Mapping[str, float]] = MappingProxyType({})


class SeedResult(NamedTuple):
    """What a seed gave, checked against the claim's arms, and the seconds it took."""

    values: dict[str, float]
    also: dict[str, dict[str, float]]
    seconds: float


@dataclass(frozen=True)
class Claim:
    """What a paper says in one sentence, and how to measure it at small scale.

    arms: names, the baseline and `main` among them. measure(seed) -> arm -> value of `metric`, or `Measured`.
    The claim is that `main` is better than `baseline`. also: secondary metrics, kept without a verdict.
    seeds: how many seeds, from 0, the ledger's figures take. digest: of the code behind `measure`.
    """

    slug: str
    sentence: str
    data: str
    metric: str
    baseline: str
    main: str
    arms: tuple[str, ...]
    measure: Callable[[int], Mapping[str, float] | Measured]
    higher_is_better: bool = True
    seeds: int = 3
    also: tuple[str, ...] = ()
    digest: str = ""


def load_claims(names: Sequence[str] = (), folder: Path | None = None) -> dict[str, Claim]:
    """The claims in a folder by slug, all of them or the named ones.

    Raises SpecError for a name without a claim, with a suggestion, or a claim file that cannot be used.
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
    """Read one claim file. Raises SpecError if it cannot be imported or lacks a constant."""
    module = _import_file(path)
    try:
        also = tuple(getattr(module, "ALSO", ()))
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
            seeds=getattr(module, "SEEDS", 3),
            also=also,
            digest=claim_digest(path, (module.SENTENCE, module.DATA, module.METRIC, *also)),
        )
    except AttributeError as error:
        raise SpecError(f"the claim {path} lacks the constant {error.name}.") from error


def _import_file(path: Path) -> ModuleType:
    name = f"weathered_claim_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SpecError(f"{path} cannot be imported as a claim.")
    module = importlib.util.module_from_spec(spec)
    with _neighbours(path.parent):
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise SpecError(f"{path} cannot be imported as a claim: {type(error).__name__}: {error}.") from error
        finally:
            del sys.modules[name]
    return module


@contextmanager
def _neighbours(folder: Path) -> Iterator[None]:
    """Let a claim import the files beside it and leave no trace: another folder may use the same names."""
    names = {path.stem for path in folder.glob("*.py")}
    hidden = {name: sys.modules.pop(name) for name in names & sys.modules.keys()}
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(hidden)


def measure_one(path: str, seed: int, threads: int, digest: str | None = None) -> SeedResult:
    """One seed of one claim in a worker process.

    Raises SpecError if arms or secondary metrics are not as declared, or the claim's digest is another than asked for.
    """
    import torch

    torch.set_num_threads(threads)
    claim = load_claim(Path(path))
    if digest not in (None, claim.digest):
        raise SpecError(f"the claim {claim.slug} changed while it was measured; run it again.")
    begun = time.monotonic()
    found = claim.measure(seed)
    seconds = time.monotonic() - begun
    measured = found if isinstance(found, Measured) else Measured(found)
    if set(measured.also) != set(claim.also):
        raise SpecError(
            f"the claim {claim.slug} declares the secondary metrics {claim.also} but measured {tuple(measured.also)}."
        )
    return SeedResult(
        _of_arms(claim, measured.values), {name: _of_arms(claim, measured.also[name]) for name in claim.also}, seconds
    )


def _of_arms(claim: Claim, values: Mapping[str, float]) -> dict[str, float]:
    if set(values) != set(claim.arms):
        raise SpecError(f"the claim {claim.slug} declares the arms {claim.arms} but measured {tuple(values)}.")
    for arm, value in values.items():
        if not math.isfinite(value):
            raise SpecError(f"the claim {claim.slug} measured {value} for the arm '{arm}'.")
    return {arm: float(values[arm]) for arm in claim.arms}


def conclude(
    claim: Claim, seeds: Sequence[int], measured: Sequence[SeedResult], threads: int | None = None, package: str = ""
) -> dict[str, Any]:
    """The ledger record of a claim, as JSON can hold it: an interval that is not known is null on both sides.

    threads: of each process that measured. package: digest of the package when measuring began.
    verdict: `shown` if the interval lies on the claimed side of 0, `reversed` if on the other, else `not shown`.
    Raises ValueError unless each seed has its result.
    """
    if len(measured) != len(seeds):
        raise ValueError(f"{len(seeds)} seeds but {len(measured)} results; a record needs all of them")
    values = {arm: [result.values[arm] for result in measured] for arm in claim.arms}
    comparison = paired_comparison(values[claim.main], values[claim.baseline])
    estimate = comparison.difference
    better, worse = estimate.low > 0, estimate.high < 0
    if not claim.higher_is_better:
        better, worse = worse, better
    record = {
        "slug": claim.slug,
        "claim": claim.sentence,
        "data": claim.data,
        "metric": claim.metric,
        "higher_is_better": claim.higher_is_better,
        "arms": claim.arms,
        "baseline": claim.baseline,
        "main": claim.main,
        "seeds": tuple(seeds),
        "values": values,
        "also": [
            {"metric": name, "values": {arm: [result.also[name][arm] for result in measured] for arm in claim.arms}}
            for name in claim.also
        ],
        "difference": estimate.value,
        "interval": (estimate.low, estimate.high),
        "p_value": comparison.p_value,
        "seconds": sum(result.seconds for result in measured),
        "versions": {name: version(name) for name in ("weathered", "torch", "numpy", "scikit-learn")},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": threads,
        "source": {"claim": claim.digest, "package": package},
        "verdict": "shown" if better else "reversed" if worse else "not shown",
    }
    return plain(record)


def reworded(record: Mapping[str, Any], claim: Claim) -> dict[str, Any]:
    """A ledger record with the claim's present words for the sentence, the data and the metrics, and its own figures.

    For words alone: where data or arms themselves change, only a new measurement is honest. Raises SpecError where the
    record was measured on other arms, another direction or another number of secondary metrics, or by other code; a
    record without a digest does not say by which.
    """
    before = (record["main"], record["baseline"], tuple(record["arms"]), record["higher_is_better"])
    also = record.get("also", [])
    after = (claim.main, claim.baseline, claim.arms, claim.higher_is_better)
    code = record.get("source", {}).get("claim", claim.digest)
    if after != before or len(also) != len(claim.also) or code != claim.digest:
        raise SpecError(f"the claim {claim.slug} changed more than its words; run 'weathered verify {claim.slug}'.")
    words: dict[str, Any] = {"claim": claim.sentence, "data": claim.data, "metric": claim.metric}
    if also:
        words["also"] = [{**kept, "metric": name} for kept, name in zip(also, claim.also, strict=True)]
    return {**record, **words}


def reword_ledger(names: Sequence[str] = (), folder: Path | None = None) -> list[Path]:
    """Write the present words of all or the named claims into the ledger files that differ, and return their paths."""
    changed = []
    for slug, claim in load_claims(names, folder).items():
        path = (folder / "ledger" if folder else ledger_folder()) / f"{slug}.json"
        if not path.exists():
            continue
        record = json.loads(path.read_text())
        if (new := reworded(record, claim)) != record:
            changed.append(write_record(new, path.parent))
    return changed


def write_record(record: Mapping[str, Any], folder: Path | None = None) -> Path:
    """Write a record to the ledger and return its path."""
    path = (folder or ledger_folder()) / f"{record['slug']}.json"
    write_text(path, json.dumps(record, indent=2, allow_nan=False) + "\n")
    return path
