"""What a page shows of a sample: its picture as PNG, or its row of numbers beside what is usual for a class."""

import io
import threading
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from weathered.core.errors import DataError
from weathered.data.dataset import Dataset
from weathered.data.sources.tables import TableInputs

LARGEST = 1024
"""Pixels of the longer side that a page is sent; smaller pictures are enlarged by the browser."""
KEPT = 1024
"""Pictures that are kept encoded."""
MOST_FEATURES = 40
"""Features shown of one row, those that tell the two classes apart best first."""
UNLIKE = 3.0
"""Spreads from the median of a class at which a value is called unusual for it."""
TO_SIGMA = 1.4826
"""Median absolute deviation to standard deviation, for normal values."""


class Pictures:
    """PNG files of the images of a data set, or some frames of clips, made when asked for and kept for a while."""

    def __init__(self, dataset: Dataset):
        self._dataset = dataset
        self._lock = threading.Lock()
        self.png = lru_cache(KEPT)(self._png)

    def _png(self, row: int) -> bytes:
        """The image at a row; raises DataError if it is gone or broken since the data were opened."""
        with self._lock:
            shown = self._dataset.pictures(torch.tensor([row]))
        if shown is None:
            raise DataError(f"{self._dataset.name}: rows of a table have no pictures.")
        image = shown[0].numpy()
        if len(image) == 3:
            picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
        else:
            picture = Image.fromarray(image.mean(0).round().astype(np.uint8))
        picture.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        # pictures go to the same machine, so time counts and size does not
        picture.save(stream, "PNG", compress_level=1)
        return stream.getvalue()


class Feature(NamedTuple):
    """One value of a row. usual: medians of the given and the suggested class. remark: what stands out, in words."""

    name: str
    value: str
    usual: tuple[str, str]
    remark: str
    like_label: tuple[str, ...]
    like_suggested: tuple[str, ...]


class TableRows:
    """Rows of a table beside the medians of the classes.

    centre, spread (C, D): median of each feature in each class and 1.4826 times the median absolute deviation.
    """

    def __init__(self, dataset: Dataset):
        self._dataset = dataset
        inputs = dataset.inputs
        values = inputs.fetch(torch.arange(len(dataset))).numpy().astype(np.float64)
        labels = dataset.labels.numpy()
        width = values.shape[1]
        self.columns = inputs.columns if isinstance(inputs, TableInputs) else tuple(f"x{i}" for i in range(width))
        self.centre = np.full((dataset.num_classes, width), np.nan)
        self.spread = np.full_like(self.centre, np.nan)
        for c in np.unique(labels).tolist():
            members = values[labels == c]
            self.centre[c] = np.median(members, 0)
            self.spread[c] = TO_SIGMA * np.median(np.abs(members - self.centre[c]), 0)

    def telling(self, row: int, given: int, suggested: int, most: int = MOST_FEATURES) -> np.ndarray:
        """Features of a row, those first in which it is unlike the given and like the suggested class."""
        value = self._rows([row])[0]
        unlike_given, unlike_suggested = (self._distance(value, c) for c in (given, suggested))
        gain = np.nan_to_num(unlike_given) - np.nan_to_num(unlike_suggested)
        return np.argsort(-gain, kind="stable")[:most]

    def features(
        self, row: int, given: int, suggested: int, like_label: list[int], like_suggested: list[int]
    ) -> list[Feature]:
        """The most telling features of a row, beside the medians of both classes and some rows like them."""
        rows = self._rows([row, *like_label, *like_suggested])
        first = 1 + len(like_label)
        value = rows[0]
        unlike = {c: self._distance(value, c) >= UNLIKE for c in (given, suggested)}
        found = []
        for i in self.telling(row, given, suggested).tolist():
            remark = ""
            if given != suggested and unlike[given][i] != unlike[suggested][i]:
                remark = "unlike given" if unlike[given][i] else "unlike suggested"
            elif unlike[given][i]:
                remark = "unlike both" if given != suggested else "unlike given"
            found.append(
                Feature(
                    self.columns[i],
                    shown(value[i]),
                    (shown(self.centre[given, i]), shown(self.centre[suggested, i])),
                    remark,
                    tuple(shown(v) for v in rows[1:first, i]),
                    tuple(shown(v) for v in rows[first:, i]),
                )
            )
        return found

    def _rows(self, rows: list[int]) -> np.ndarray:
        return self._dataset.inputs.fetch(torch.tensor(rows)).numpy()

    def _distance(self, value: np.ndarray, c: int) -> np.ndarray:
        """How many spreads a row lies from the median of a class, in each feature."""
        away = np.abs(value - self.centre[c])
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(away == 0, 0.0, np.minimum(away / self.spread[c], 1e6))


def shown(value: float) -> str:
    """A number with four significant digits, as short as it goes; a dash where there is none."""
    return "–" if np.isnan(value) else f"{value:.4g}"
