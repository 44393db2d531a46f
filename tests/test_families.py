"""A family that the suite does not know goes through every job, and a chain may mix kinds of priors."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests import toy_families
from tests.fit_runs import QUIET, STEPS
from vqvae2.cli.suite import main as cli
from vqvae2.nn.contracts import network_class
from vqvae2.sampling.draw import level_sampler
from vqvae2.storage.checkpoint import load_network, save_network

TOY = "tests.toy_families"
PRIOR = {"hidden": 8, "residual": 8, "layers": 1, "attention_layers": 0, "kernel": 3, "dropout": 0.0}
STACK = {"output_layers": 0, "conditioning_hidden": 8, "conditioning_blocks": 2}
CONSTANT = {"class_path": "Constant", "init_args": {"learning_rate": 0.01}}
SUMMARY = {"accelerator": "cpu", "devices": 1, "logger": False, **QUIET}


def lightning(verb: str, folder: Path, name: str, model: dict, data: dict, *callbacks: dict) -> Path:
    """Runs a job whose folder is `folder/name`."""
    steps = STEPS if verb == "fit" else {}
    trainer = {**SUMMARY, **steps, "default_root_dir": str(folder / name), "callbacks": list(callbacks)}
    config = folder / f"{name}.yaml"
    config.write_text(yaml.safe_dump({"trainer": trainer, "model": model, "data": data}))
    cli([verb, "-c", str(config)])
    return folder / name


@pytest.fixture(scope="module", params=[32, [32, 64]], ids=str)
def run(request, tmp_path_factory) -> Path:
    """A toy tokenizer, a toy prior above and the suite's own below; samples, completions, figures."""
    folder = tmp_path_factory.mktemp("family")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 32), dtype=np.uint8)
    for i, image in enumerate(pixels):
        path = folder / f"images/{'ab'[i % 2]}/{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    size = {"image_size": request.param, "channels": 1, "batch_size": 4, "holdout": 0.25}
    images = {"class_path": "ImageDataModule", "init_args": {"train": str(folder / "images"), **size}}
    latents = {
        "class_path": "LatentDataModule",
        "init_args": {"latents": str(folder / "latents"), "batch_size": 4},
    }
    vqvae, top, bottom = (str(folder / name / "last.ckpt") for name in ("vqvae", "top", "bottom"))
    tokenizer = {"class_path": f"{TOY}.BlockMeansModule"}
    lightning(
        "fit",
        folder,
        "vqvae",
        tokenizer,
        images,
        {"class_path": "ReconstructionGrid"},
        {"class_path": "Health"},
    )
    encode = {"class_path": "EncodeModule", "init_args": {"checkpoint": vqvae}}
    lightning("predict", folder, "latents", encode, images, {"class_path": "LatentWriter"})
    preview = {"class_path": "SampleGrid", "init_args": {"autoencoder": vqvae}}
    histogram = {"class_path": f"{TOY}.HistogramModule", "init_args": {"level": "top"}}
    lightning("fit", folder, "top", histogram, latents, preview)
    options = {"level": "bottom", "schedule": CONSTANT, "polyak": 0.5, **PRIOR, **STACK}
    lightning(
        "fit",
        folder,
        "bottom",
        {"class_path": "ConditionalPriorModule", "init_args": options},
        latents,
        preview,
    )
    chain = {"autoencoder": vqvae, "priors": [top, bottom]}
    sample, writer = {"class_path": "SampleModule", "init_args": chain}, {"class_path": "SampleWriter"}
    requests = {"class_path": "SampleRequests", "init_args": {"per_class": 3, "batch_size": 2}}
    lightning("predict", folder, "samples", sample, requests, writer)
    prompts = {
        "prompts": str(folder / "latents"),
        "num_prompts": 2,
        "per_prompt": 2,
        "rows": 0.5,
        "batch_size": 4,
    }
    lightning(
        "predict", folder, "complete", sample, {"class_path": "PromptRequests", "init_args": prompts}, writer
    )
    inpaint = {"pictures": str(folder / "images"), "mask": {"shape": "block"}, "batch_size": 4, "fit": "pad"}
    lightning(
        "predict", folder, "inpaint", sample, {"class_path": "InpaintRequests", "init_args": inpaint}, writer
    )
    evaluated = {**images["init_args"], "latents": str(folder / "latents")}
    data = {"class_path": "EvaluationDataModule", "init_args": evaluated}
    lightning("test", folder, "eval", {"class_path": "EvaluationModule", "init_args": chain}, data)
    return folder


def test_every_job_ran_on_a_family_it_does_not_know(run):
    figures = json.loads((run / "eval/metrics.json").read_text())["figures"]
    network, _ = load_network(run / "vqvae/last.ckpt", "autoencoder")
    assert isinstance(network, toy_families.BlockMeans)
    assert figures["mse_val"] > 0
    assert "perplexity_top" in figures
    with (run / "samples/scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["0", "1"] * 3
    assert {name for name in ("vqvae", "top", "bottom") if list((run / name / "images").glob("*.png"))} == {
        "vqvae",
        "top",
        "bottom",
    }
    assert (run / "complete/grid.png").exists()
    assert (run / "inpaint/grid.png").exists()


def test_a_prior_without_a_likelihood_gets_no_likelihood(run):
    figures = json.loads((run / "eval/metrics.json").read_text())["figures"]
    assert "nll_bottom_val" in figures
    assert not [name for name in figures if "nll_top" in name or name in ("bits_val", "bpp_val")]
    with (run / "samples/scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["nll_top"] for row in rows} == {""}
    assert all(float(row["nll_bottom"]) > 0 for row in rows)


def test_a_network_alone_is_written_and_read_by_one_pair_of_functions(tmp_path):
    made = toy_families.BlockMeans(channels=2)
    torch.nn.init.uniform_(made.steps)
    save_network(tmp_path / "x.ckpt", made, {"channels": 2}, image_size=32)
    network, facts = load_network(tmp_path / "x.ckpt", "autoencoder")
    assert torch.equal(network.steps, made.steps)
    assert (facts["architecture"], facts["image_size"], network.channels) == ("block-means", 32, 2)
    assert not network.training
    assert list(tmp_path.iterdir()) == [tmp_path / "x.ckpt"]


def test_unknown_architectures_and_priors_without_a_sampler_are_named():
    with pytest.raises(
        ValueError, match=r"no prior of the architecture 'pixelsnial', wanted one of: .*pixelsnail"
    ):
        network_class("prior", "pixelsnial")

    class Silent(toy_families.PriorNetwork):
        def loss(self, codes, conditions, labels): ...

    with pytest.raises(TypeError, match="Silent has no sampler"):
        level_sampler(Silent(), None)
