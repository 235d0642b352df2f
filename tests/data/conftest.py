"""Every test decodes into a cache of its own."""

import pytest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WEATHERED_CACHE", str(tmp_path / "cache"))
