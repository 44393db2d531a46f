"""What an earlier version wrote is still read: its configs, checkpoints and latents, and its runs go on.

`tests/written_before` was written by the suite as it stood when all classes lay in `vqvae2.modules` and
`vqvae2.callbacks`: three steps of an autoencoder and of a top prior, two of a classifier, and latents.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.sample_job import files
from vqvae2.cli.suite import main as cli
from vqvae2.nn.contracts import PriorNetwork, Tokenizer
from vqvae2.storage.checkpoint import load_network, read_description

BEFORE = Path(__file__).parent / "written_before"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A copy, with the images that it was trained on."""
    shutil.copytree(BEFORE, tmp_path, dirs_exist_ok=True)
    draw = np.random.default_rng(5)
    for i in range(12):
        path = tmp_path / f"images/{'ab'[i % 2]}/{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["vqvae", "top", "classifier"])
def test_a_run_goes_on_by_its_config_though_every_class_has_moved(folder, name):
    before = torch.load(folder / f"{name}/last.ckpt", weights_only=True)
    cli(["fit", "-c", f"{name}.yaml", "--trainer.max_steps", "6"])
    after = torch.load(folder / f"{name}/last.ckpt", weights_only=True)
    assert (before["global_step"], after["global_step"]) == ({"classifier": 2}.get(name, 3), 6)
    assert after["state_dict"].keys() == before["state_dict"].keys()


def test_networks_are_read_without_the_name_of_their_architecture(folder):
    autoencoder = load_network(folder / "vqvae/last.ckpt", Tokenizer.kind)
    assert autoencoder.facts["architecture"] == "vqvae2"
    assert autoencoder.network.level_names == ("top", "bottom")
    assert load_network(folder / "top/last.ckpt", PriorNetwork.kind).network.grid == (4, 4)
    assert read_description(folder / "classifier/last.ckpt")["architecture"] == "classifier"


def test_encoding_again_gives_the_same_bytes(folder):
    there = {name: content for name, content in files(folder / "latents").items() if name.endswith(".tar")}
    writer = ["--trainer.callbacks.init_args.folder", "again", "--trainer.default_root_dir", "again"]
    cli(["predict", "-c", "encode.yaml", *writer])
    again = files(folder / "again")
    assert {name: again[name] for name in there} == there
