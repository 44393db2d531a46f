"""The scripts of `experiments` as modules."""

import importlib
import sys
from pathlib import Path

import pytest

from tests.experiments.report_page import Page

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def experiment(monkeypatch):
    """Imports one by its name."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return importlib.import_module


@pytest.fixture
def made(experiment, monkeypatch, capsys):
    """Makes the report of a run, as the command line does: the page read, and what was printed."""
    report = experiment("report")

    def make(run: Path, *arguments: str):
        monkeypatch.setattr(sys, "argv", ["report.py", str(run), *arguments])
        capsys.readouterr()
        report.main()
        return Page((run / "report.html").read_text(encoding="utf-8")), capsys.readouterr().out

    return make
