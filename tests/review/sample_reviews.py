"""Small reviews with known wrong labels, a server to meet them at, and a visitor who keeps cookies."""

import http.client
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import torch
import uvicorn
from sklearn.datasets import load_digits, load_wine

from weathered.audit.labels.audited_labels import AuditedLabels, write_audited_labels
from weathered.core.settings import Settings
from weathered.data.dataset import Dataset
from weathered.data.prepare import prepare
from weathered.recipe import DataOptions, Recipe
from weathered.review.pages import build_app
from weathered.review.review import Review
from weathered.review.serve import bound_socket
from weathered.review.store import ReviewStore, fingerprint
from weathered.stats import Estimate
from weathered.store import RunFolder
from weathered.training import train

TOKEN = "the-token-of-the-first-reviewer"
HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", *"3456789")


def audit_of(dataset: Dataset, suspects: int, seed: int = 0) -> AuditedLabels:
    """An audit that suspects rows at random and suggests another class for each."""
    rng = np.random.default_rng(seed)
    labels, size = dataset.labels.numpy(), len(dataset)
    rank = rng.permutation(size) + 1
    suspected = rank <= suspects
    suggested = np.where(suspected, (labels + rng.integers(1, dataset.num_classes, size)) % dataset.num_classes, labels)

    def like(classes: np.ndarray) -> list[list[int]]:
        members = [np.flatnonzero((labels == c) & ~suspected)[:3].tolist() for c in range(dataset.num_classes)]
        return [members[c] if s else [] for c, s in zip(classes, suspected, strict=True)]

    return AuditedLabels(
        source_row=3 * np.arange(size),
        name=[f"row {3 * i}" for i in range(size)],
        label=labels,
        suggested=suggested,
        score=rank / (size + 1),
        rank=rank,
        suspected=suspected,
        like_label=like(labels),
        like_suggested=like(suggested),
    )


def digits_of(size: int = 200, names: tuple[str, ...] | None = None) -> Dataset:
    """The first handwritten digits as images."""
    raw = load_digits()
    images = torch.tensor(raw.images[:size] * 255 / 16).round().byte()[:, None]
    return Dataset.of(images, torch.tensor(raw.target[:size]), class_names=names, name="digits")


def wine_table() -> Dataset:
    """A table of 178 rows, 13 columns and three classes."""
    raw = load_wine()
    return Dataset.of(torch.tensor(raw.data), torch.tensor(raw.target), name="wine")


def review_of(dataset: Dataset, folder: Path, suspects: int = 60, seed: int = 0) -> Review:
    """A review with an estimate of a tenth of wrong labels; the same arguments find its decisions again."""
    audited = audit_of(dataset, suspects, seed)
    mark = fingerprint(audited.label, audited.source_row, dataset.class_names)
    store = ReviewStore(folder / "labels" / "review.sqlite", mark)
    return Review(audited, dataset, store, Estimate(0.1, 0.06, 0.14, len(dataset)), dataset.name)


class Visitor:
    """A browser without a screen. Follows no redirection by itself."""

    def __init__(self, port: int):
        self.port, self.cookies = port, {}

    def ask(
        self,
        method: str,
        path: str,
        fields: Mapping[str, object] | None = None,
        headers: Mapping[str, str | None] | None = None,
    ) -> tuple[int, Mapping[str, str], str]:
        """Status, headers with names in small letters, text. fields: of a form. headers: None leaves one out."""
        host = f"127.0.0.1:{self.port}"
        sent: dict[str, str | None] = {"host": host}
        if self.cookies:
            sent["cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        if method == "POST":
            sent |= {"origin": f"http://{host}", "content-type": "application/x-www-form-urlencoded"}
        sent |= headers or {}
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            body = urlencode(fields) if fields is not None else ""
            link.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in {**sent, "content-length": str(len(body))}.items():
                if value is not None:
                    link.putheader(name, value)
            link.endheaders(body.encode())
            answer = link.getresponse()
            content = answer.read()
            for cookie in answer.headers.get_all("set-cookie") or ():
                name, _, value = cookie.partition(";")[0].partition("=")
                self.cookies[name] = value
            found = {name.lower(): value for name, value in answer.headers.items()}
            is_text = found.get("content-type", "text").startswith(("text", "application/json"))
            return answer.status, found, content.decode("utf-8" if is_text else "latin-1")
        finally:
            link.close()

    def get(self, path: str) -> str:
        status, _, text = self.ask("GET", path)
        assert status == 200, (status, text)
        return text

    def post(self, path: str, json: bool = True, **fields: object) -> tuple[int, Mapping[str, str], str]:
        return self.ask("POST", path, fields, {"accept": "application/json"} if json else None)

    def join(self, token: str, name: str) -> None:
        status, headers, text = self.ask("POST", "/join", {"token": token, "name": name})
        assert status == 303, text
        assert headers["location"] == "/"


class Served:
    """A review that answers at a port. tokens: those that were handed out, the last one works."""

    def __init__(self, review: Review, port: int):
        self.review, self.port, self.tokens = review, port, [TOKEN]

    def visitor(self, name: str) -> Visitor:
        """Somebody who has joined."""
        visitor = Visitor(self.port)
        visitor.join(self.tokens[-1], name)
        return visitor


@contextmanager
def served(review: Review) -> Iterator[Served]:
    """Serve a review from a thread of its own until the block ends."""
    listener = bound_socket(0)
    answering = Served(review, listener.getsockname()[1])
    app = build_app(review, TOKEN, lambda _, token: answering.tokens.append(token))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield answering
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        listener.close()
        review.store.close()


class Started:
    """A Python process of its own: a fork of one that has used OpenMP would hang. output: what it prints."""

    def __init__(self, *arguments: str):
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"},
        )
        assert self._process.stdout is not None
        self.output = self._process.stdout

    def __enter__(self) -> "Started":
        return self

    def __exit__(self, *_: object) -> None:
        self.end(signal.SIGKILL)
        self.output.close()

    def end(self, number: signal.Signals) -> int:
        """Send a signal, wait for the end, and return the exit code, negative for a signal."""
        self._process.send_signal(number)
        return self._process.wait()


def audited_run(folder: Path, data: DataOptions, suspects: int = 40) -> Path:
    """A finished run on `data` with a label audit that suspects rows at random."""
    recipe = Recipe(data=data, model="mlp:width=8", settings=Settings(epochs=1, batch_size=64))
    run = train(recipe, folder).path
    audited = audit_of(prepare(recipe).train, suspects)
    write_audited_labels(run, audited)
    summary = {"estimated noise rate": {"value": 0.1, "low": 0.05, "high": 0.2, "n": len(audited)}}
    RunFolder(run).write_json("audit.json", {"labels": {"summary": summary}})
    return run
