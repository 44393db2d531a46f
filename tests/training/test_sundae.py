"""Training SUNDAE: its optimiser, its figures, what is written, and grids that it learns by heart."""

import copy

import lightning as L
import pytest
import torch

from tests.training.training_run import SPEC, trainer, write_latents
from vqvae2.data.latent_module import LatentDataModule
from vqvae2.data.latent_shards import write_shard
from vqvae2.data.latents import LatentSpec, Level, Manifest, write_manifest
from vqvae2.nn.sundae import SUNDAE
from vqvae2.sampling.draw import Draw, Noise, Steps
from vqvae2.sampling.sundae import DenoisingSampler
from vqvae2.storage.checkpoint import load_network
from vqvae2.training.schedules import Constant
from vqvae2.training.sundae import SUNDAEModule

SIZES = {"width": 16, "heads": 2, "head_width": 8, "depth": [1, 1, 1], "dropout": 0.0, "unroll": 2}


def module(**changes) -> SUNDAEModule:
    torch.manual_seed(0)
    return SUNDAEModule(**{"schedule": Constant(1e-2), "polyak": 0.5, **SIZES, **changes})


@pytest.fixture(scope="module")
def latents(tmp_path_factory) -> str:
    return write_latents(tmp_path_factory.mktemp("latents"))


def fit(latents: str, steps: int, *, batch_size=4, module: SUNDAEModule, **options) -> SUNDAEModule:
    data = LatentDataModule(latents=latents, batch_size=batch_size)
    trainer(steps, **options).fit(module, data)
    return module


@pytest.mark.parametrize("clip", [None, 0.1])
def test_every_step_is_adamws_with_decay_on_matrices_alone(latents, clip):
    """Beside the run torch's own optimiser, without fusing, on a copy that gets the same gradients."""
    it = module(level="mid", weight_decay=0.3)
    start, gradients = {}, []

    clipping = it.configure_gradient_clipping

    def clip_and_keep(*args, **options):
        clipping(*args, **options)
        if not gradients:
            start.update({name: weights.detach().clone() for name, weights in it.network.named_parameters()})
        gradients.append([weights.grad.clone() for weights in it.network.parameters()])

    it.configure_gradient_clipping = clip_and_keep
    fit(latents, 4, module=it, gradient_clip_val=clip)
    assert len(gradients) == 4
    assert start["embedding.weight"].shape == (9, 16)
    weights = {name: torch.nn.Parameter(value) for name, value in start.items()}
    vectors = ("norm", ".dense.0.", "patches.0.")  # norms, by their names
    matrix = [name.endswith("weight") and not any(part in name for part in vectors) for name in weights]
    assert [value.ndim > 1 for value in weights.values()] == matrix
    groups = [
        {"params": [value for value, of in zip(weights.values(), matrix, strict=True) if of == which]}
        | {"weight_decay": decay}
        for which, decay in ((True, 0.3), (False, 0.0))
    ]
    reference = torch.optim.AdamW(groups, lr=1e-2, foreach=False)
    for step in gradients:
        if clip:
            assert torch.stack([g.norm() for g in step]).norm() <= clip * 1.001
        for value, gradient in zip(weights.values(), step, strict=True):
            value.grad = gradient
        reference.step()
    for name, value in it.network.named_parameters():
        torch.testing.assert_close(value.detach(), weights[name].detach(), rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(("level", "index"), [("top", 0), ("mid", 1), ("bottom", 2)])
def test_a_prior_of_each_level_is_built_from_the_manifest_and_read_back(latents, tmp_path, level, index):
    it = module(level=level, class_dropout=0.1)
    data = LatentDataModule(latents=latents, batch_size=4)
    run = trainer(3, val_check_interval=1)
    run.fit(it, data)
    here, above = SPEC.levels[index], SPEC.levels[:index]
    assert it.network.grid == (here.height, here.width)
    assert [e.num_embeddings for e in it.network.condition_embeddings] == [a.num_codes for a in above]
    figures = run.callback_metrics
    assert figures["train/loss"] > 0
    assert not [name for name in figures if "nll" in name or "bits" in name]
    batches = list(data.val_dataloader())
    losses = torch.stack([it.average.loss(*it.inputs(batch)) for batch in batches]).double()
    counts = torch.tensor([len(batch.labels) for batch in batches]).double()
    assert figures["val/loss"].item() == pytest.approx((losses @ counts / counts.sum()).item(), rel=1e-5)
    run.save_checkpoint(tmp_path / "x.ckpt")
    loaded = load_network(tmp_path / "x.ckpt", "prior").network
    assert isinstance(loaded, SUNDAE)
    assert loaded.class_dropout == 0.1
    for name, value in it.average.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_checkpointed_layers_train_alike(latents):
    plain, checkpointed = (
        fit(latents, 3, module=module(level="mid", dropout=0.2, checkpoint_layers=again))
        for again in (False, True)
    )
    assert checkpointed.network.checkpoint_layers
    assert not plain.network.checkpoint_layers
    for mine, theirs in zip(checkpointed.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_resumed_run_draws_the_noise_of_one_that_was_not_interrupted(latents, tmp_path):

    class Save(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "half.ckpt", weights_only=False)

    noise = {"class_dropout": 0.3, "dropout": 0.2}
    whole = fit(latents, 7, module=module(**noise), callbacks=[Save()])
    resumed, data = module(**noise), LatentDataModule(latents=latents, batch_size=4)
    torch.rand(3)
    trainer(7).fit(resumed, data, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    for mine, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("decay", [-0.1, float("inf"), float("nan")])
def test_impossible_decays_are_refused(decay):
    with pytest.raises(ValueError, match=r"weight_decay is -?[a-z0-9.]+, wanted a finite number"):
        module(weight_decay=decay)


def write_two_grids(folder) -> list[torch.Tensor]:
    """Two classes, each of one grid of 4x4 that has little to do with the other; returns the grids."""
    spec = LatentSpec((Level("top", 4, 4, 6),), 2, "a" * 64)
    grids = [torch.arange(16).view(4, 4) * 5 % 6, torch.arange(16).view(4, 4).T // 3]
    splits = {}
    for split, count in {"train": 16, "val": 2}.items():
        labels = torch.arange(count) % 2
        codes = torch.stack([grids[label] for label in labels])
        arrays = {"codes": [codes.numpy()], "labels": labels.numpy(), "keys": [str(i) for i in range(count)]}
        splits[split] = (write_shard(folder, f"{split}/000000.tar", spec, **arrays, samples_per_record=8),)
    write_manifest(folder, Manifest(spec, (), {}, splits))
    return grids


def test_what_is_learned_by_heart_is_drawn_again(tmp_path):
    """Each class is one grid; sampled from noise, and completed from one row of it."""
    grids = write_two_grids(tmp_path)
    it = fit(str(tmp_path), 150, module=module(weight_decay=0.01), batch_size=16)
    prior = copy.deepcopy(it.average).eval()
    labels = torch.arange(20) % 2
    expected = torch.stack([grids[label] for label in labels])
    for how in (Draw(), Draw(steps=Steps(4, (1.0, 1.0), (0.5, 0.1))), Draw(steps=Steps(9, argmax=True))):
        sampler = DenoisingSampler(prior, how)
        for kept in (torch.full((20, 4, 4), -1), torch.where(torch.arange(4)[:, None] == 1, expected, -1)):
            found = sampler([], labels, Noise(0, range(20), 0), kept).codes
            assert (found == expected).all((1, 2)).double().mean() >= 0.9
