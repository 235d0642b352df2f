"""The store of decisions: nothing is lost, nothing is stored twice, only one's own last decision is undone."""

import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from weathered.core.errors import DataError, SpecError
from weathered.review.standing import DISPUTED, SKIPPED, UNDECIDED, UNTOUCHED, Standing, resolve
from weathered.review.store import ReviewStore, fingerprint

ROWS, CLASSES = 4, 3
PEOPLE = ("ann", "bob", "eve")


def action_of(label: int | None):
    return "skip" if label is None else "relabel"


class Reviewing(RuleBasedStateMachine):
    """Store and standing against a model: for each reviewer the list of decisions in force, last one last."""

    @initialize()
    def begin(self):
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.store = ReviewStore(Path(self.folder.name) / "review.sqlite", "audit")
        self.standing = Standing(ROWS)
        self.in_force: dict[str, list[tuple[int, int | None]]] = {name: [] for name in PEOPLE}
        self.sent: list[tuple] = []
        self.lines = 0

    def teardown(self):
        if hasattr(self, "store"):
            self.store.close()
            self.folder.cleanup()

    @rule(row=st.integers(0, ROWS - 1), name=st.sampled_from(PEOPLE), label=st.none() | st.integers(0, CLASSES - 1))
    def decide(self, row, name, label):
        key = f"key-{len(self.sent):08}"
        self.store.decide(row, name, action_of(label), label, 0, key)
        self.sent.append((row, name, label, key))
        self.in_force[name].append((row, label))
        self.lines += 1

    @rule(name=st.sampled_from(PEOPLE), number=st.integers(0, 10**6))
    def undo(self, name, number):
        line = self.store.undo(name, f"undo-{self.lines:08}-{number}")
        if not self.in_force[name]:
            assert line is None
            return
        row, _ = self.in_force[name].pop()
        assert line is not None
        assert line.row == row
        self.lines += 1

    @rule(data=st.data())
    def repeat(self, data):
        if self.sent:
            row, name, label, key = data.draw(st.sampled_from(self.sent))
            self.store.decide(row, name, action_of(label), label, 0, key)

    @rule()
    def open_again(self):
        self.store.close()
        self.store = ReviewStore(Path(self.folder.name) / "review.sqlite", "audit")

    @rule()
    def follow_from_the_start(self):
        self.standing = Standing(ROWS)

    @invariant()
    def agrees(self):
        if not hasattr(self, "store"):
            return
        self.standing.follow(self.store.since(self.standing.last))
        assert len(self.store.since()) == self.lines
        for row in range(ROWS):
            current = {}
            for name, made in self.in_force.items():
                labels = [label for where, label in made if where == row]
                if labels:
                    current[name] = labels[-1]
            assert {n: d.label for n, d in self.standing.current(row).items()} == current
            votes = Counter(label for label in current.values() if label is not None)
            assert bool(self.standing.disagreement[row]) == (len(votes) > 1)
            winners = [label for label, count in votes.items() if 2 * count > votes.total()]
            expected = winners[0] if winners else DISPUTED if votes else UNDECIDED
            assert self.standing.label[row] == expected
            for name in PEOPLE:
                own = self.standing.own(name)[row]
                label = current.get(name, UNTOUCHED)
                assert own == (SKIPPED if label is None else label)
        for name, made in self.in_force.items():
            last = self.standing.last_of(name)
            assert (last is None) == (not made)
            assert last is None or (last.row, last.label) == made[-1]


TestReviewing = Reviewing.TestCase
TestReviewing.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


@pytest.fixture
def store(tmp_path):
    opened = ReviewStore(tmp_path / "review.sqlite", "audit")
    yield opened
    opened.close()


