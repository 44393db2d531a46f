"""The sample job's module: labels in, images out. `SampleWriter` writes them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn

from vqvae2.data.class_names import by_number, comparable, composed, some
from vqvae2.data.latents import LatentSpec, check_autoencoder
from vqvae2.jobs.rejection_classifier import load_rejection_classifier
from vqvae2.jobs.requests import RequestBatch
from vqvae2.jobs.scores import SCORER
from vqvae2.nn.checks import require
from vqvae2.nn.contracts import PriorNetwork, Tokenizer
from vqvae2.nn.weights import fingerprint
from vqvae2.pixels import ImageSize, to_uint8, written
from vqvae2.sampling.chain import ChainSampler
from vqvae2.sampling.draw import Draw, Sampled, Steps
from vqvae2.sampling.rejection import log_scores
from vqvae2.storage.checkpoint import load_network


class Samples(NamedTuple):
    """Sampled images, on the CPU."""

    images: Tensor  # uint8 [B, C, H, W]
    labels: Tensor  # int64 [B], -1 without classes
    index: Tensor  # int64 [B], number of the image within the set
    levels: list[Sampled]  # top first
    log_scores: Tensor | None  # float64 [B], None without a rejection classifier
    prompts: Tensor | None  # int64 [B], which prompt was completed; None without prompts


class SampleModule(L.LightningModule):
    """Samples images: labels → top → mid → bottom → decoder (algorithm 2).

    Args:
        autoencoder: checkpoint.
        priors: checkpoints of the priors, one a level, top first.
        temperatures: one for each level, top first; null for 1 in all levels. With 1 the samples follow what
            the priors have learned; any other value is approximate.
        top_k: one for each level; only the k likeliest codes are drawn, null for all. Approximate if set.
        top_p: one for each level; only the likeliest codes that together have this probability are drawn,
            null for all. Approximate if set.
        steps: one for each level, null for the usual ones: how a prior that draws a whole grid at once goes
            from step to step. What a config or an option leaves out of a level's steps stays as before.
        seed: an image depends on this seed and on its number, and on no other randomness.
        rejection_classifier: classifier that scores how surely each image is of its class; see
            `load_rejection_classifier`. null for none.
        compiled: use `torch.compile`, which costs minutes once.
        graphed: on a GPU, record the sampler's passes as CUDA graphs, which costs seconds once; false where
            a driver refuses them. Elsewhere it changes nothing.

    Raises:
        ValueError: a checkpoint is missing or of another kind, the priors do not cover the autoencoder's
            levels in order, they learned the codes of another one, the rejection classifier was trained for
            other images or classes, or codes cannot be drawn as asked.
    """

    def __init__(
        self,
        *,
        autoencoder: str,
        priors: list[str],
        temperatures: list[float] | None = None,
        top_k: list[int | None] | None = None,
        top_p: list[float | None] | None = None,
        steps: list[Steps | None] | None = None,
        seed: int = 0,
        rejection_classifier: str | None = None,
        compiled: bool = False,
        graphed: bool = True,
    ) -> None:
        super().__init__()
        require(seed >= 0, "seed", seed, "0 or more")
        self.draws = _draws(temperatures, top_k, top_p, steps, num_levels=len(priors))
        self.autoencoder: Tokenizer = load_network(autoencoder, Tokenizer.kind).network
        self.priors, self.spec, self.classes = load_chain(priors, autoencoder, self.autoencoder)
        for level, draw in zip(self.spec.levels, self.draws, strict=True):
            _check_draw(draw, level.name, level.num_codes)
        self.channels = self.autoencoder.channels
        grids = [(level.height, level.width) for level in self.spec.levels]
        self.image_size = written(ImageSize(*self.autoencoder.image_size(grids)))
        # In a tuple, where Lightning does not find it: half precision is for the sampler alone.
        loaded = (
            None if rejection_classifier is None else self._load_rejection_classifier(rejection_classifier)
        )
        self._rejection_classifier = (loaded,)
        self.checkpoints = [autoencoder, *priors]
        self.rejection_classifier_path = rejection_classifier
        self.seed = seed
        self.compiled = compiled
        self.graphed = graphed
        self._sampler: ChainSampler | None = None

    @property
    def level_names(self) -> tuple[str, ...]:
        return self.autoencoder.level_names

    @property
    def rejection_classifier(self) -> nn.Module | None:
        return self._rejection_classifier[0]

    @property
    def approximations(self) -> list[str]:
        """What keeps the samples from following the distribution that the priors have learned."""
        return [
            f"{name} {value} on {level}"
            for level, draw in zip(self.level_names, self.draws, strict=True)
            for name, value, exact in zip(Draw._fields, draw, Draw(), strict=True)
            if value != exact and name != "steps"  # which no sampler that is exact takes
        ]

    def identity(self) -> dict[str, Any]:
        """What decides an image beside its number and its request, but for rounding (plain types)."""
        levels = zip(self.level_names, self.draws, self.priors, strict=True)
        draws, priors = {}, {}
        for name, draw, prior in levels:
            draws[name], priors[name] = draw.described(), fingerprint(prior)
        return {
            "seed": self.seed,
            "draws": draws,
            "autoencoder": self.spec.autoencoder,
            "priors": priors,
            SCORER: None if self.rejection_classifier is None else fingerprint(self.rejection_classifier),
        }

    def setup(self, stage: str) -> None:
        """Refuses requests that the priors cannot meet.

        Raises:
            ValueError: such a request.
        """
        self.trainer.datamodule.check(self.spec, self.checkpoints[0], self.classes)

    def on_predict_start(self) -> None:
        if self.rejection_classifier is not None:
            self.rejection_classifier.to(self.device)

    def predict_step(self, batch: RequestBatch, batch_idx: int, dataloader_idx: int = 0) -> Samples:
        """
        Raises:
            ValueError: the batch does not fit into memory.
        """
        if not len(batch.index):
            return Samples(torch.empty(0, dtype=torch.uint8), batch.labels, batch.index, [], None, None)
        if self._sampler is None:  # the priors are in their place now
            options = {"compiled": self.compiled, "graphed": self.graphed}
            self._sampler = ChainSampler(list(self.priors), self.draws, **options)
        try:
            return self._sample(batch, self._sampler)
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
                raise
            raise ValueError(_too_large(len(batch.index), self.device)) from error

    def _sample(self, batch: RequestBatch, sampler: ChainSampler) -> Samples:
        levels = sampler(batch.labels, seed=self.seed, images=batch.index.tolist(), kept=batch.kept)
        images = to_uint8(self.autoencoder.decode([level.codes for level in levels]))
        if batch.pixels is not None:
            images = torch.where(batch.known, batch.pixels, images)
        scores = (
            None
            if self.rejection_classifier is None
            else log_scores(self.rejection_classifier, images, batch.labels).cpu()
        )
        return Samples(
            images.cpu(),
            batch.labels.cpu(),
            batch.index.cpu(),
            [_to_cpu(level) for level in levels],
            scores,
            None if batch.prompts is None else batch.prompts.cpu(),
        )

    def _load_rejection_classifier(self, path: str) -> nn.Module:
        return load_rejection_classifier(
            path,
            num_classes=self.spec.num_classes,
            channels=self.channels,
            image_size=self.image_size,
            classes=() if by_number(self.classes) else self.classes,
        )


def _too_large(batch_size: int, device: torch.device) -> str:
    if batch_size == 1:
        cure = "Free some of it, or take --trainer.precision bf16-true or a device that has more."
        return f"One image alone does not fit into the memory of the device {device}. {cure}"
    return (
        f"{batch_size} images at once do not fit into the memory of the device {device}. Set data.batch_size "
        f"to {batch_size // 2}, which probably fits. Files that are finished are kept."
    )


def _to_cpu(level: Sampled) -> Sampled:
    return Sampled(*(None if part is None else part.cpu() for part in level))


def _draws(
    temperatures: Sequence[float] | None,
    top_k: Sequence[int | None] | None,
    top_p: Sequence[float | None] | None,
    steps: Sequence[Steps | None] | None,
    *,
    num_levels: int,
) -> list[Draw]:
    """
    Raises:
        ValueError: one of them does not say something for each level.
    """
    off = [None] * num_levels
    columns = {
        "temperatures": [1.0] * num_levels if temperatures is None else temperatures,
        "top_k": off if top_k is None else top_k,
        "top_p": off if top_p is None else top_p,
        "steps": off if steps is None else steps,
    }
    for name, column in columns.items():
        if len(column) != num_levels:
            raise ValueError(f"{name} is {list(column)}, wanted one for each of the {num_levels} priors.")
    return [Draw(*row) for row in zip(*columns.values(), strict=True)]


def _check_draw(draw: Draw, level: str, num_codes: int) -> None:
    try:
        draw.check(num_codes)
    except ValueError as error:
        raise ValueError(f"Level {level}: {error}") from error


class Chain(NamedTuple):
    """The priors of all levels of an autoencoder."""

    priors: nn.ModuleList  # top first
    spec: LatentSpec  # of the codes that they have learned
    classes: tuple[str, ...]  # the classes' names in label order; () where no checkpoint keeps them


def load_chain(checkpoints: list[str], autoencoder: str, network: nn.Module) -> Chain:
    """Loads the priors, and checks that they belong together.

    Args:
        checkpoints: of the priors, top first.
        autoencoder: where `network` comes from, for messages.
        network: the autoencoder.

    Raises:
        ValueError: the levels do not chain, or the priors did not learn the same codes of this autoencoder,
            or other classes.
    """
    loaded = [load_network(checkpoint, PriorNetwork.kind) for checkpoint in checkpoints]
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
    names = [composed(prior.facts.get("classes", ())) for prior in loaded]  # older checkpoints have none
    classes = next((found for found in names if not by_number(found)), names[0])
    for checkpoint, found in zip(checkpoints, names, strict=True):
        if comparable(found, classes) and found != classes:
            raise ValueError(
                f"{checkpoint} learned the classes {some(found)}, the others {some(classes)}. Sample with "
                "priors that were trained on the same latents."
            )
    return Chain(nn.ModuleList(prior.network for prior in loaded), specs[0], classes)
