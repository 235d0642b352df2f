"""Data that tests share: real digits as images, and a table."""

import pytest
import torch
from hypothesis import HealthCheck, settings
from sklearn.datasets import load_digits, load_wine

from weathered.__main__ import main
from weathered.data.dataset import Dataset

# how long a test takes depends on what else the machine does
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """All 1,797 handwritten digits, (1, 8, 8) uint8."""
    raw = load_digits()
    images = torch.tensor(raw.images * 255 / 16).round().byte()[:, None]
    return Dataset.of(images, torch.tensor(raw.target), name="digits")


@pytest.fixture(scope="session")
def small_digits(digits: Dataset) -> Dataset:
    """The first 200 digits."""
    return digits.select(torch.arange(200))


@pytest.fixture(scope="session")
def wine() -> Dataset:
    """A table of 178 rows, 13 columns and three classes."""
    raw = load_wine()
    return Dataset.of(torch.tensor(raw.data), torch.tensor(raw.target), name="wine")


@pytest.fixture
def weathered(tmp_path, monkeypatch, capsys):
    """The command in a folder of its own: arguments -> (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEATHERED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["weathered", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run
