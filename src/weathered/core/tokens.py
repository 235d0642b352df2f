"""Captions as ids of words: a tokeniser with its vocabulary, and how two captions that are ids already are joined.

Words are runs of letters and digits in lower case. Id 0 is padding, always at the end of a caption, and id 1 stands for
every word that the vocabulary does not hold. There are no marks for the beginning and end of a caption, so a joined
caption is as long as both together.
"""

import re
from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

PADDING, UNKNOWN, RESERVED = 0, 1, 2
"""Ids without a word; the first word has the id 2."""

CAPTION = "caption"
"""The column of a data set that holds captions as word ids, (N, L) int64."""

NOT_NEGATIVE = "not_negative"
"""A column (B,) of a batch: the row that is no negative of this one in a contrastive loss, its own number for none."""

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, in order; punctuation is dropped, an apostrophe inside a word is kept."""
    return _WORD.findall(text.lower())


class WordTokeniser:
    """Texts to word ids. words: the vocabulary in the order of its ids, each in lower case and there once.

    Raises ValueError for a word that is there twice or that `words_of` would not give.
    """

    def __init__(self, words: Sequence[str]):
        self.words = tuple(words)
        if wrong := next((word for word in self.words if words_of(word) != [word]), None):
            raise ValueError(f"a vocabulary holds single words in lower case, got '{wrong}'")
        self._ids = {word: number + RESERVED for number, word in enumerate(self.words)}
        if len(self._ids) < len(self.words):
            raise ValueError(f"the vocabulary holds {len(self.words) - len(self._ids)} words twice")

    @classmethod
    def fit(cls, texts: Sequence[str], least: int = 1) -> "WordTokeniser":
        """The vocabulary of all words that occur at least `least` times, in alphabetical order.

        Fit it on the captions of the training set alone. Raises ValueError if least < 1.
        """
        if least < 1:
            raise ValueError(f"least must be at least 1, got {least}")
        counts = Counter(word for text in texts for word in words_of(text))
        return cls(sorted(word for word, count in counts.items() if count >= least))

    def __len__(self) -> int:
        """The number of ids, those of padding and unknown words included."""
        return len(self.words) + RESERVED

    def encode(self, texts: Sequence[str], length: int | None = None) -> Int[Tensor, "B L"]:
        """Word ids (B, L) int64, padded at the end to `length`, or to the longest text; longer texts are cut.

        For captions that are to be joined see `encode_joined`. Raises ValueError if length < 1.
        """
        if length is not None and length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        rows = [[self._ids.get(word, UNKNOWN) for word in words_of(text)][:length] for text in texts]
        width = length or max((len(row) for row in rows), default=0)
        return torch.tensor([row + [PADDING] * (width - len(row)) for row in rows], dtype=torch.int64).view(
            len(rows), width
        )

    def encode_joined(
        self, first: Sequence[str], second: Sequence[str], length: int | None = None
    ) -> Int[Tensor, "B L"]:
        """The ids of each first text followed by its second, both cut so that both stay; see `join_tokens`."""
        return join_tokens(self.encode(first), self.encode(second), length)


def lengths_of(tokens: Int[Tensor, "B L"]) -> Int[Tensor, "B"]:
    """The number of words of each caption."""
    return (tokens != PADDING).sum(1)


def join_tokens(first: Int[Tensor, "B K"], second: Int[Tensor, "B M"], length: int | None = None) -> Int[Tensor, "B L"]:
    """Captions followed by others, their padding moved to the end.

    length: of the result, at least 2; by default K + M, where nothing is cut. Where two captions do not fit, each keeps
    half of the length, an odd word goes to the first, and what the shorter one leaves free goes to the longer one.
    Cutting the end alone would drop the second caption first. Raises ValueError for other shapes or lengths.
    """
    if first.ndim != 2 or second.ndim != 2 or len(first) != len(second):
        raise ValueError(
            f"captions must be (B, L) word ids, one second for each first, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}"
        )
    if length is not None and length < 2:
        raise ValueError(f"length must be at least 2 for a word of each caption, got {length}")
    room = first.shape[1] + second.shape[1] if length is None else length
    own, other = lengths_of(first), lengths_of(second)
    kept = torch.minimum(own, (room - other).clamp_min((room + 1) // 2))[:, None]
    end = kept + torch.minimum(other[:, None], room - kept)
    place = torch.arange(room, device=first.device)
    both = torch.cat([first, second, first.new_full((len(first), 1), PADDING)], 1)
    source = torch.where(place < kept, place, first.shape[1] + place - kept)
    return both.gather(1, torch.where(place < end, source, both.shape[1] - 1))


def widened(tokens: Int[Tensor, "B K"], length: int) -> Int[Tensor, "B L"]:
    """Captions padded to `length` columns; raises ValueError if a caption does not fit."""
    if int(lengths_of(tokens).max() if len(tokens) else 0) > length:
        raise ValueError(f"captions of {int(lengths_of(tokens).max())} words do not fit {length}")
    return torch.nn.functional.pad(tokens[:, :length], (0, max(length - tokens.shape[1], 0)), value=PADDING)
