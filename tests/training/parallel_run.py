"""Training runs of one and of two processes, of every trainable module, tiny: for tests that compare them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy

from tests.checkpoints import save_autoencoder
from tests.training.training_run import NETWORK, image_data, trainer, write_images
from tests.training.vqgan_run import vqgan_module
from vqvae2.data.latent_module import LatentDataModule
from vqvae2.data.latent_shards import write_shard
from vqvae2.data.latents import LatentSpec, Level, Manifest, write_manifest
from vqvae2.nn import sundae
from vqvae2.nn.weights import fingerprint
from vqvae2.runs.checkpoint_files import StreamedCheckpoints
from vqvae2.runs.previews import ReconstructionGrid, SampleGrid
from vqvae2.storage.checkpoint import DESCRIPTION, read_checkpoint
from vqvae2.training.autoencoder import AutoencoderModule
from vqvae2.training.classifier import ClassifierModule
from vqvae2.training.hr_vqvae import HRVQVAEModule
from vqvae2.training.path_prior import PathPriorModule
from vqvae2.training.pixelsnail import ConditionalPriorModule, TopPriorModule
from vqvae2.training.schedules import Constant
from vqvae2.training.sharding import ShardedStrategy
from vqvae2.training.sundae import SUNDAEModule

STEPS, HALF = 20, 10
SHARED = {"schedule": Constant(3e-3), "polyak": 0.9}
PRIOR = {"hidden": 8, "residual": 8, "layers": 2, "kernel": 3, "dropout": 0.0, "output_layers": 1}
SUNDAE = {"width": 8, "heads": 2, "head_width": 4, "depth": [1, 1, 1], "dropout": 0.0, "unroll": 2}
CONDITIONED = {"layers": 1, "attention_layers": 0, "conditioning_hidden": 8, "conditioning_blocks": 2}
# Codes do not start from data here: which vector one becomes differs with the number of ranks.
LEVELS = {"branch": 3, "depth": 2, "residual_gradient": "full", "codebook_init": "normal"}
RESIDUAL = {
    name: value for name, value in NETWORK.items() if name not in ("num_levels", "num_codes")
} | LEVELS
MODULES = {
    "vqgan": lambda **options: vqgan_module(**options),
    "autoencoder": lambda **options: AutoencoderModule(**SHARED, beta=0.25, **(NETWORK | options)),
    "hr": lambda **options: HRVQVAEModule(**SHARED, beta=0.25, **(RESIDUAL | options)),
    "top": lambda **options: TopPriorModule(
        **SHARED, **(PRIOR | {"attention_layers": 1, "heads": 2} | options)
    ),
    "bottom": lambda **options: ConditionalPriorModule(
        level="bottom",
        **SHARED,
        **(PRIOR | CONDITIONED | options),
    ),
    "sundae": lambda **options: SUNDAEModule(
        level="bottom", weight_decay=0.1, **SHARED, **(SUNDAE | options)
    ),
    "path": lambda **options: PathPriorModule(**SHARED, **(PRIOR | CONDITIONED | {"depth": 2} | options)),
    "classifier": lambda **options: ClassifierModule(
        **SHARED, **({"widths": [4, 6], "blocks": 1, "weight_decay": 0.1} | options)
    ),
}
MODEL_OPTIONS = {kind: {"checkpoint_layers": True} for kind in ("bottom", "path", "sundae")}
TRAINER = {
    "top": {"gradient_clip_val": 0.05, "accumulate_grad_batches": 2},
    "vqgan": {"gradient_clip_val": 0.05},
}
PRIORS, TOKENIZERS = ("top", "bottom", "path", "sundae"), ("autoencoder", "hr", "vqgan")


def write_data(folder):
    """Images in two classes, an autoencoder of 16x16, and latents that say they are of it."""
    (folder / "images").mkdir()
    write_images(folder / "images")
    for split in ("train", "val"):  # the second half of the images is another class
        paths = sorted((folder / "images" / split).iterdir())
        for number, path in enumerate(paths):
            label = path.parent.parent / f"labelled-{split}" / f"{2 * number // len(paths)}"
            label.mkdir(parents=True, exist_ok=True)
            (label / path.name).write_bytes(path.read_bytes())
    _, network = save_autoencoder(folder / "autoencoder.ckpt")
    spec = LatentSpec((Level("top", 4, 4, 16), Level("bottom", 8, 8, 16)), 3, fingerprint(network))
    draw = torch.Generator().manual_seed(0)
    splits = {}
    for split, count in {"train": 20, "val": 6}.items():
        codes = [torch.randint(16, (count, n, n), generator=draw).numpy() for n in (4, 8)]
        labels = torch.randint(3, (count,), generator=draw).numpy()
        names = [str(i) for i in range(count)]
        shard = write_shard(
            folder / "latents",
            f"{split}/000000.tar",
            spec,
            codes=codes,
            labels=labels,
            keys=names,
            samples_per_record=8,
        )
        splits[split] = (shard,)
    write_manifest(folder / "latents", Manifest(spec, (), {}, splits))


def data(kind, folder):
    if kind in PRIORS:
        return LatentDataModule(latents=str(folder / "latents"), batch_size=4)
    images = image_data(folder / "images", 8)
    if kind in TOKENIZERS:
        return images
    return type(images)(
        train=str(folder / "images" / "labelled-train"),
        val=str(folder / "images" / "labelled-val"),
        image_size=8,
        batch_size=8,
    )


class Watch(L.Callback):
    """Keeps the training figures of every step, and saves in the middle and at the end."""

    def __init__(self, name):
        self.name = name
        self.figures = []
        self.saved = False

    def on_train_batch_end(self, trainer, *_):
        metrics = trainer.callback_metrics
        self.figures.append({k: v.item() for k, v in metrics.items() if k.startswith("train/")})
        if trainer.global_step == HALF and not self.saved:  # and not in the middle of the next step
            self.saved = True
            trainer.save_checkpoint(f"{self.name}-half.ckpt", weights_only=False)


def strategy(name):
    """None, as overlays have it, or sharded with a folder as checkpoint."""
    if name == "single":
        return {}
    os.environ["LOCAL_RANK"] = str(dist.get_rank())
    if name == "ddp":
        options = {"broadcast_buffers": False, "gradient_as_bucket_view": True}
        return {"devices": 2, "strategy": DDPStrategy(**options, process_group_backend="gloo")}
    if name == "copies":  # two "nodes" of one device each
        os.environ |= {"LOCAL_RANK": "0", "NODE_RANK": str(dist.get_rank())}
        return {"devices": 1, "num_nodes": 2, "strategy": ShardedStrategy()}
    return {"devices": 2, "strategy": ShardedStrategy(save_distributed_checkpoint=name == "folders")}


@contextmanager
def without_noise(kind: str) -> Iterator[None]:
    """What SUNDAE corrupts and draws follows from the codes alone: each rank draws other noise."""

    def corrupt(self, codes, _):
        place = torch.arange(codes[0].numel(), device=codes.device).view(codes.shape[1:])
        return torch.where((codes + place) % 3 > 0, codes, (codes * 5 + place) % self.num_codes)

    if kind != "sundae":
        yield
        return
    likeliest = patch.object(sundae, "_drawn", lambda logits, _: logits.argmax(-1))
    with likeliest, patch.object(sundae.SUNDAE, "_corrupt", corrupt):
        yield


@contextmanager
def folder_of_runs(tmp_path_factory) -> Iterator[Path]:
    """With data to train on; meanwhile this process has one thread, as ranks have."""
    folder = tmp_path_factory.mktemp("parallel")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    write_data(folder)
    yield folder
    torch.set_num_threads(before)


def fit(kind, name, folder, *, run=None, resume=None, steps=STEPS, model=None, **options):
    """Trains and saves `RUN-half.ckpt` and `RUN.ckpt`; returns what was logged in each step."""
    torch.manual_seed(0)
    options = {"plugins": [StreamedCheckpoints()], **strategy(name), **TRAINER.get(kind, {}), **options}
    module = MODULES[kind](**(MODEL_OPTIONS.get(kind, {}) | (model or {})))
    run = folder / (run or f"{kind}-{name}")
    watch = Watch(run)
    callbacks = [watch]
    if kind in TOKENIZERS:
        callbacks.append(ReconstructionGrid(num_samples=3))
    elif kind in PRIORS:
        callbacks.append(SampleGrid(str(folder / "autoencoder.ckpt"), num_samples=3))
    training = trainer(
        steps,
        callbacks=callbacks,
        default_root_dir=str(run),
        log_every_n_steps=1,
        val_check_interval=HALF * options.get("accumulate_grad_batches", 1),
        check_val_every_n_epoch=None,
        **options,
    )
    resume = None if resume is None else str(folder / f"{resume}-half.ckpt")
    with without_noise(kind):
        training.fit(module, data(kind, folder), ckpt_path=resume, weights_only=True)
    training.save_checkpoint(f"{run}.ckpt", weights_only=False)
    return watch.figures


def state(path):
    """What a run ends with, by name: weights, averages, buffers, moments."""
    checkpoint = read_checkpoint(path)
    found = dict(checkpoint["state_dict"])
    for number, optimizer in enumerate(checkpoint["optimizer_states"]):
        for weight, moments in optimizer["state"].items():
            found |= {f"optimizer {number} {weight} {name}": value for name, value in moments.items()}
    assert DESCRIPTION in checkpoint
    return found


def assert_same(path, expected, tolerance):
    """Weights, averages, codebooks and moments, under the same names."""
    found, wanted = state(path), state(expected)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        same = partial(
            torch.testing.assert_close, found[name], value, msg=lambda text, name=name: name + text
        )
        same(rtol=tolerance, atol=tolerance, check_stride=False)
