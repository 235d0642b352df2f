"""Claims as files: read without a trace, measured apart from each other, and a ledger that says what they say."""

import json
import math
import sys
from dataclasses import replace

import pytest
import torch

from weathered.__main__ import main
from weathered.claim_source import package_digest
from weathered.cli.verifying import ledger_table
from weathered.core.errors import SpecError
from weathered.data.dataset import Dataset
from weathered.ledger import CLAIMS, ledger_sentence, read_ledger
from weathered.verification import (
    Claim,
    Measured,
    SeedResult,
    conclude,
    load_claim,
    load_claims,
    measure_one,
    reword_ledger,
    reworded,
    write_record,
)

FILE = """
from dataclasses import dataclass

from common import VALUE
from weathered.verification import Measured

SLUG, SENTENCE, DATA, METRIC = "{slug}", "A beats B.", "none", "accuracy"
BASELINE, MAIN, ARMS = "b", "a", ("b", "a")
SEEDS = {seeds}
ALSO = ("time",)


@dataclass
class Arm:
    value: "float"


def measure(seed):
    if seed == {bad}:
        raise RuntimeError("no luck\\nat all")
    return Measured({{"a": Arm(VALUE + seed / 8).value, "b": seed / 4}}, {{"time": {{"a": 1.0, "b": seed}}}})
"""


def write_claim(folder, slug="x", seeds=2, bad=None, value=1.0):
    folder.mkdir(exist_ok=True)
    (folder / "common.py").write_text(f"VALUE = {value}\n")
    path = folder / f"{slug}.py"
    path.write_text(FILE.format(slug=slug, seeds=seeds, bad=bad))
    return path


def claim(**changes) -> Claim:
    return replace(Claim("x", "s", "d", "m", "b", "a", ("b", "a"), lambda seed: {}), **changes)


def results(a, b, also=()):
    """One result per seed: the values of arm a and arm b, repeated as each secondary metric."""
    seeds = [{"a": x, "b": y} for x, y in zip(a, b, strict=True)]
    return [SeedResult(values, dict.fromkeys(also, values), 1.0) for values in seeds]


def test_folders_with_other_common_modules_work_in_one_process_and_leave_no_trace(tmp_path, monkeypatch):
    own = type(sys)("common")
    monkeypatch.setitem(sys.modules, "common", own)
    before, path = set(sys.modules), list(sys.path)
    one = load_claim(write_claim(tmp_path / "one", value=1.0))
    two = load_claim(write_claim(tmp_path / "two", value=2.0))
    assert [one.measure(0), two.measure(0)] == [
        ({"a": 1.0, "b": 0.0}, {"time": {"a": 1.0, "b": 0}}),
        ({"a": 2.0, "b": 0.0}, {"time": {"a": 1.0, "b": 0}}),
    ]
    assert sys.path == path
    assert set(sys.modules) == before
    assert sys.modules["common"] is own


def test_a_claim_that_cannot_be_imported_leaves_no_trace_either(tmp_path):
    path, before = write_claim(tmp_path), list(sys.path)
    path.write_text("import common\nimport nothing_of_this_name\n")
    with pytest.raises(SpecError, match="x.py cannot be imported as a claim: ModuleNotFoundError: No module named"):
        load_claim(path)
    assert sys.path == before
    assert "common" not in sys.modules
    path.write_text("SLUG = 'x'\n")
    with pytest.raises(SpecError, match="lacks the constant SENTENCE"):
        load_claim(path)


