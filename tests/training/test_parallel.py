"""DDP and FSDP of two gloo processes against a single one: training, checkpoints, pictures.

All runs of two processes are made by one pair of processes, once.
"""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from tests.ranks import run_ranks
from tests.training import parallel_run as runs
from tests.training.parallel_run import assert_same
from vqvae2.nn.weights import fingerprint
from vqvae2.runs.checkpoint_files import StreamedCheckpoints
from vqvae2.storage.checkpoint import load_network, read_checkpoint, read_description

# Trained by two ranks from the start, and from the half of another run: (run, of two ranks, goes on from).
WHOLE = [
    ("autoencoder", "ddp"),
    ("autoencoder", "fsdp"),
    ("top", "ddp"),
    ("top", "folders"),
    ("bottom", "ddp"),
    ("bottom", "copies"),
    ("hr", "ddp"),
    ("hr", "fsdp"),
    ("path", "ddp"),
    ("path", "folders"),
    ("classifier", "ddp"),
    ("classifier", "fsdp"),
    ("sundae", "ddp"),
    ("sundae", "fsdp"),
    ("vqgan", "ddp"),
    ("vqgan", "fsdp"),
]
RESUMED = [
    ("autoencoder", "fsdp", "single"),
    ("autoencoder", "ddp", "fsdp"),
    ("top", "fsdp", "folders"),
    ("top", "folders", "ddp"),
    ("top", "ddp", "folders"),
    ("hr", "fsdp", "single"),
    ("hr", "ddp", "fsdp"),
    ("path", "fsdp", "folders"),
    ("classifier", "fsdp", "single"),
    ("classifier", "ddp", "fsdp"),
    ("sundae", "fsdp", "single"),
    ("sundae", "ddp", "fsdp"),
    ("vqgan", "fsdp", "single"),
    ("vqgan", "ddp", "fsdp"),
]
WIDE = {"hidden": 16}
RESUMED_ALONE = [("autoencoder", "fsdp"), ("top", "folders"), ("bottom", "copies"), ("classifier", "fsdp")]
RESUMED_ALONE += [("hr", "fsdp"), ("path", "folders"), ("sundae", "fsdp"), ("vqgan", "fsdp")]


