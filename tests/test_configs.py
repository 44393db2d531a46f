"""Every YAML in configs/ builds: parsed, instantiated, and with its networks at full size (meta device).

Checkpoints do not exist here. What a config wants to load is built from the config that would train it, which
also holds that the jobs of a data set find each other's files. Each is instantiated once for all tests.
"""

import functools
from itertools import pairwise
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy

import vqvae2.evaluation.inputs
import vqvae2.jobs.encode
import vqvae2.jobs.rejection_classifier
import vqvae2.jobs.sample
import vqvae2.runs.previews
from tests.recipe_names import CONFIGS, JOBS, RECIPES, num_classes
from vqvae2.cli.parsing import SuiteParser
from vqvae2.cli.recipes import compose, expanded
from vqvae2.cli.suite import SuiteCLI
from vqvae2.data.latents import LatentSpec, levels_of
from vqvae2.pixels import size_of
from vqvae2.storage.checkpoint import Loaded
from vqvae2.training.base import NetworkModule
from vqvae2.training.sharding import ShardedStrategy

OVERLAYS = sorted({path.stem for path in CONFIGS.glob("*.yaml")} - {*JOBS, *RECIPES})
PREDICTS = ("encode", "sample", "complete", "inpaint")
VERBS = {**dict.fromkeys(PREDICTS, "predict"), "eval": "test"}  # all others fit
# The others are made from these, with the same trainer.
WITH_FILES = [name for name in JOBS if (CONFIGS / f"{name}.yaml").is_file()]
FITS = [name for name in WITH_FILES if name.rpartition("_")[2] not in VERBS]


