"""HR-VQVAE's claims: what the table says is what the runs' networks do, and no cell is run twice."""

import csv
import importlib
import json
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.experiments.conftest import EXPERIMENTS
from tests.training.training_run import write_images
from vqvae2.storage.checkpoint import load_network

SEEDS = (0, 1)
VARIANTS = ("flat", "linked")
TINY = "--images image_size=8 num_classes=0 --network hidden=4 residual=2 code_dim=3 polyak=0"
SMALL = "--sizes 2 --depth 2 --steps 2 --batch 4 --repeats 1"


@pytest.fixture(scope="module")
def modules():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXPERIMENTS))
        yield importlib.import_module("hr_claims"), importlib.import_module("hr_cells")


def claims(modules, folder, *options):
    command = f"--train {folder}/train --val {folder}/val --out {folder}/out {TINY} {SMALL}".split()
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["hr_claims.py", *command, *options])
        modules[0].main()
    torch.set_num_threads(threads)
    with (folder / "out/claims.csv").open(newline="") as file:
        return {row["variant"]: row for row in csv.DictReader(file)}


def command(variants=VARIANTS, seeds=SEEDS):
    return ["--variants", *variants, "--seeds", *map(str, seeds)]


@pytest.fixture(scope="module")
def ran(modules, tmp_path_factory):
    """A folder with images and four runs of two steps, and the rows of the table."""
    folder = write_images(tmp_path_factory.mktemp("claims"))
    return folder, claims(modules, folder, *command())


def cell(folder, variant, seed):
    return folder / f"out/m2-l2/{variant}/seed{seed}"


