"""What reviewers decided, kept in one SQLite file beside the run: lines are added, never changed or removed."""

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple, cast

import numpy as np

from weathered.core.errors import DataError, SpecError

Action = Literal["accept", "keep", "relabel", "skip", "undo"]
FILE = "review.sqlite"
PATIENCE_SECONDS = 30.0
"""How long a writer waits for another one."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS decisions (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  key TEXT NOT NULL UNIQUE,
  row INTEGER NOT NULL,
  reviewer TEXT NOT NULL,
  action TEXT NOT NULL CHECK (action IN ('accept', 'keep', 'relabel', 'skip', 'undo')),
  label INTEGER CHECK ((label IS NULL) = (action IN ('skip', 'undo'))),
  given INTEGER NOT NULL,
  undone INTEGER UNIQUE REFERENCES decisions (id) CHECK ((undone IS NULL) = (action <> 'undo')),
  time TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS decisions_of_reviewer ON decisions (reviewer, id);
CREATE TABLE IF NOT EXISTS sessions (digest TEXT PRIMARY KEY, reviewer TEXT NOT NULL, begun TEXT NOT NULL);
CREATE TRIGGER IF NOT EXISTS decisions_stay BEFORE UPDATE ON decisions
  BEGIN SELECT RAISE(ABORT, 'decisions are never changed'); END;
CREATE TRIGGER IF NOT EXISTS decisions_remain BEFORE DELETE ON decisions
  BEGIN SELECT RAISE(ABORT, 'decisions are never removed'); END;
"""


class Decision(NamedTuple):
    """One line of the store.

    row: position among the training rows. label: the class decided on, None for skip and undo. given: the class the
    row had. undone: id of the decision that an undo takes back. time: UTC, ISO 8601.
    """

    id: int
    row: int
    reviewer: str
    action: Action
    label: int | None
    given: int
    undone: int | None
    time: str


COLUMNS = ", ".join(Decision._fields)