def test_threads_lose_nothing_and_each_undoes_only_its_own(store):
    def work(name: str) -> None:
        for number in range(30):
            store.decide(number % ROWS, name, "relabel", number % CLASSES, 0, f"{name}-{number:06}")
            if number % 5 == 4:
                store.undo(name, f"{name}-undo-{number:06}")

    threads = [threading.Thread(target=work, args=(f"person {i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = store.since()
    assert Counter(line.action for line in lines) == {"relabel": 240, "undo": 48}
    assert [line.id for line in lines] == sorted({line.id for line in lines})
    made = {line.id: line for line in lines}
    assert all(made[line.undone].reviewer == line.reviewer for line in lines if line.undone is not None)
    assert all(made[line.undone].row == line.row for line in lines if line.undone is not None)


WRITER = """
import sys
from pathlib import Path
from weathered.review.store import ReviewStore
store = ReviewStore(Path(sys.argv[1]), "audit")
for number in range(50):
    store.decide(number, sys.argv[2], "relabel", 1, 0, f"{sys.argv[2]}-{number:06}")
"""


def test_processes_that_begin_at_once_lose_nothing(tmp_path):
    path = tmp_path / "labels" / "review.sqlite"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), f"process {i}"]) for i in range(3)]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
    store = ReviewStore(path, "audit")
    assert Counter(line.reviewer for line in store.since()) == {f"process {i}": 50 for i in range(3)}
    store.close()


def test_a_key_stands_for_one_decision(store):
    first = store.decide(1, "ann", "relabel", 2, 0, "key-00000001")
    assert store.decide(1, "ann", "relabel", 2, 0, "key-00000001") == first
    for other in (
        (2, "ann", "relabel", 2),
        (1, "bob", "relabel", 2),
        (1, "ann", "relabel", 1),
        (1, "ann", "skip", None),
    ):
        with pytest.raises(SpecError, match="sent before"):
            store.decide(*other, 0, "key-00000001")
    with pytest.raises(SpecError, match="sent before"):
        store.undo("ann", "key-00000001")
    undone = store.undo("ann", "key-00000002")
    assert store.undo("ann", "key-00000002") == undone
    assert len(store.since()) == 2


def test_lines_are_never_changed_or_removed(store):
    store.decide(1, "ann", "relabel", 2, 0, "key-00000001")
    before = store.since()
    db = sqlite3.connect(store.path)
    for statement in ("DELETE FROM decisions", "UPDATE decisions SET label = 0"):
        with pytest.raises(sqlite3.IntegrityError, match="decisions are never"):
            db.execute(statement)
    db.close()
    assert store.since() == before


def test_the_file_is_written_ahead_and_to_the_disk(store):
    assert store._held.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._held.execute("PRAGMA synchronous").fetchone() == (2,)


def test_decisions_on_other_labels_are_refused(tmp_path):
    labels, rows = np.array([0, 1, 1]), np.array([5, 6, 9])
    marks = {
        fingerprint(labels, rows, ("a", "b")),
        fingerprint(np.array([0, 1, 0]), rows, ("a", "b")),
        fingerprint(labels, np.array([5, 6, 8]), ("a", "b")),
        fingerprint(labels, rows, ("b", "a")),
        fingerprint(labels, rows, ("a", "b", "c")),
    }
    assert len(marks) == 5
    first, second, *_ = marks
    ReviewStore(tmp_path / "review.sqlite", first).close()
    with pytest.raises(DataError, match="holds decisions on other labels"):
        ReviewStore(tmp_path / "review.sqlite", second)
    ReviewStore(tmp_path / "review.sqlite", first).close()


def test_a_file_that_is_no_database_is_one_sentence(tmp_path):
    (tmp_path / "review.sqlite").write_text("not a database, but long enough to be read as the head of one" * 20)
    with pytest.raises(DataError, match="the decisions cannot be kept there"):
        ReviewStore(tmp_path / "review.sqlite", "audit")


def test_secrets_are_stored_as_digests(store):
    store.add_session("the secret", "ann")
    assert store.reviewer_of("the secret") == "ann"
    assert store.reviewer_of("another") is None
    store._held.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert b"the secret" not in store.path.read_bytes()
    assert b"ann" in store.path.read_bytes()


def test_half_of_the_reviewers_are_no_majority(store):
    for number, (name, label) in enumerate((("ann", 1), ("bob", 2), ("eve", 1), ("joe", None), ("kim", 2))):
        store.decide(0, name, action_of(label), label, 0, f"key-{number:08}")
    standing = Standing(1)
    standing.follow(store.since())
    assert resolve(standing.current(0).values()) == (None, 2, 4, True)
    store.undo("kim", "undo-00000001")
    standing.follow(store.since(standing.last))
    assert resolve(standing.current(0).values()) == (1, 2, 3, True)
