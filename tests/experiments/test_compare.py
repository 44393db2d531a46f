"""Runs side by side: what differs, what is measured, what is missing."""

import csv
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.checkpoints import save_autoencoder
from tests.experiments.real_run import real_run
from vqvae2.storage.checkpoint import load_network

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))
import compare  # noqa: E402


def config(folder: Path, *, num_codes: int, batch_size: int = 4) -> None:
    """A config.yaml as the command line writes it, with paths below its own run."""
    content = {
        "run": str(folder.parent),
        "trainer": {"default_root_dir": str(folder), "accumulate_grad_batches": 2, "callbacks": [{"x": 1}]},
        "model": {"class_path": "A", "init_args": {"num_codes": num_codes, "at": f"{folder.parent}/vqvae"}},
        "data": {"init_args": {"batch_size": batch_size}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content))


def trained(folder: Path) -> None:
    path, _ = save_autoencoder(folder / "last.ckpt")
    torch.save({**torch.load(path, weights_only=True), "global_step": 7}, path)


@pytest.fixture
def runs(tmp_path) -> dict[str, Path]:
    """Two runs; the second was not evaluated and lacks a bottom prior."""
    for name, num_codes in (("a", 16), ("b", 32)):
        shutil.copytree(real_run(), tmp_path / name)
        config(tmp_path / name / "vqvae", num_codes=num_codes)
        for job in ("vqvae", "bottom"):
            trained(tmp_path / name / job)
    shutil.rmtree(tmp_path / "b/eval")
    shutil.rmtree(tmp_path / "b/bottom")
    return compare.names_of([tmp_path / "a", tmp_path / "b"])


def test_only_what_differs_is_shown_and_the_runs_own_paths_do_not(runs):
    assert compare.differing_settings(runs) == [
        ["setting", "a", "b"],
        ["vqvae: model.num_codes", "16", "32"],
    ]


def test_a_job_that_one_run_lacks_is_a_gap(runs):
    config(runs["a"] / "bottom", num_codes=4)
    assert [row for row in compare.differing_settings(runs) if "bottom" in row[0]] == []
    figures = {row[0]: row[1:] for row in compare.figures_of(runs)[1:]}
    assert figures
    assert {b for _, b in figures.values()} == {compare.NONE}
    costs = {row[0]: row[1:] for row in compare.costs_of(runs)[1:]}
    assert costs["bottom: weights"][1] == compare.NONE != costs["bottom: weights"][0]


def test_weights_are_those_that_are_learned_and_seconds_follow_the_logged_speed(runs):
    network = load_network(runs["a"] / "vqvae/last.ckpt", "autoencoder").network
    weights = sum(parameter.numel() for parameter in network.parameters())
    with (runs["a"] / "vqvae/metrics.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerows([["step", "speed/samples_per_s"], [9, 8.0], [10, ""], [14, 20.0]])
    costs = {row[0]: row[1:] for row in compare.costs_of(runs)[1:]}
    assert costs["vqvae: weights"][0] == f"{weights:,}"
    assert costs["vqvae: steps"][0] == "7"
    # 10 steps of 8 images at 8 a second, then 5 at 20
    assert costs["vqvae: seconds of training, about"][0] == "12"


def test_the_page_refers_to_nothing_outside_and_shows_both_runs(runs, tmp_path, capsys, monkeypatch):
    out = tmp_path / "page.html"
    monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, runs.values()), "--out", str(out)])
    compare.main()
    page = out.read_text()
    assert "http" not in page.replace("http://www.w3.org", "")
    assert page.count("<figure>") >= 4
    assert "num_codes" in page
    assert "num_codes" in capsys.readouterr().out


def test_what_is_no_run_is_refused(tmp_path, runs):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no run"):
        compare.names_of([tmp_path / "empty"])
    with pytest.raises(ValueError, match="is given twice"):
        compare.names_of([tmp_path / "a", tmp_path / "b", tmp_path / "a", tmp_path / "a"])
