"""The generated pages, written once into a temporary folder."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="session")
def generate() -> ModuleType:
    """docs/generate.py as a module."""
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module("generate")
    finally:
        sys.path.remove(str(DOCS))


@pytest.fixture(scope="session")
def generated(generate, tmp_path_factory) -> Path:
    """A folder with all generated pages."""
    folder = tmp_path_factory.mktemp("docs")
    generate.main(folder)
    return folder