def test_a_failing_seed_stops_neither_other_claims_nor_replaces_its_record(tmp_path, monkeypatch, capsys):
    write_claim(tmp_path, "bad", seeds=3, bad=1)
    write_claim(tmp_path, "good", seeds=2)
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "bad.json").write_text("measured before")
    monkeypatch.setattr("sys.argv", ["weathered", "verify", "--claims", str(tmp_path), "--workers", "1", "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert "failed: bad: seed 1: RuntimeError: no luck" in captured.err
    assert "error: 1 of 2 claims failed; their ledger files are as they were." in captured.err
    assert (tmp_path / "ledger" / "bad.json").read_text() == "measured before"
    record = json.loads((tmp_path / "ledger" / "good.json").read_text())
    assert record["seeds"] == [0, 1]
    assert record["values"] == {"b": [0.0, 0.25], "a": [1.0, 1.125]}
    assert record["also"] == [{"metric": "time", "values": {"b": [0.0, 1.0], "a": [1.0, 1.0]}}]
    assert record["source"] == {"claim": load_claim(tmp_path / "good.py").digest, "package": package_digest()}
    assert record["threads"] >= 1
    assert record["platform"]
    good, bad = json.loads(captured.out)
    assert good == record
    assert bad["slug"] == "bad"
    assert "no luck" in bad["error"]


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        (Measured({"a": 1.0}, {"time": {"a": 1.0, "b": 1.0}}), "declares the arms"),
        ({"a": 1.0, "b": 1.0}, "declares the secondary metrics"),
        (Measured({"a": 1.0, "b": 1.0}, {"time": {"a": 1.0}}), "declares the arms"),
        (Measured({"a": 1.0, "b": 1.0}, {"time": {"a": 1.0, "b": math.nan}}), "measured nan for the arm 'b'"),
    ],
)
def test_what_is_measured_is_what_was_declared(tmp_path, measured, message):
    path = write_claim(tmp_path)
    head = path.read_text().partition("def measure")[0]
    path.write_text(f"{head}nan = float('nan')\nmeasure = lambda _: {measured}")
    with pytest.raises(SpecError, match=message):
        measure_one(str(path), 0, torch.get_num_threads())


def test_a_record_needs_all_seeds():
    with pytest.raises(ValueError, match="3 seeds but 2 results"):
        conclude(claim(), range(3), results([1, 2], [0, 0]))


@pytest.mark.parametrize(("a", "b"), [([0.7], [0.5]), ([0.75, 0.875], [0.5, 0.625])])
def test_an_unknown_interval_is_null_and_every_reader_copes(tmp_path, monkeypatch, a, b):
    record = conclude(claim(), range(len(a)), results(a, b))
    assert record["interval"] == [None, None]
    assert record["verdict"] == "not shown"

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    text = write_record(record, tmp_path / "ledger").read_text()
    assert json.loads(text, parse_constant=refuse) == record
    monkeypatch.setattr("weathered.ledger.CLAIMS", tmp_path)
    assert f"{a[0] - b[0]:+.3f} (interval not known) over {len(a)} seeds." in ledger_sentence("x")
    assert list(ledger_table([record]).columns[4].cells) == ["-"]


@pytest.fixture(scope="module")
def claims() -> dict[str, Claim]:
    return load_claims()


SLUGS = sorted(path.stem for path in (CLAIMS / "ledger").glob("*.json"))


@pytest.mark.parametrize("slug", SLUGS)
def test_the_ledger_says_what_the_claim_says(claims, slug):
    """On failure: where only words changed, `make claim-words` writes them; otherwise measure again."""
    said, record = claims[slug], read_ledger(slug)
    assert record is not None
    assert reworded(record, said) == record
    assert record["slug"] == said.slug == slug
    assert record["seeds"] == list(range(said.seeds))
    for values in (record["values"], *(found["values"] for found in record.get("also", []))):
        assert list(values) == list(said.arms)
        assert all(len(found) == said.seeds for found in values.values())


def test_every_record_belongs_to_a_claim(claims):
    assert set(SLUGS) <= set(claims)


def test_new_words_reach_the_ledger_and_leave_its_figures(tmp_path):
    path = write_claim(tmp_path)
    record = conclude(load_claim(path), range(2), results([1.0, 1.2], [0.5, 0.6], ["time"]))
    written = write_record(record, tmp_path / "ledger")
    assert reword_ledger(folder=tmp_path) == []
    path.write_text(path.read_text().replace("A beats B.", "A is better.").replace('"time"', '"seconds"'))
    assert reword_ledger(folder=tmp_path) == [written]
    new = json.loads(written.read_text())
    assert new["claim"] == "A is better."
    assert new["also"] == [{**record["also"][0], "metric": "seconds"}]
    assert {**new, "claim": record["claim"], "also": record["also"]} == record