def _on_rank(folder):
    figures = {(kind, name): runs.fit(kind, name, folder) for kind, name in WHOLE}
    for kind, name, before in RESUMED:
        runs.fit(kind, name, folder, run=f"{kind}-{before}-{name}", resume=f"{kind}-{before}")
    for kind in ("autoencoder", "bottom", "hr", "path"):
        for run, precision in {"mixed": "bf16-mixed", "true": "bf16-true"}.items():
            figures[kind, run] = runs.fit(
                kind, "fsdp", folder, run=f"{kind}-{run}", steps=3, precision=precision
            )
    return figures


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of all runs, and what each logged: of a single process, and of each of two."""
    with runs.folder_of_runs(tmp_path_factory) as folder:
        alone = {kind: runs.fit(kind, "single", folder) for kind in runs.MODULES}
        ranks = run_ranks(_on_rank, 2, folder, timeout_s=500)
        for kind, name in RESUMED_ALONE:
            runs.fit(kind, "single", folder, run=f"{kind}-{name}-single", resume=f"{kind}-{name}")
        yield folder, alone, ranks


@pytest.mark.parametrize(("kind", "name"), WHOLE)
def test_two_ranks_train_as_one(trained, kind, name):
    folder, alone, ranks = trained
    assert_same(folder / f"{kind}-{name}.ckpt", folder / f"{kind}-single.ckpt", 1e-5)
    for figures in ranks:
        assert len(figures[kind, name]) == len(alone[kind]) >= runs.STEPS
        for step, expected in zip(figures[kind, name], alone[kind], strict=True):
            assert step == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "name", "before"), [*RESUMED, *((k, "single", n) for k, n in RESUMED_ALONE)]
)
def test_a_run_goes_on_under_another_strategy(trained, kind, name, before):
    folder, _, _ = trained
    assert_same(folder / f"{kind}-{before}-{name}.ckpt", folder / f"{kind}-single.ckpt", 1e-5)


def test_a_checkpoint_holds_what_one_of_a_single_process_holds(trained):
    folder, _, _ = trained
    for kind, name in WHOLE:
        mine, alone = (read_checkpoint(folder / f"{kind}-{run}-half.ckpt") for run in (name, "single"))
        assert list(mine) == list(alone)
        for entry in ("epoch", "global_step", "loops", "lr_schedulers"):
            assert mine[entry] == alone[entry], entry
        groups = [[o["param_groups"] for o in checkpoint["optimizer_states"]] for checkpoint in (mine, alone)]
        assert groups[0] == groups[1]


def test_checkpoints_load_as_networks(trained):
    folder, _, _ = trained
    for kind, name in WHOLE:
        path = folder / f"{kind}-{name}.ckpt"
        assert path.is_dir() == (name == "folders")
        loaded = load_network(path, read_description(path)["kind"])
        state = runs.state(path)
        for key, tensor in loaded.network.state_dict().items():
            assert torch.equal(tensor, state[f"average.{key}"])
        assert len(fingerprint(loaded.network)) == 64


def test_gradients_were_clipped(trained):
    """Or the runs above would prove nothing of it: without clipping the weights are others."""
    folder, _, _ = trained
    runs.fit("top", "single", folder, run="top-unclipped", gradient_clip_val=None)
    with pytest.raises(AssertionError):
        assert_same(folder / "top-unclipped.ckpt", folder / "top-single.ckpt", 1e-5)


def test_pictures_are_those_of_a_single_process(trained):
    folder, _, _ = trained
    for kind, name in WHOLE:
        if kind == "classifier":
            continue
        pictures = sorted((folder / f"{kind}-single" / "images").iterdir())
        assert pictures
        for path in pictures:
            mine = folder / f"{kind}-{name}" / "images" / path.name
            mine, alone = (pil_to_tensor(Image.open(file)).int() for file in (mine, path))
            assert mine.shape == alone.shape
            assert (mine - alone).abs().max() <= 1  # rounding


def test_a_sharded_run_goes_on_to_the_bit(trained):
    folder, _, _ = trained
    assert_same(folder / "top-folders-fsdp.ckpt", folder / "top-folders.ckpt", 0)


@pytest.mark.parametrize("kind", ["autoencoder", "bottom", "hr", "path"])
def test_half_precision_spares_codebooks_and_averages(trained, kind):
    """Layers are gathered as bfloat16 as under autocast alone; weights stay float32."""
    folder, _, ranks = trained
    alone = runs.fit(kind, "single", folder, run=f"{kind}-autocast", steps=3, precision="bf16-mixed")
    for step, expected in zip(ranks[0][kind, "mixed"], alone, strict=True):
        assert step == pytest.approx(expected, rel=1e-2)
    half, whole = (runs.state(folder / f"{kind}-{name}.ckpt") for name in ("mixed", "single"))
    assert half.keys() == whole.keys()
    for name, value in whole.items():
        assert half[name].dtype == value.dtype
        assert half[name].isfinite().all()
    true = runs.state(folder / f"{kind}-true.ckpt")
    for name, value in true.items():
        exact = "quantizer" in name or name.endswith("step") or not value.is_floating_point()
        assert value.dtype == (whole[name].dtype if exact else torch.bfloat16), name


def test_what_does_not_fit_is_refused_before_it_is_loaded(trained):
    folder, _, _ = trained
    with pytest.raises(AssertionError, match="its hidden is 8, here it is 16"):
        run_ranks(lambda: runs.fit("top", "fsdp", folder, run="wide", resume="top-folders", model=WIDE))


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:200])])
def test_a_folder_without_all_its_shards_is_refused(trained, tmp_path, damage):
    shutil.copytree(trained[0] / "top-folders.ckpt", tmp_path / "last.ckpt")
    damage(tmp_path / "last.ckpt" / "shard-00001.pt")
    with pytest.raises(ValueError, match=r"shard-00001\.pt cannot be read as a checkpoint"):
        load_network(tmp_path / "last.ckpt", "prior")


def _save_on_rank(folder):
    """Rank 1 cannot write its shard: both hear of it."""
    try:
        runs.fit("classifier", "folders", folder, run="full", steps=1, plugins=[FullDisk()])
    except OSError as error:
        return str(error)


class FullDisk(StreamedCheckpoints):
    def save_checkpoint(self, checkpoint, path, storage_options=None):
        if path.name == "shard-00001.pt":
            raise OSError("no room")
        super().save_checkpoint(checkpoint, path, storage_options)


def test_a_shard_that_cannot_be_written_stops_every_rank(trained):
    assert run_ranks(_save_on_rank, 2, trained[0]) == ["no room"] * 2
