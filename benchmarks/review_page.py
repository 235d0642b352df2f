"""Milliseconds until the review page answers with 10,000 suspects; the peer is the limit that was set, 200 ms.

50,000 pictures of 32 x 32 in colour, 100 classes, 5,000 decisions stored before. The longest of all answers counts.
"""

import http.client
import re
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import torch
import uvicorn

from timing import Row
from weathered.audit.labels.audited_labels import AuditedLabels
from weathered.data.dataset import Dataset
from weathered.review.pages import build_app
from weathered.review.review import Review
from weathered.review.serve import bound_socket
from weathered.review.store import ReviewStore, fingerprint
from weathered.stats import Estimate

SIZE, CLASSES, SUSPECTS, STORED = 50_000, 100, 10_000, 5_000
LIMIT_MS = 200.0
REPEATS = 100
TOKEN = "token"


def review_in(folder: Path) -> Review:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, SIZE)
    pixels = torch.from_numpy(rng.integers(0, 256, (SIZE, 3, 32, 32), dtype=np.uint8))
    dataset = Dataset.of(pixels, torch.from_numpy(labels), name="noise")
    rank = rng.permutation(SIZE) + 1
    near = rng.integers(0, SIZE, (SIZE, 3)).tolist()
    audited = AuditedLabels(
        source_row=np.arange(SIZE),
        name=[f"row {i}" for i in range(SIZE)],
        label=labels,
        suggested=(labels + rng.integers(1, CLASSES, SIZE)) % CLASSES,
        score=rank / SIZE,
        rank=rank,
        suspected=rank <= SUSPECTS,
        like_label=near,
        like_suggested=near,
    )
    store = ReviewStore(folder / "review.sqlite", fingerprint(labels, audited.source_row, dataset.class_names))
    made = Review(audited, dataset, store, Estimate(0.1, 0.08, 0.12, SIZE), "noise")
    for number, row in enumerate(made.suspects[-STORED:].tolist()):
        made.decide(row, int(audited.suggested[row]), f"reviewer {number % 3}", f"stored-{number}")
    return made


class Reviewer:
    """One connection that stays open, as a browser's does."""

    def __init__(self, port: int):
        self.host = f"127.0.0.1:{port}"
        self.link = http.client.HTTPConnection("127.0.0.1", port)
        answer, _ = self.ask("/join", {"token": TOKEN, "name": "reviewer 0", "same": "yes"})
        self.cookie = (answer.headers["set-cookie"] or "").partition(";")[0]

    cookie = ""

    def ask(self, path: str, fields: dict[str, object] | None = None) -> tuple[http.client.HTTPResponse, str]:
        headers = {"Cookie": self.cookie, "Origin": f"http://{self.host}"}
        if fields is None:
            self.link.request("GET", path, headers=headers)
        else:
            headers |= {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
            self.link.request("POST", path, urlencode(fields), headers)
        answer = self.link.getresponse()
        text = answer.read().decode("latin-1")
        if answer.status not in (200, 303):
            raise RuntimeError(f"{path}: {answer.status} {text}")
        return answer, text


def longest(ask: Callable[[int], object]) -> float:
    """Milliseconds of the slowest of some calls, after three that warm up."""
    slowest = 0.0
    for number in range(-3, REPEATS):
        begun = time.perf_counter()
        ask(number)
        if number >= 0:
            slowest = max(slowest, time.perf_counter() - begun)
    return 1000 * slowest


def rows() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        review = review_in(Path(folder))
        listener = bound_socket(0)
        server = uvicorn.Server(uvicorn.Config(build_app(review, TOKEN), log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            reviewer = Reviewer(listener.getsockname()[1])
            suspects = review.suspects.tolist()
            page = reviewer.ask("/")[1]
            pictures = re.findall(r'src="(/image/[^"]*)"', page)
            found = {
                "a decision is stored": longest(
                    lambda n: reviewer.ask("/decide", {"row": suspects[n + 3], "label": 1, "key": f"measured-{n}"})
                ),
                "the next page of open suspects": longest(lambda _: reviewer.ask("/")),
                "the last page of all suspects": longest(lambda _: reviewer.ask("/?status=all&start=9990")),
                "the state of a page": longest(
                    lambda n: reviewer.ask(f"/state?rows={','.join(map(str, suspects[n + 3 : n + 27]))}")
                ),
                "a picture": longest(lambda n: reviewer.ask(pictures[n % len(pictures)])),
            }
        finally:
            server.should_exit = True
            thread.join()
            listener.close()
            review.store.close()
    return [
        Row(f"review page, {what}, longest", "limit of 200 ms", ms, LIMIT_MS, LIMIT_MS / ms, 1.0, REPEATS)
        for what, ms in found.items()
    ]
