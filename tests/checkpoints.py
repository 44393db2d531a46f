"""Small checkpoints of every kind, as the modules write them, without training."""

from pathlib import Path

import torch

from vqvae2.data.latents import LatentSpec, levels_of
from vqvae2.nn.hierarchical import HierarchicalVQVAE
from vqvae2.nn.pixelsnail import PixelSNAIL
from vqvae2.nn.weights import fingerprint
from vqvae2.pixels import size_of
from vqvae2.storage.checkpoint import DESCRIPTION

WIDTHS = {"hidden": 8, "residual": 4, "residual_blocks": 1, "num_codes": 16, "code_dim": 4}
AUTOENCODER = {"channels": 1, "num_levels": 2, "factor": 2, "decay": 0.99, "eps": 1e-5, **WIDTHS}
PRIOR = {"hidden": 8, "residual": 8, "layers": 1, "attention_layers": 0, "kernel": 3, "dropout": 0.0}
IMAGE_SIZE = 16


def save(path: Path, weights: torch.nn.Module, **description) -> str:
    state = {f"average.{name}": tensor for name, tensor in weights.state_dict().items()}
    torch.save({DESCRIPTION: description, "state_dict": state}, path)
    return str(path)


def save_autoencoder(path: Path, seed: int = 0, **changes) -> tuple[str, HierarchicalVQVAE]:
    torch.manual_seed(seed)
    options = {**AUTOENCODER, **changes}
    network = HierarchicalVQVAE(**options).eval()
    for quantizer in network.quantizers:
        quantizer.codebook.mul_(0.1)  # within reach of an untrained encoder, so that several codes are used
    return save(path, network, kind="autoencoder", network=options, image_size=IMAGE_SIZE), network


def latent_spec(autoencoder: HierarchicalVQVAE, num_classes: int) -> LatentSpec:
    levels = levels_of(autoencoder, size_of(IMAGE_SIZE))
    return LatentSpec(levels, num_classes, fingerprint(autoencoder))


def save_prior_of(network: type, path: Path, spec: LatentSpec, index: int, options: dict, **facts) -> str:
    """A prior of a level under those above it, with logits that are not all zero."""
    *above, here = spec.levels[: index + 1]
    shape = {
        "grid": [here.height, here.width],
        "num_codes": here.num_codes,
        "condition_grids": [[level.height, level.width] for level in above],
        "condition_codes": [level.num_codes for level in above],
        "num_classes": spec.num_classes,
    }
    options = {**shape, **options}
    prior = network(**options)
    for part in getattr(prior, "levels", [prior]):
        torch.nn.init.normal_(part.to_logits.weight)
    description = {"level": here.name, "latents": spec.to_dict(), **facts}
    return save(path, prior, kind="prior", network=options, **description)


def save_prior(path: Path, spec: LatentSpec, index: int, **facts) -> str:
    stack = {"conditioning_hidden": 8, "conditioning_blocks": 2} if index else {}
    return save_prior_of(PixelSNAIL, path, spec, index, {**PRIOR, "output_layers": 1, **stack}, **facts)


def save_chain(
    folder: Path, num_classes: int = 3, classes: list[str] | None = None, **changes
) -> tuple[HierarchicalVQVAE, str, list[str]]:
    """An autoencoder and the priors of all its levels: (network, its checkpoint, the priors').

    Without `classes` the priors' checkpoints are as those from before they kept the names.
    """
    facts = {} if classes is None else {"classes": classes}
    checkpoint, network = save_autoencoder(folder / "autoencoder.ckpt", **changes)
    spec = latent_spec(network, num_classes)
    priors = [save_prior(folder / f"{i}.ckpt", spec, i, **facts) for i in range(len(spec.levels))]
    return network, checkpoint, priors
