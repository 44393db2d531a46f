"""Every YAML in configs/ builds: parsed, instantiated, and with its networks at full size (meta device).

Checkpoints do not exist here. What a config wants to load is built from the config that would train it, which
also holds that the jobs of a data set find each other's files.
"""

from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy

import vqvae2.callbacks.grids
import vqvae2.modules.critic
import vqvae2.modules.encode
import vqvae2.modules.evaluation_inputs
import vqvae2.modules.sample
from vqvae2.cli import SuiteCLI
from vqvae2.composition import compose
from vqvae2.data.latents import LatentSpec, Level
from vqvae2.modules.base import NetworkModule
from vqvae2.modules.checkpoint import Loaded
from vqvae2.modules.sharding import ShardedStrategy

CONFIGS = Path(__file__).parents[1] / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*_*.yaml"))
OVERLAYS = sorted({path.stem for path in CONFIGS.glob("*.yaml")} - set(NAMES))
NUM_CLASSES = {"demo": 10, "cifar10": 10, "imagenet": 1000, "ffhq": 0}
VERBS = {"encode": "predict", "sample": "predict", "complete": "predict", "eval": "test"}  # all others fit


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
    def __init__(self, dataset: str) -> None:
        autoencoder, module = build(f"{dataset}_vqvae")
        size = module.description["image_size"]
        levels = zip(
            autoencoder.level_names, autoencoder.grids(size, size), autoencoder.codebook_sizes, strict=True
        )
        levels = tuple(Level(name, height, width, codes) for name, (height, width), codes in levels)
        self.spec = LatentSpec(levels, NUM_CLASSES[dataset], "meta")


def instantiate(name: str, *overlays: str) -> Build:
    verb = VERBS.get(name.partition("_")[2], "fit")
    files = [str(CONFIGS / f"{file}.yaml") for file in (name, *overlays)]
    return Build([verb, *(part for file in files for part in ("-c", file))])


def build(name: str) -> tuple[torch.nn.Module, NetworkModule]:
    """The network of a config that trains one, on the meta device, and its module."""
    dataset = name.partition("_")[0]
    cli = instantiate(name)
    is_prior = "level" in vars(cli.model)
    facts = Facts(Latents(dataset) if is_prior else Images(cli.datamodule, NUM_CLASSES[dataset]))
    cli.model.trainer = facts
    with torch.device("meta"):
        return cli.model.build_network(), cli.model


def load_from_configs(path: str, kind: str) -> Loaded:
    """`load_network` of a checkpoint that the configs would write."""
    run, file = Path(path).parent, Path(path).name
    name = "_".join(run.parts[-2:])
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    assert config["trainer"]["default_root_dir"] == str(run)
    network, module = build(name)
    assert file == "last.ckpt" or (
        file == "best.ckpt" and instantiate(name).config_init.fit.checkpoint.monitor
    )
    assert module.kind == kind
    return Loaded(network, module.description)


@pytest.fixture(autouse=True)
def nothing_on_disk(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    modules = [
        vqvae2.modules.encode,
        vqvae2.modules.sample,
        vqvae2.modules.critic,
        vqvae2.modules.evaluation_inputs,
        vqvae2.callbacks.grids,
    ]
    for module in modules:
        monkeypatch.setattr(module, "load_network", load_from_configs)
        if hasattr(module, "fingerprint"):
            monkeypatch.setattr(module, "fingerprint", lambda network: "meta")


@pytest.mark.parametrize("name", NAMES)
def test_config_builds(name):
    cli = instantiate(name)
    assert cli.trainer.default_root_dir.startswith(f"runs/{name.partition('_')[0]}")
    if isinstance(cli.model, NetworkModule):
        network, module = build(name)
        with torch.device("meta"):
            again = type(network)(**module.description["network"])
        shapes = {key: tensor.shape for key, tensor in network.state_dict().items()}
        assert shapes == {key: tensor.shape for key, tensor in again.state_dict().items()}


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("name", [name for name in NAMES if name.partition("_")[2] not in VERBS])
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
        used |= {Path(base).name for base in yaml.safe_load(path.read_text()).get("base", [])}
    assert {path.name for path in (CONFIGS / "parts").glob("*.yaml")} <= used


@pytest.mark.parametrize("dataset", [name for name, count in NUM_CLASSES.items() if count])
def test_a_score_differs_from_its_ceiling_in_the_training_images_alone(dataset):
    """And it holds out the same images, and reads what the other jobs write."""
    cas, ceiling = (compose(CONFIGS / f"{dataset}_{name}.yaml") for name in ("cas", "classifier"))
    assert cas["model"] == ceiling["model"]
    train, real = (config["data"]["init_args"] for config in (cas, ceiling))
    source = {} if "val" in real else {"holdout_of": real["train"]}
    samples = compose(CONFIGS / f"{dataset}_sample.yaml")
    assert train == real | source | {"train": samples["trainer"]["default_root_dir"]}
    jobs = [config["trainer"] | {"default_root_dir": None} for config in (cas, ceiling)]
    assert jobs[0] == jobs[1]
    assert "checkpoint" not in cas  # nothing is chosen by the images that the score is measured on
    assert cas["model"]["init_args"]["autoencoder"] == samples["model"]["init_args"]["autoencoder"]


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("imagenet_vqvae", 1.717),
        ("ffhq_vqvae", 3.27),
        ("imagenet_top", 505),
        ("imagenet_bottom", 490),
        ("ffhq_top", 431),
        ("ffhq_mid", 350),
        ("ffhq_bottom", 233),
    ],
)
def test_the_papers_networks_have_their_size(name, millions):
    network, _ = build(name)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=5e-3)
