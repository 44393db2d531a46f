"""A family that the suite does not know goes through every job, and a chain may mix kinds of priors."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests import toy_families
from tests.command_jobs import CONSTANT, STACK, lightning, named
from vqvae2.nn.contracts import network_class
from vqvae2.sampling.draw import level_sampler
from vqvae2.storage.checkpoint import load_network, save_network

TOY = "tests.toy_families"
PRIOR = {"hidden": 8, "residual": 8, "layers": 1, "attention_layers": 0, "kernel": 3, "dropout": 0.0}


def draw_images(folder: Path) -> None:
    """24 of noise, in two classes."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 32), dtype=np.uint8)
    for i, image in enumerate(pixels):
        path = folder / f"{'ab'[i % 2]}/{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def all_jobs(folder: Path, image_size: int | list[int]) -> list[tuple]:
    """In their order: verb, name, model, data and callbacks; each job's folder is `folder/name`."""
    pictures, codes = str(folder / "images"), str(folder / "latents")
    vqvae, top, bottom = (str(folder / name / "last.ckpt") for name in ("vqvae", "top", "bottom"))
    of_images = {"train": pictures, "image_size": image_size, "channels": 1, "batch_size": 4, "holdout": 0.25}
    images = named("ImageDataModule", **of_images)
    latents = named("LatentDataModule", latents=codes, batch_size=4)
    chain = {"autoencoder": vqvae, "priors": [top, bottom]}
    sample, writer = named("SampleModule", **chain), named("SampleWriter")
    preview = named("SampleGrid", autoencoder=vqvae)
    histogram = named(f"{TOY}.HistogramModule", level="top")
    below = named("ConditionalPriorModule", level="bottom", schedule=CONSTANT, polyak=0.5, **PRIOR, **STACK)
    requests = named("SampleRequests", per_class=3, batch_size=2)
    prompts = named("PromptRequests", prompts=codes, num_prompts=2, per_prompt=2, rows=0.5, batch_size=4)
    inpaint = named("InpaintRequests", pictures=pictures, mask={"shape": "block"}, batch_size=4, fit="pad")
    evaluated = named("EvaluationDataModule", **of_images, latents=codes)
    watch = [named("ReconstructionGrid"), named("Health")]
    return [
        ("fit", "vqvae", named(f"{TOY}.BlockMeansModule"), images, watch),
        ("predict", "latents", named("EncodeModule", checkpoint=vqvae), images, [named("LatentWriter")]),
        ("fit", "top", histogram, latents, [preview]),
        ("fit", "bottom", below, latents, [preview]),
        ("predict", "samples", sample, requests, [writer]),
        ("predict", "complete", sample, prompts, [writer]),
        ("predict", "inpaint", sample, inpaint, [writer]),
        ("test", "eval", named("EvaluationModule", **chain), evaluated, []),
    ]


@pytest.fixture(scope="module", params=[32, [32, 64]], ids=str)
def run(request, tmp_path_factory) -> Path:
    """A toy tokenizer, a toy prior above and the suite's own below; samples, completions, figures."""
    folder = tmp_path_factory.mktemp("family")
    draw_images(folder / "images")
    for verb, name, model, data, callbacks in all_jobs(folder, request.param):
        lightning(verb, folder, name, model, data, *callbacks)
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