class Build(SuiteCLI):
    """Instantiates everything that a config names, and stops there."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


class Facts:
    """Stands in for a trainer whose data need not exist."""

    def __init__(self, datamodule: object) -> None:
        self.datamodule = datamodule


class Images:
    def __init__(self, data: L.LightningDataModule, num_classes: int) -> None:
        self.channels, self.image_size, self.num_classes = data.channels, data.image_size, num_classes
        self.classes = [str(label) for label in range(num_classes)]


class Latents:
    def __init__(self, recipe: str) -> None:
        autoencoder, module = build(f"{recipe}_vqvae")
        levels = levels_of(autoencoder, size_of(module.description["image_size"]))
        self.spec = LatentSpec(levels, num_classes(recipe), "meta")


@functools.cache
def instantiate(name: str, *overlays: str) -> Build:
    verb = VERBS.get(name.rpartition("_")[2], "fit")
    files = [str(CONFIGS / f"{file}.yaml") for file in (name, *overlays)]
    command, SuiteParser.composed = expanded([verb, *(part for file in files for part in ("-c", file))])
    return Build(command)


@functools.cache
def build(name: str) -> tuple[torch.nn.Module, NetworkModule]:
    """The network of a config that trains one, on the meta device, and its module."""
    recipe = name.rpartition("_")[0]
    cli = instantiate(name)
    is_prior = "level" in vars(cli.model)
    facts = Facts(Latents(recipe) if is_prior else Images(cli.datamodule, num_classes(recipe)))
    cli.model.trainer = facts
    with torch.device("meta"):
        return cli.model.build_network(), cli.model


def load_from_configs(path: str, kind: str) -> Loaded:
    """`load_network` of a checkpoint that the configs would write."""
    run, file = Path(path).parent, Path(path).name
    name = "_".join(run.parts[-2:])
    assert compose(CONFIGS / f"{name}.yaml")["trainer"]["default_root_dir"] == str(run)
    network, module = build(name)
    assert file == "last.ckpt" or (
        file == "best.ckpt" and instantiate(name).config_init.fit.checkpoint.monitor
    )
    assert module.kind == kind
    return Loaded(network, module.description)


@pytest.fixture(autouse=True)
def nothing_on_disk(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(SuiteParser, "composed", {})
    modules = [
        vqvae2.jobs.encode,
        vqvae2.jobs.sample,
        vqvae2.jobs.rejection_classifier,
        vqvae2.evaluation.inputs,
        vqvae2.runs.previews,
    ]
    for module in modules:
        monkeypatch.setattr(module, "load_network", load_from_configs)
        if hasattr(module, "fingerprint"):
            monkeypatch.setattr(module, "fingerprint", lambda network: "meta")


@pytest.mark.parametrize("name", JOBS)
def test_config_builds(name):
    cli = instantiate(name)
    assert cli.trainer.default_root_dir.startswith(f"runs/{name.rpartition('_')[0]}/")
    if isinstance(cli.model, NetworkModule):
        network, module = build(name)
        with torch.device("meta"):
            again = type(network)(**module.description["network"])
        shapes = {key: tensor.shape for key, tensor in network.state_dict().items()}
        assert shapes == {key: tensor.shape for key, tensor in again.state_dict().items()}


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("name", FITS)
def test_overlays_build_on_every_fit(name, overlay):
    plain, cli = instantiate(name), instantiate(name, overlay)
    changed = {
        key
        for key, value in cli.config.fit.trainer.items()
        if str(value) != str(plain.config.fit.trainer.get(key)) and not key.startswith("strategy")
    }
    assert changed <= {"devices"}
    assert isinstance(cli.trainer.strategy, {"ddp": DDPStrategy, "fsdp": ShardedStrategy}[overlay])


def test_an_apple_gpu_is_not_chosen_by_itself(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert isinstance(instantiate("demo_vqvae").trainer.accelerator, CPUAccelerator)


def test_every_part_is_used():
    used = {"wandb.yaml"}  # a second -c, for any run
    for path in CONFIGS.rglob("*.yaml"):
        config = yaml.safe_load(path.read_text())
        for each in (config, *config.get("parts", {}).values(), *config.get("jobs", {}).values()):
            used |= {Path(base.partition("#")[0]).name for base in (each or {}).get("base", [])}
    assert {path.name for path in (CONFIGS / "parts").glob("*.yaml")} <= used


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if num_classes(recipe)])
def test_a_score_differs_from_its_ceiling_in_the_training_images_alone(recipe):
    """And it holds out the same images, and reads what the other jobs write."""
    cas, ceiling = (compose(CONFIGS / f"{recipe}_{name}.yaml") for name in ("cas", "classifier"))
    assert cas["model"] == ceiling["model"]
    train, real = (config["data"]["init_args"] for config in (cas, ceiling))
    source = {} if "val" in real else {"holdout_of": real["train"]}
    samples = compose(CONFIGS / f"{recipe}_sample.yaml")
    assert train == real | source | {"train": samples["trainer"]["default_root_dir"]}
    jobs = [config["trainer"] | {"default_root_dir": None} for config in (cas, ceiling)]
    assert jobs[0] == jobs[1]
    assert "checkpoint" not in cas  # nothing is chosen by the images that the score is measured on
    assert cas["model"]["init_args"]["autoencoder"] == samples["model"]["init_args"]["autoencoder"]


def conv(inputs: int, outputs: int, taps: int, bias: int = 1) -> int:
    """The weights of a convolution over so many positions."""
    return outputs * (inputs * taps + bias)


def autoencoder_size(levels: int, halvings: int) -> int:
    """[S] table 3: C 128, R 64, 2 residual blocks, D 64; strided and transposed convolutions are 4x4."""
    c, r, d = 128, 64, 64
    stack = 2 * (conv(c, r, 9) + conv(r, c, 1))

    def encoder(channels: int, halvings: int) -> int:
        strided = [channels, c // 2, *[c] * (halvings - 1)]
        first = sum(conv(a, b, 16) for a, b in pairwise(strided))
        return first + conv(strided[-1], c, 9) + stack

    def decoder(codes: int, doublings: int, outputs: int) -> int:
        transposed = [*[c] * (doublings - 1), c // 2, outputs] if doublings > 1 else [c, outputs]
        last = sum(conv(a, b, 16) for a, b in pairwise(transposed))
        return conv(codes * d, c, 9) + stack + last

    encoders = encoder(3, halvings) + (levels - 1) * encoder(c, 1)
    conditioners = sum(decoder(above, 1, d) for above in range(1, levels))
    to_code = conv(c, d, 1) + (levels - 1) * conv(c + d, d, 1)
    upsamplers = levels * (levels - 1) // 2 * conv(d, d, 16)
    return encoders + conditioners + to_code + upsamplers + decoder(levels, halvings, 3)


def prior_size(r: int, layers: int, attention: int = 0, output: int = 0, classes: int = 0, above=0, blocks=0):
    """[S] tables 1 and 2: C 512, K 512, windows of 5: three rows of five above, three taps to the left."""
    c, k, z = 512, 512, 1024 * (above > 0)
    first = (1 + above) * k * c + classes * c + conv(c, c, 15) + conv(c, c, 3)
    streams = conv(c, r, 15) + conv(c, r, 3) + c * r + 2 * conv(r // 2, c, 1)
    layer = streams + 2 * c * r * (classes > 0) + z * r
    attends = conv(c + 2, c, 1) + conv(2 * c + 2, 2 * c, 1) + conv(c, c, 1)
    last = output * (conv(c, r, 1) + conv(r // 2, c, 1)) + conv(c, k, 1)
    return (
        first + layers * layer + attention * attends + last + (stack_size(above * c, blocks) if above else 0)
    )


def stack_size(inputs: int, blocks: int) -> int:
    """[S] A.2, pseudo code: half the blocks on each way at the two finer scales, all at the coarsest."""
    z, wide = 1024, 2048

    def block(units: int) -> int:
        inner = units // 4
        return 2 * units + conv(units, inner, 1) + conv(inner, inner, 9) + conv(inner, units, 1)

    ways = (
        conv(inputs, z, 1) + conv(z, wide, 1) + conv(wide, wide, 1) + conv(wide, wide, 4) + conv(wide, z, 4)
    )
    return ways + blocks * block(z) + 2 * blocks * block(wide)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("imagenet_vqvae", autoencoder_size(levels=2, halvings=2)),
        ("ffhq_vqvae", autoencoder_size(levels=3, halvings=3)),
        ("imagenet_top", prior_size(2048, 20, attention=4, output=20, classes=1000)),
        ("imagenet_bottom", prior_size(1024, 20, classes=1000, above=1, blocks=20)),
        ("ffhq_top", prior_size(2048, 20, attention=4)),
        ("ffhq_mid", prior_size(1024, 20, attention=1, above=1, blocks=8)),
        ("ffhq_bottom", prior_size(1024, 10, above=2, blocks=8)),
    ],
)
def test_the_papers_networks_have_their_size(name, size):
    network, _ = build(name)
    assert sum(p.numel() for p in network.parameters()) == size
