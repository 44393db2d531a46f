"""Runs side by side: every figure in its run's column, a gap for what is not there, settings that differ."""

import copy
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from tests.checkpoints import latent_spec, save_autoencoder
from tests.experiments.fake_run import evaluation, legend, make_run, write_json
from tests.experiments.report_page import DASH, Page, close
from vqvae2.data.latents import Manifest, write_manifest
from vqvae2.runs.loggers import MetricsFile
from vqvae2.storage.shards import Shard

CONFIG = {
    "trainer": {
        "max_steps": 40,
        "callbacks": [
            {"class_path": "vqvae2.runs.health.Health", "init_args": {"patience": 3}},
            {"class_path": "vqvae2.runs.throughput.Throughput"},
        ],
    },
    "model": {
        "class_path": "vqvae2.training.autoencoder.AutoencoderModule",
        "init_args": {"num_codes": 64, "beta": 0.25, "schedule": {"class_path": "a.Constant"}},
    },
    "data": {"class_path": "x.Images", "init_args": {"train": "demo:digits", "latents": "{run}/latents"}},
    "priors": ["{run}/top/best.ckpt", "{run}/bottom/best.ckpt"],
}


@pytest.fixture
def compared(experiment, monkeypatch, capsys):
    """Compares runs, as the command line does: the page read, and what was printed."""
    compare = experiment("compare")

    def make(*runs: Path, out: Path | None = None):
        options = ["--out", str(out)] if out else []
        monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, runs), *options])
        capsys.readouterr()
        compare.main()
        page = (out or runs[0].parent / "compare.html").read_text(encoding="utf-8")
        return Page(page), capsys.readouterr().out

    return make


def write_config(stage: Path, *, written: str, change=lambda config: None, named: bool = True) -> None:
    """A config.yaml as the command line writes it; `written` is where the run lay for it."""
    config = copy.deepcopy(CONFIG)
    change(config)
    config["trainer"]["default_root_dir"] = f"{written}/{stage.name}"
    config |= {"run": written} if named else {}
    stage.mkdir(parents=True, exist_ok=True)
    stage.joinpath("config.yaml").write_text(yaml.safe_dump(config).replace("{run}", written))


def two_runs(folder: Path) -> tuple[Path, Path]:
    """Whole ones whose figures differ."""
    a, b = make_run(folder / "a"), folder / "b"
    other = evaluation()
    other["figures"] = other["figures"] | {"mse_val": 0.0333}
    other["sets"][0]["figures"]["fid_classifier"] = 1.5
    make_run(b, other)
    return a, b


def test_every_figure_stands_in_its_runs_column(compared, tmp_path):
    page, printed = compared(*two_runs(tmp_path))
    figures = page.table("Figures of each run")
    fid = figures["samples: FID (classifier) ↓"]
    assert (fid["a"], fid["b"]) == ("0.8123", "1.500")
    error = figures[legend()["mse_val"]["name"] + " ↓"]
    assert close(error["a"], 0.0222346)
    assert close(error["b"], 0.0333)
    assert figures["samples: images"] == {"a": "1,000", "b": "1,000"}
    assert figures["accuracy, trained on samples, %"] == {"a": "81.23", "b": "81.23"}
    line = next(line for line in printed.splitlines() if line.startswith("samples: FID (classifier)"))
    assert line.split()[-2:] == ["0.8123", "1.500"]