def fingerprint(labels: np.ndarray, source_row: np.ndarray, class_names: Sequence[str]) -> str:
    """Digest of what decisions refer to: the given labels (N,), the rows' numbers (N,) in the source, the classes."""
    digest = hashlib.sha256()
    for values in (labels, source_row):
        digest.update(np.ascontiguousarray(values, dtype="<i8").tobytes() + b"\0")
    digest.update("\0".join(class_names).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


class ReviewStore:
    """The decisions on one label audit, safe for any number of threads and processes at once.

    path: the file, made where it is missing. audit: `fingerprint` of the labels under review. Every decision is on
    disk when `decide` or `undo` returns.
    Raises DataError if the file belongs to another audit, is damaged, or cannot be written.
    """

    def __init__(self, path: Path, audit: str):
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # held open, so that the log is not folded into the file after every request
            self._held = self._open()
            self._held.execute("PRAGMA journal_mode = WAL")
            self._held.executescript(SCHEMA)
            self._held.execute("INSERT OR IGNORE INTO facts VALUES ('audit', ?)", (audit,))
            self._held.commit()
        except (OSError, sqlite3.Error) as error:
            raise DataError(f"{path}: the decisions cannot be kept there: {_one_line(error)}.") from error
        if self.fact("audit") != audit:
            self.close()
            raise DataError(
                f"{path} holds decisions on other labels than those of this audit; move it away to begin anew, or "
                "export it beside the audit it was made on."
            )

    def decide(self, row: int, reviewer: str, action: Action, label: int | None, given: int, key: str) -> Decision:
        """Store one decision and return it. key: made by the caller; a repeated call with the same key changes nothing.

        Raises SpecError if the key was used for something else.
        """
        with self._transaction() as db:
            known = self._by_key(db, key)
            if known is not None:
                if (known.row, known.reviewer, known.action, known.label) != (row, reviewer, action, label):
                    raise SpecError("this request was sent before with another decision; load the page again.")
                return known
            return self._add(db, key, row, reviewer, action, label, given, None)

    def undo(self, reviewer: str, key: str) -> Decision | None:
        """Take back the reviewer's own last decision that is not taken back yet; None if there is none.

        Returns the line that undoes it, with the row of the decision. A repeated key changes nothing.
        """
        with self._transaction() as db:
            known = self._by_key(db, key)
            if known is not None:
                if (known.reviewer, known.action) != (reviewer, "undo"):
                    raise SpecError("this request was sent before with another decision; load the page again.")
                return known
            last = db.execute(
                "SELECT id, row, given FROM decisions AS made WHERE reviewer = ? AND action <> 'undo' AND NOT EXISTS "
                "(SELECT 1 FROM decisions AS later WHERE later.undone = made.id) ORDER BY id DESC LIMIT 1",
                (reviewer,),
            ).fetchone()
            if last is None:
                return None
            return self._add(db, key, last[1], reviewer, "undo", None, last[2], last[0])

    def since(self, last: int = 0) -> list[Decision]:
        """All lines with an id above `last`, oldest first."""
        with self._reading() as db:
            lines = db.execute(f"SELECT {COLUMNS} FROM decisions WHERE id > ? ORDER BY id", (last,))
            return [Decision(*line) for line in lines]

    def fact(self, name: str) -> str | None:
        """A named fact about the review, None if it was never set."""
        with self._reading() as db:
            found = db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if found is None else found[0]

    def set_fact(self, name: str, value: str) -> None:
        """Remember a named fact about the review; the fingerprint of the audit is fixed."""
        if name == "audit":
            raise ValueError("the audit of a review is fixed when its file is made")
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def add_session(self, secret: str, reviewer: str) -> None:
        """Remember that whoever shows `secret` is this reviewer; only its digest is stored."""
        with self._transaction() as db:
            db.execute("INSERT INTO sessions VALUES (?, ?, ?)", (_digest(secret), reviewer, _now()))

    def reviewer_of(self, secret: str) -> str | None:
        """The reviewer who was given this secret, None if nobody was."""
        with self._reading() as db:
            found = db.execute("SELECT reviewer FROM sessions WHERE digest = ?", (_digest(secret),)).fetchone()
        return None if found is None else found[0]

    def reviewers(self) -> set[str]:
        """Everybody who joined or decided."""
        with self._reading() as db:
            return {
                name for (name,) in db.execute("SELECT reviewer FROM sessions UNION SELECT reviewer FROM decisions")
            }

    def close(self) -> None:
        """Fold the log into the file and let go of it."""
        self._held.close()

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=PATIENCE_SECONDS, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        return db

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        db = self._open()
        try:
            yield db
        except sqlite3.Error as error:
            raise DataError(f"{self.path} cannot be read: {_one_line(error)}.") from error
        finally:
            db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One writer at a time: what is read inside is still true when it is committed."""
        db = self._open()
        try:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")
        except sqlite3.Error as error:
            raise DataError(f"{self.path} cannot be written: {_one_line(error)}. Nothing was stored.") from error
        finally:
            # closing rolls back what was not committed
            db.close()

    @staticmethod
    def _by_key(db: sqlite3.Connection, key: str) -> Decision | None:
        line = db.execute(f"SELECT {COLUMNS} FROM decisions WHERE key = ?", (key,)).fetchone()
        return None if line is None else Decision(*line)

    @staticmethod
    def _add(
        db: sqlite3.Connection,
        key: str,
        row: int,
        reviewer: str,
        action: Action,
        label: int | None,
        given: int,
        undone: int | None,
    ) -> Decision:
        time = _now()
        made = db.execute(
            "INSERT INTO decisions (key, row, reviewer, action, label, given, undone, time) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (key, row, reviewer, action, label, given, undone, time),
        )
        return Decision(cast(int, made.lastrowid), row, reviewer, action, label, given, undone, time)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")
