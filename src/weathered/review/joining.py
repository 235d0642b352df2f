"""How reviewers come in: links that work once, names, and secrets that stand for a name from then on."""

import secrets
import threading
import unicodedata
from collections.abc import Callable

from weathered.core.errors import SpecError, WeatheredError
from weathered.review.store import ReviewStore

LONGEST_NAME = 40


class Refused(WeatheredError):
    """A request shows neither a link that still works nor a session."""


class NameTaken(WeatheredError):
    """A reviewer of this name has joined before."""


class Door:
    """Lets in one reviewer per token; after each, another token takes its place.

    joined: told the name of who came in and the token that works from then on.
    """

    def __init__(self, store: ReviewStore, token: str, joined: Callable[[str, str], None] | None = None):
        self._store, self._token, self._joined = store, token, joined
        self._lock = threading.Lock()

    def fits(self, token: str) -> bool:
        """Whether a token still works."""
        return secrets.compare_digest(token.encode(), self._token.encode())

    def join(self, token: str, name: str, same: bool) -> str:
        """Let a reviewer in and return the secret to be shown from now on.

        same: whether the person says to be who joined under this name before. Raises Refused if the token was used,
        SpecError for a name that cannot be taken, NameTaken; the token then still works.
        """
        with self._lock:
            if not self.fits(token):
                raise Refused("this link was used before, or belongs to a server that has ended")
            name = checked_name(name)
            if name in self._store.reviewers() and not same:
                raise NameTaken(f"somebody called '{name}' has joined before")
            secret, fresh = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
            self._store.add_session(secret, name)
            self._token = fresh
        if self._joined is not None:
            self._joined(name, fresh)
        return secret


def checked_name(text: str) -> str:
    """A reviewer's name with single spaces. Raises SpecError unless it has 1 to 40 letters, digits, spaces, . _ ' or -
    and begins with a letter or digit, so that no table takes it for a formula or a list of names.
    """
    name = " ".join(unicodedata.normalize("NFC", text).split())
    fits = 1 <= len(name) <= LONGEST_NAME and all(_usable(letter) for letter in name)
    if not fits or not name[0].isalnum():
        raise SpecError(
            f"a name has 1 to {LONGEST_NAME} letters, digits, spaces, dots, hyphens, apostrophes or underscores, and "
            "begins with a letter or digit"
        )
    return name


def _usable(letter: str) -> bool:
    return unicodedata.category(letter)[0] in "LMN" or letter in " ._'-"
