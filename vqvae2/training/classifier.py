"""Training an image classifier: for rejection sampling, and as a feature network in place of Inception.

Trained on samples alone it gives their classification accuracy score (section 5.3; Ravuri and Vinyals, 2019).
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import register_feature_extractor

from vqvae2.data.images import ImageBatch
from vqvae2.metrics.accuracy import Tally
from vqvae2.nn.checks import require
from vqvae2.nn.classifier import Classifier
from vqvae2.pixels import from_uint8
from vqvae2.storage.checkpoint import description, load_network
from vqvae2.training.base import NetworkModule, decayed
from vqvae2.training.classification_report import (
    REPORT,
    accuracy_report,
    load_reconstructor,
    write_accuracy_report,
)
from vqvae2.training.schedules import Schedule


class ClassifierModule(NetworkModule):
    """Trains a `Classifier` on labelled images; the channels and the number of classes come from the data.

    A test measures the accuracy of the averaged network on the held-out images, prints it and writes it to
    `accuracy.json` in the run folder. For a classifier trained on samples alone this is the samples' CAS; for
    one trained on the real images it is the ceiling of the CAS.

    Args:
        schedule: learning rate of the optimiser.
        polyak: decay of the averaged weights, which are evaluated and used.
        optimizer: "adamw", or "sgd" with Nesterov's momentum.
        momentum: of "sgd"; the decay of the first moment of "adamw".
        weight_decay: for the weights of convolutions and of the last layer; not for biases and norms.
        label_smoothing: probability mass of the target that is spread over all classes.
        autoencoder: checkpoint; a test then also measures the reconstructions of the held-out images, which
            lack the same details as the samples. Only a test loads it.
        network: options of `Classifier` that do not come from the data.
    """

    kind = "classifier"

    def __init__(
        self,
        *,
        schedule: Schedule,
        polyak: float,
        optimizer: Literal["adamw", "sgd"] = "adamw",
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        label_smoothing: float = 0.0,
        autoencoder: str | None = None,
        **network: Any,
    ) -> None:
        super().__init__(polyak=polyak)
        require(0 <= momentum < 1, "momentum", momentum, "0 up to, not including, 1")
        require(0 <= weight_decay < math.inf, "weight_decay", weight_decay, "a finite number, 0 or more")
        require(0 <= label_smoothing < 1, "label_smoothing", label_smoothing, "0 up to, not including, 1")
        self.schedule = schedule
        self.optimizer = optimizer
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing
        self.autoencoder = autoencoder
        self.options = network
        self._loaded_step = 0

    def build_network(self) -> Classifier:
        data = self.trainer.datamodule
        network = Classifier(num_classes=data.num_classes, channels=data.channels, **self.options)
        self.description = description(
            network,
            {"num_classes": data.num_classes, "channels": data.channels, **self.options},
            image_size=data.image_size,
            classes=list(data.classes),
        )
        return network

    def configure_optimizers(self) -> dict[str, Any]:
        groups = decayed(self.network, self.weight_decay)
        if self.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, lr=1.0, momentum=self.momentum, nesterov=self.momentum > 0)
        else:
            optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(self.momentum, 0.999))
        return self.scheduled(optimizer, self.schedule, width=self.network.num_features)

    def training_step(self, batch: ImageBatch, _: int) -> Tensor:
        logits = self.network(batch.images)
        loss = F.cross_entropy(logits.float(), batch.labels, label_smoothing=self.label_smoothing)
        accuracy = (logits.argmax(1) == batch.labels).float().mean()
        self.log_dict(self.over_ranks({"train/loss": loss, "train/accuracy": accuracy}), prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        self._tally = Tally(self.average.head.out_features, self.device)

    def validation_step(self, batch: ImageBatch, _: int) -> None:
        if len(batch.images):  # not if every image of the batch was unreadable
            self._tally.update(self.average(batch.images), batch.labels)

    def on_validation_epoch_end(self) -> None:
        if not self._tally.all_reduce().num_images:  # see `AutoencoderModule`
            self.trainer.datamodule.splits["val"].next_readable(0)
        figures = self._tally.figures("val")
        top5 = figures.pop("val/accuracy_top5", None)
        self.log_dict(figures, prog_bar=True)
        if top5 is not None:
            self.log("val/accuracy_top5", top5)

    def setup(self, stage: str) -> None:
        """For a test, loads the autoencoder.

        Raises:
            ValueError: there is nothing to test on, or the autoencoder does not fit the images.
        """
        if stage != "test":
            return
        data = self.trainer.datamodule
        if "val" not in data.splits:
            raise ValueError(
                f"{data.train} has no held-out images to test on. Give data.init_args.val, or "
                "data.init_args.holdout."
            )
        self._views: dict[str, Callable[[Tensor], Tensor]] = {"real": lambda images: images}
        if self.autoencoder is not None:
            # A function, not a submodule: it belongs neither to the checkpoint nor to what is trained.
            device = self.trainer.strategy.root_device
            self._views["reconstructed"] = load_reconstructor(self.autoencoder, data, device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._loaded_step = checkpoint["global_step"]

    def on_test_epoch_start(self) -> None:
        num_classes = self.average.head.out_features
        self._tallies = {name: Tally(num_classes, self.device) for name in self._views}

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:
        if not len(batch.images):
            return
        for name, view in self._views.items():
            self._tallies[name].update(self.average(view(batch.images)), batch.labels)

    def on_test_epoch_end(self) -> None:
        """Raises:
        ValueError: no image could be read.
        """
        trainer, data = self.trainer, self.trainer.datamodule
        for tally in self._tallies.values():
            tally.all_reduce()
        if not self._tallies["real"].num_images:
            raise ValueError(
                f"none of the {len(data.splits['val'])} images of {data.held_out_from} can be read."
            )
        step = trainer.global_step if trainer.ckpt_path is None else self._loaded_step
        for name, tally in self._tallies.items():
            figures = tally.figures("test", "" if name == "real" else f"_{name}")
            for logger in trainer.loggers:
                logger.log_metrics(figures, step=step)
        if trainer.is_global_zero:
            report = accuracy_report(
                self._tallies, data, autoencoder=self.autoencoder, checkpoint=trainer.ckpt_path, step=step
            )
            write_accuracy_report(Path(trainer.default_root_dir, REPORT), report)


class ClassifierFeatures(FeatureExtractorBase):
    """A trained classifier as one of torch-fidelity's feature networks.

    Args:
        name: under which it is registered.
        features_list: of what `forward` returns.
        feature_extractor_weights_path: a checkpoint of a `ClassifierModule`.

    Raises:
        ValueError: there is no such checkpoint.
    """

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: str | None = None, **_: Any
    ) -> None:
        super().__init__(name, features_list)
        if feature_extractor_weights_path is None:
            raise ValueError(f"The features '{name}' need weights: the checkpoint of a trained classifier.")
        loaded = load_network(feature_extractor_weights_path, ClassifierModule.kind)
        self.network: Classifier = loaded.network
        self.facts = loaded.facts

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("features", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Features [B, F] and logits [B, K], as listed, of uint8 images [B, 3, H, W].

        torch-fidelity's networks read RGB, where grey is repeated: a classifier of grey reads the first.
        """
        channels = self.facts["network"]["channels"]
        features = self.network.features(from_uint8(images[:, :channels]))
        found = {"features": features, "logits": self.network.head(features)}
        return tuple(found[name] for name in self.features_list)


register_feature_extractor(ClassifierModule.kind, ClassifierFeatures)