def test_weights_time_and_latents(compared, tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    counts = []
    for run, seconds, options in ((a, 3725.4, {}), (b, 59.0, {"hidden": 16, "num_codes": 32})):
        (run / "vqvae").mkdir(parents=True)
        _, network = save_autoencoder(run / "vqvae/last.ckpt", **options)
        counts.append(f"{sum(weights.numel() for weights in network.parameters()):,}")
        for step, part in enumerate((0.5, 1.0)):
            MetricsFile(run / "vqvae", append=step > 0).log_metrics(
                {"speed/training_s": part * seconds}, step
            )
        (run / "latents").mkdir()
        shard = Shard("train/000000.tar", 1234, 1, "0" * 64)
        write_manifest(run / "latents", Manifest(latent_spec(network, 3), (), {}, {"train": (shard,)}))
    page, _ = compared(a, b)
    costs, latents = page.table("Time and weights"), page.table("Latents")
    assert counts[0] != counts[1]
    assert costs["vqvae: weights"] == dict(zip("ab", counts, strict=True))
    assert costs["vqvae: training time, h:mm:ss"] == {"a": "1:02:05", "b": "0:00:59"}
    assert latents["latents: top"] == {"a": "4 x 4, 16 codes", "b": "4 x 4, 32 codes"}
    assert latents["latents: bottom"] == {"a": "8 x 8, 16 codes", "b": "8 x 8, 32 codes"}
    assert latents["latents: samples, train"] == {"a": "1,234", "b": "1,234"}


def test_settings_that_differ_are_found_and_own_folders_are_none(compared, tmp_path):
    a, b, c = (tmp_path / name for name in "abc")

    def change(config):
        config["model"]["init_args"]["num_codes"] = 128
        config["model"]["init_args"]["schedule"] = {"class_path": "b.Cosine", "init_args": {"warmup": 5}}
        config["trainer"]["callbacks"][0]["init_args"]["patience"] = 4

    def borrow(config):
        change(config)
        config["model"]["class_path"] = "an.older.place.AutoencoderModule"
        config["data"]["init_args"]["latents"] = "runs/a/latents"

    for stage in ("vqvae", "top"):
        write_config(a / stage, written="runs/a")
    write_config(b / "vqvae", written=str(b), change=change, named=False)
    write_config(b / "top", written="elsewhere/b", change=borrow)
    write_config(c / "cas", written="runs/c")
    page, _ = compared(a, b, c)
    found = page.table("Not the same in all runs")
    assert {name: (cells["a"], cells["b"]) for name, cells in found.items()} == {
        "vqvae, top: model.num_codes": ("64", "128"),
        "vqvae, top: model.schedule": ("Constant", "Cosine"),
        "vqvae, top: model.schedule.warmup": ("null", "5"),
        "vqvae, top: trainer.callbacks.Health.patience": ("3", "4"),
        "top: data.latents": ("RUN/latents", "runs/a/latents"),
    }
    assert {cells["c"] for cells in found.values()} == {DASH}


def test_what_a_run_lacks_is_a_gap(compared, tmp_path):
    whole, bare = make_run(tmp_path / "whole"), tmp_path / "bare"
    shutil.copytree(whole / "vqvae", bare / "vqvae")
    page, _ = compared(whole, bare, out=tmp_path / "deep/page.html")
    figures = page.table("Figures")
    assert {cells["bare"] for cells in figures.values()} == {DASH}
    assert DASH not in figures["samples: FID (classifier) ↓"]["whole"]
    assert f"bare: {DASH}" in page.text  # no samples
    assert page.source.count("<img") == 3
    charts = re.findall(r'<svg[^>]*aria-label="([^"]+)"', page.source)
    assert charts[:3] == ["vqvae: val/mse", "top: val/nll_nats", "bottom: val/nll_nats"]
    drawn = [
        re.findall(r">(whole|bare)</text>", svg) for svg in re.findall(r"<svg.*?</svg>", page.source, re.S)
    ]
    assert drawn[:3] == [["whole", "bare"], ["whole"], ["whole"]]


def test_the_page_is_whole_and_needs_nothing_else(compared, tmp_path):
    page, printed = compared(*two_runs(tmp_path))
    inside = [found for found in page.references if not found.startswith("data:image/png;base64,")]
    assert {found[1:] for found in inside} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids)) > 20
    assert not re.search(r"<script|<link|@import|https?://|javascript:", page.source)
    assert str(tmp_path / "compare.html") in printed
    assert not list(tmp_path.glob("*.part"))


def test_figures_of_different_networks_come_with_a_warning(compared, tmp_path):
    a, b = two_runs(tmp_path)
    page, _ = compared(a, b)
    assert "cannot be compared" not in page.text
    other = copy.deepcopy(evaluation())
    other["networks"]["distance"]["fingerprint"] = "f" * 64
    write_json(b / "eval/metrics.json", other)
    page, printed = compared(a, b)
    assert "cannot be compared" in page.text
    assert "cannot be compared" in printed


def test_runs_of_one_name_go_by_their_paths(compared, tmp_path):
    for owner in ("x", "y"):
        write_config(tmp_path / owner / "demo/vqvae", written="runs/demo")
    page, _ = compared(tmp_path / "x/demo", tmp_path / "y/demo", out=tmp_path / "page.html")
    assert "x/demo" in page.text
    assert "y/demo" in page.text
    assert "None." in page.text  # no settings differ


@pytest.mark.parametrize("broken", ["none", "empty", "twice", "yaml", "older"])
def test_what_is_no_run_is_one_line(compared, tmp_path, broken):
    run, other = make_run(tmp_path / "run"), tmp_path / "other"
    if broken != "none":
        (other / "vqvae").mkdir(parents=True)
    messages = {"none": "not the folder of a run", "empty": "not the folder of a run", "twice": "named twice"}
    if broken == "yaml":
        (other / "vqvae/config.yaml").write_text("a: [")
    if broken == "older":
        write_json(other / "eval/metrics.json", {"format": "vqvae2-verdict-1"})
    with pytest.raises(SystemExit) as stop:
        compared(run, run if broken == "twice" else other)
    message = str(stop.value)
    assert messages.get(broken, {"yaml": "no YAML", "older": "vqvae2-verdict-1"}.get(broken)) in message
    assert message.startswith("error: ")
    assert "\n" not in message
    assert not (tmp_path / "compare.html").exists()
