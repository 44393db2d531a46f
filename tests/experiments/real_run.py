"""A tiny run that the suite's own jobs wrote: what pages, tables and dashboard are tested on."""

import contextlib
import copy
import functools
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import lightning as L
import torch

from tests.evaluation.evaluation_run import SIZE, VQVAE, data_of, make_run, module_of, write_scores
from tests.quiet import quiet_trainer
from tests.sample_job import run as predict
from vqvae2.data.images import ImageDataModule
from vqvae2.data.latent_module import LatentDataModule
from vqvae2.evaluation.pictures import EvaluationPictures
from vqvae2.jobs.prompts import PromptRequests
from vqvae2.jobs.requests import SampleRequests
from vqvae2.jobs.sample import SampleModule
from vqvae2.jobs.sample_writer import SampleWriter
from vqvae2.metrics.quality import InfinitySizes, KernelSubsets, Neighbourhoods
from vqvae2.runs.loggers import MetricsFile
from vqvae2.runs.previews import ReconstructionGrid
from vqvae2.training.autoencoder import AutoencoderModule
from vqvae2.training.classifier import ClassifierModule
from vqvae2.training.pixelsnail import ConditionalPriorModule, TopPriorModule
from vqvae2.training.schedules import Constant

WIDTHS = {"hidden": 8, "residual": 8, "layers": 1, "kernel": 3, "attention_layers": 0, "dropout": 0.0}
OPTIONS = {"schedule": Constant(1e-3), "polyak": 0.9}


@functools.cache
def _home() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()  # removed when the tests end


@functools.cache
def real_run() -> Path:
    """The folder of a data set's runs, with every stage that a report reads; it must not be changed."""
    inputs, run = Path(_home().name, "inputs"), Path(_home().name, "run")
    with contextlib.redirect_stdout(io.StringIO()):  # not to the test that happens to ask first
        _fill(inputs, run)
    return run


def real_evaluation() -> dict[str, Any]:
    """The content of its metrics.json."""
    return _read("eval/metrics.json")


def real_accuracy() -> dict[str, Any]:
    """The content of an accuracy.json."""
    return _read("cas/accuracy.json")


def like(template: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A copy with other values, in fields that the job writes and in no others."""
    unknown = changes.keys() - template.keys()
    assert not unknown, f"no job writes {unknown}"
    return copy.deepcopy(template | changes)


def _fill(inputs: Path, run: Path) -> None:
    inputs.mkdir()
    make_run(inputs)
    write_scores(inputs / "samples", [-0.1 * i for i in range(19)])
    images = {"val": str(inputs / "val"), "image_size": SIZE, "batch_size": 4}
    real = ImageDataModule(train=str(inputs / "train"), **images)
    autoencoder = AutoencoderModule(**OPTIONS, beta=0.25, **{k: VQVAE[k] for k in VQVAE if k != "channels"})
    _fit(run / "vqvae", autoencoder, real, ReconstructionGrid(2))
    latents = LatentDataModule(latents=str(inputs / "latents"), batch_size=4)
    _fit(run / "top", TopPriorModule(**OPTIONS, output_layers=0, **WIDTHS), latents)
    stack = {"conditioning_hidden": 8, "conditioning_blocks": 2, "output_layers": 0}
    _fit(run / "bottom", ConditionalPriorModule(**OPTIONS, level="bottom", **stack, **WIDTHS), latents)
    for stage, train in (("classifier", "train"), ("cas", "samples")):
        data = ImageDataModule(train=str(inputs / train), **images)
        options = {"widths": [4], "blocks": 1, "autoencoder": str(inputs / "vqvae.ckpt")}
        module = ClassifierModule(**OPTIONS, **options)
        _fit(run / stage, module, data).test(module, data, verbose=False)
    _sample(inputs, run)
    module = module_of(
        inputs,
        kid=KernelSubsets(subsets=3, subset_size=12),
        fid_infinity=InfinitySizes(points=3),
        manifold=Neighbourhoods(),
        queries=3,
        nearest=2,
        fractions=[1.0, 0.5],
    )
    trainer = _trainer(run / "eval", EvaluationPictures(rows=2), max_steps=-1)
    trainer.test(module, data_of(inputs), verbose=False)


def _fit(folder: Path, module: L.LightningModule, data: L.LightningDataModule, *callbacks: Any) -> L.Trainer:
    torch.manual_seed(0)
    logging = {"log_every_n_steps": 1, "check_val_every_n_epoch": None, "val_check_interval": 2}
    trainer = _trainer(folder, *callbacks, logger=MetricsFile(folder), max_steps=4, **logging)
    trainer.fit(module, data)
    return trainer


def _trainer(folder: Path, *callbacks: Any, logger: Any = False, **options: Any) -> L.Trainer:
    return quiet_trainer(
        devices=1, default_root_dir=folder, logger=logger, callbacks=list(callbacks), **options
    )


def _sample(inputs: Path, run: Path) -> None:
    priors = [str(inputs / f"{level}.ckpt") for level in ("top", "bottom")]
    module = {"autoencoder": str(inputs / "vqvae.ckpt"), "priors": priors, "temperatures": [1.0, 1.0]}
    prompts = PromptRequests(
        prompts=str(inputs / "latents"), per_prompt=2, num_prompts=2, batch_size=4, rows=0.5
    )
    for stage, data in (("samples", SampleRequests(per_class=2, batch_size=6)), ("complete", prompts)):
        predict(SampleModule(**module), data, SampleWriter(str(run / stage), grid_rows=2))


@functools.cache
def _text(file: str) -> str:
    return (real_run() / file).read_text(encoding="utf-8")


def _read(file: str) -> dict[str, Any]:
    return json.loads(_text(file))
