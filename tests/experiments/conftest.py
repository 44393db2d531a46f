"""The scripts of `experiments` as modules."""

import importlib
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def experiment(monkeypatch):
    """Imports one by its name."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return importlib.import_module