def figures(folder, variant, seed):
    """Found by other means: whole images at once, numpy's counts."""
    paths = sorted((folder / "val").glob("*.png"))
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths]).astype(np.float64)
    images = torch.from_numpy(pixels / 127.5 - 1).permute(0, 3, 1, 2).float()
    out = load_network(cell(folder, variant, seed) / "last.ckpt", "autoencoder").network(images)
    _, counts = np.unique(out.codes[0].numpy(), return_counts=True)
    shares = counts / counts.sum()
    error = (out.images - images).double().square().mean().item()
    return {"mse": error, "alive_top": len(counts), "perplexity_top": np.prod(shares**-shares)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_table_has_mean_and_deviation_of_what_the_networks_do(ran, variant):
    folder, rows = ran
    found = [figures(folder, variant, seed) for seed in SEEDS]
    assert found[0] != found[1]
    for name in found[0]:
        values = [float(own[name]) for own in found]
        assert float(rows[variant][name]) == pytest.approx(sum(values) / 2, rel=1e-4)
        deviation = abs(values[0] - values[1]) / 2**0.5
        assert float(rows[variant][f"{name}_std"]) == pytest.approx(deviation, rel=1e-2, abs=1e-6)


def test_the_error_is_the_one_that_training_logs(ran):
    folder, _ = ran
    path = cell(folder, "linked", 1)
    with (path / "metrics.csv").open(newline="") as file:
        logged = [row["val/mse"] for row in csv.DictReader(file) if row["val/mse"]]
    assert len(logged) == 1
    measured = json.loads((path / "measured.json").read_text())["figures"]["mse"]
    assert measured == pytest.approx(float(logged[0]), rel=1e-5)


def test_bits_and_weights_are_equal(ran):
    _, rows = ran
    assert {float(row["bits"]) for row in rows.values()} == {4 * 4 * 2}
    assert len({row["weights"] for row in rows.values()}) == 1
    assert {float(row["codes_top"]) for row in rows.values()} == {4}
    ratio = float(rows["linked"]["mse"]) / float(rows["flat"]["mse"])
    assert float(rows["linked"]["mse_to_flat"]) == pytest.approx(ratio)
    assert all(float(row[name]) > 0 for row in rows.values() for name in ("search_ms", "decode_ms"))


def test_no_cell_is_run_twice_and_one_without_figures_goes_on(ran, modules, monkeypatch, capsys):
    folder, rows = ran
    path = cell(folder, "linked", 0)
    before = (path / "metrics.csv").read_bytes()
    (path / "measured.json").unlink()
    jobs, lightning = [], modules[1].lightning
    monkeypatch.setattr(modules[1], "lightning", lambda job: (jobs.append(job), lightning(job)))
    again = claims(modules, folder, *command())
    assert jobs == [["fit", "-c", str(path / "job.yaml")]]
    assert (path / "metrics.csv").read_bytes() == before  # it was at its last step: nothing was left to do
    assert again["linked"]["mse"] == rows["linked"]["mse"]
    assert (folder / "out/claims.png").read_bytes().startswith(b"\x89PNG")
    assert "Mean ± standard deviation over seeds" in capsys.readouterr().out


def test_cells_of_other_settings_are_refused(ran, modules):
    folder, _ = ran
    with pytest.raises(SystemExit, match=r"flat/seed0/measured\.json is of a run with other settings"):
        claims(modules, folder, *command(), "--steps", "3")


def test_of_cells_some_of_which_are_done_there_is_a_table(ran, modules):
    folder, _ = ran
    rows = claims(modules, folder, *command(seeds=(1, 2)), "--done")
    assert {variant: row["seeds"] for variant, row in rows.items()} == {"flat": "1", "linked": "1"}
    with pytest.raises(SystemExit, match="is done yet"):
        claims(modules, folder, *command(seeds=(2,)), "--done")


def test_a_single_seed_has_no_deviation_and_ratios_are_to_flat_of_the_same_size(modules):
    claims, cells = modules
    made = {
        cells.Cell("flat", 2, 3, 0): {"mse": 4.0},
        cells.Cell("linked", 2, 3, 0): {"mse": 1.0},
        cells.Cell("flat", 4, 3, 0): {"mse": 2.0},
        cells.Cell("linked", 4, 3, 0): {"mse": 1.0},
        cells.Cell("linked", 4, 3, 1): {"mse": 2.0},
    }
    rows = claims.summary(made)
    assert [(row["variant"], row["leaves"], row["seeds"]) for row in rows] == [
        ("flat", 8, 1),
        ("linked", 8, 1),
        ("flat", 64, 1),
        ("linked", 64, 2),
    ]
    assert [row["mse_to_flat"] for row in rows] == [1, 0.25, 1, 0.5]  # of seed 0, which both have
    assert [row["mse_std"] for row in rows] == [None, None, None, statistics.stdev([1.0, 2.0])]
    assert claims.spread(rows[3], "mse", ".2f") == "1.50 ± 0.71"


def test_each_variant_has_its_network(modules):
    _, cells = modules
    made = {
        name: cells.model(cells.Cell(name, 8, 3, 0), cells.NETWORK, {})["init_args"]
        for name in cells.VARIANTS
    }
    assert {name: made[name].get("num_codes") for name in made} == {
        "flat": 512,
        "flat-revived": 512,
        "residual": None,
        "linked": None,
        "linked-full": None,
        "linked-none": None,
        "linked-revived": None,
        "vqvae2": 512,
    }
    assert (made["flat"]["num_levels"], made["vqvae2"]["num_levels"]) == (1, 3)
    assert (made["residual"]["branch"], made["residual"]["depth"], made["residual"]["linked"]) == (
        8,
        3,
        False,
    )
    gradients = {name: options.get("residual_gradient") for name, options in made.items()}
    assert [gradients[name] for name in ("linked", "linked-full", "linked-none")] == ["stop", "full", "none"]
    revived = {name for name, options in made.items() if options["revive_below"]}
    assert revived == {"flat-revived", "linked-revived"}
    same = cells.NETWORK.keys() - {"revive_below"}
    assert all(options[name] == cells.NETWORK[name] for options in made.values() for name in same)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--network", "hiden=3"], "--network hiden=3: wanted one of beta, polyak"),
        (["--val", "x"], "--val and --holdout go with --train"),
    ],
)
def test_options_that_do_not_fit_are_refused(modules, monkeypatch, capsys, options, message):
    monkeypatch.setattr(sys, "argv", ["hr_claims.py", *options])
    with pytest.raises(SystemExit):
        modules[0].arguments()
    assert message in capsys.readouterr().err


def test_the_images_of_the_recipe_are_used(modules, monkeypatch):
    claims, cells = modules
    monkeypatch.setattr(sys, "argv", ["hr_claims.py", "--seeds", "3"])
    config = claims.config(cells.Cell("linked", 8, 3, 3), claims.arguments())
    images = config["data"]["init_args"]
    assert (images["train"], images["image_size"]) == ("data/cifar10/train-{0000..0004}.tar", 32)
    assert (images["seed"], config["seed_everything"], images["batch_size"]) == (3, 3, 32)
    assert Path(claims.CONFIGS / "cifar10_vqvae.yaml").is_file()