@pytest.mark.parametrize(
    "changes",
    [{"arms": ("b", "a", "c")}, {"main": "b"}, {"baseline": "a"}, {"higher_is_better": False}, {"also": ("time",)}],
)
def test_more_than_words_must_be_measured(changes):
    record = conclude(claim(), range(2), results([1.0, 1.2], [0.5, 0.6]))
    assert reworded(record, claim(sentence="other"))["claim"] == "other"
    with pytest.raises(SpecError, match="changed more than its words; run 'weathered verify x'"):
        reworded(record, claim(**changes))


WORDS_ONLY = [
    ("x.py", "A beats B.", "A is better."),
    ("x.py", '"accuracy"', '"share of right answers"'),
    ("x.py", '"time"', '"seconds"'),
    ("x.py", "def measure(seed):\n", 'def measure(seed):\n    """One seed."""\n\n    # a comment\n'),
    ("x.py", 'value: "float"', 'value: (\n        "float"\n    )'),
    ("common.py", "VALUE = 1.0\n", "VALUE = 1.0\nOTHER = 2.0\n"),
    ("common.py", "VALUE = 1.0\n", '"""What claims share."""\n\nVALUE = 1.0\n'),
]
CODE = [
    ("x.py", "seed / 8", "seed / 9"),
    ("x.py", "seed / 8", "seed * 8"),
    ("x.py", "if seed == None:", "if seed == 3:"),
    ("x.py", "SEEDS = 2", "SEEDS = 2\nEPOCHS = 3"),
    ("x.py", "import Measured", "import Claim as Measured"),
    ("common.py", "VALUE = 1.0\n", "VALUE = 1.5\n"),
    ("common.py", "VALUE = 1.0\n", "BASE = 1.0\nVALUE = BASE\n"),
]


@pytest.mark.parametrize(("name", "old", "new"), WORDS_ONLY)
def test_words_leave_the_digest_of_a_claim(tmp_path, name, old, new):
    path = write_claim(tmp_path)
    before = load_claim(path).digest
    other = tmp_path / name
    assert old in other.read_text()
    other.write_text(other.read_text().replace(old, new))
    assert load_claim(path).digest == before


@pytest.mark.parametrize(("name", "old", "new"), CODE)
def test_changed_code_of_a_claim_or_its_neighbours_must_be_measured(tmp_path, name, old, new):
    path = write_claim(tmp_path)
    record = conclude(load_claim(path), range(2), results([1.0, 1.2], [0.5, 0.6], ["time"]))
    other = tmp_path / name
    assert old in other.read_text()
    other.write_text(other.read_text().replace(old, new))
    with pytest.raises(SpecError, match="changed more than its words; run 'weathered verify x'"):
        reworded(record, load_claim(path))
    # records from before digests were kept do not say what they were measured with
    del record["source"]
    assert reworded(record, load_claim(path)) == record


def test_what_a_neighbour_uses_itself_counts_and_the_rest_does_not(tmp_path):
    path = write_claim(tmp_path)
    shared = "from math import pi, tau\n\ndef half():\n    return {} * pi\n\nUNUSED = {}\nVALUE = half()\n"
    digests = []
    for factor, unused in ((0.5, 1), (0.5, 2), (0.6, 1)):
        (tmp_path / "common.py").write_text(shared.format(factor, unused))
        digests.append(load_claim(path).digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_claim_that_changes_while_it_is_measured_is_refused(tmp_path):
    path = write_claim(tmp_path)
    before, threads = load_claim(path).digest, torch.get_num_threads()
    assert measure_one(str(path), 0, threads, before).values == {"a": 1.0, "b": 0.0}
    path.write_text(path.read_text().replace("seed / 8", "seed / 9"))
    with pytest.raises(SpecError, match="the claim x changed while it was measured; run it again"):
        measure_one(str(path), 0, threads, before)


def test_memorised_counts_wrong_labels_only():
    memorised = load_claim(CLAIMS / "jocor.py").measure.__globals__["memorised"]
    clean, given = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 1, 0, 2])
    noisy = Dataset.of(torch.zeros(4, 2), given, ("x", "y", "z")).replace(clean_labels=clean)
    assert memorised(torch.eye(3)[given], noisy) == 1.0
    assert memorised(torch.eye(3)[clean], noisy) == 0.0
    assert memorised(torch.eye(3)[torch.tensor([1, 0, 2, 0])], noisy) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="known to be wrong"):
        memorised(torch.eye(3)[clean], noisy.replace(labels=clean))
