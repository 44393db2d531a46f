"""The sample job's module: labels in, images out. `SampleWriter` writes them."""

from typing import NamedTuple

import lightning as L
from torch import Tensor, nn

from vqvae2.data.latents import LatentSpec, check_autoencoder
from vqvae2.data.requests import RequestBatch
from vqvae2.modules.autoencoder import AutoencoderModule
from vqvae2.modules.checkpoint import load_network
from vqvae2.modules.prior import PriorModule
from vqvae2.nn.autoencoder import fingerprint
from vqvae2.pixels import to_uint8
from vqvae2.sampling.ancestral import Sampled, sample_codes


class Samples(NamedTuple):
    """Sampled images, on the CPU."""

    images: Tensor  # uint8 [B, C, H, W]
    labels: Tensor  # int64 [B], -1 without classes
    index: Tensor  # int64 [B], number of the image within the set
    levels: list[Sampled]  # top first


class SampleModule(L.LightningModule):
    """Samples images: labels → top → mid → bottom → decoder (algorithm 2).

    Args:
        autoencoder: checkpoint.
        priors: checkpoints of the priors, one a level, top first.
        temperatures: one a level, top first; 1 samples what the priors have learned.
        seed: with its number, the only randomness of an image.

    Raises:
        ValueError: a checkpoint is missing or of another kind, the priors do not cover the autoencoder's
            levels in order, they learned the codes of another one, or a temperature is not above 0.
    """

    def __init__(
        self, *, autoencoder: str, priors: list[str], temperatures: list[float], seed: int = 0
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer chunks than ranks
        if seed < 0:
            raise ValueError(f"seed is {seed}, wanted 0 or more.")
        if len(temperatures) != len(priors) or not all(t > 0 for t in temperatures):
            raise ValueError(
                f"temperatures is {temperatures}, wanted one above 0 for each of the {len(priors)} priors."
            )
        self.autoencoder, _ = load_network(autoencoder, AutoencoderModule.kind)
        self.priors, self.spec = load_chain(priors, autoencoder, self.autoencoder)
        self.checkpoints = [autoencoder, *priors]
        self.temperatures = temperatures
        self.seed = seed

    @property
    def level_names(self) -> tuple[str, ...]:
        return self.autoencoder.level_names

    @property
    def num_classes(self) -> int:
        return self.spec.num_classes

    def setup(self, stage: str) -> None:
        """Refuses requests that the priors cannot meet."""
        self.trainer.datamodule.labels(self.num_classes)

    def predict_step(self, batch: RequestBatch, batch_idx: int, dataloader_idx: int = 0) -> Samples:
        levels = sample_codes(
            list(self.priors),
            batch.labels,
            seed=self.seed,
            images=batch.index.tolist(),
            temperatures=self.temperatures,
        )
        images = to_uint8(self.autoencoder.decode([level.codes for level in levels]))
        levels = [Sampled(level.codes.cpu(), level.nll_nats.cpu()) for level in levels]
        return Samples(images.cpu(), batch.labels.cpu(), batch.index.cpu(), levels)


def load_chain(
    checkpoints: list[str], autoencoder: str, network: nn.Module
) -> tuple[nn.ModuleList, LatentSpec]:
    """The priors of all levels of an autoencoder, and the spec of the codes that they have learned.

    Args:
        checkpoints: of the priors, top first.
        autoencoder: where `network` comes from, for messages.
        network: the autoencoder.

    Raises:
        ValueError: the levels do not chain, or the priors did not learn the same codes of this autoencoder.
    """
    loaded = [load_network(checkpoint, PriorModule.kind) for checkpoint in checkpoints]
    found = tuple(prior.facts["level"] for prior in loaded)
    if found != network.level_names:
        raise ValueError(
            f"priors model the levels {', '.join(found) or 'none'}; {autoencoder} needs "
            f"{', '.join(network.level_names)}, in this order."
        )
    digest = fingerprint(network)
    specs = [LatentSpec.from_dict(prior.facts["latents"]) for prior in loaded]
    for checkpoint, spec in zip(checkpoints, specs, strict=True):
        check_autoencoder(spec, digest, codes=checkpoint, checkpoint=autoencoder)
        if spec != specs[0]:
            raise ValueError(
                f"{checkpoints[0]} learned {specs[0].summary}, {checkpoint} learned {spec.summary}. "
                "Sample with priors that were trained on the same latents."
            )
    return nn.ModuleList(prior.network for prior in loaded), specs[0]
