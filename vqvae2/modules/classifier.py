"""Training an image classifier: a critic of samples, and their feature network in place of Inception."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import register_feature_extractor

from vqvae2 import distributed
from vqvae2.data.images import ImageBatch
from vqvae2.modules.base import NetworkModule
from vqvae2.modules.checkpoint import load_network, register_network
from vqvae2.modules.schedules import Schedule
from vqvae2.nn.classifier import Classifier


class ClassifierModule(NetworkModule):
    """Trains a `Classifier` on labelled images; the channels and the number of classes come from the data.

    Args:
        schedule: learning rate of the optimiser.
        polyak: decay of the averaged weights, which are evaluated and which judge.
        optimizer: "adamw", or "sgd" with Nesterov's momentum.
        momentum: of "sgd"; the decay of the first moment of "adamw".
        weight_decay: for the weights of convolutions and of the last layer; not for biases and norms.
        label_smoothing: probability mass of the target that is spread over all classes.
        network: options of `Classifier` beyond what the data says.
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
        **network: Any,
    ) -> None:
        super().__init__(polyak=polyak)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is {label_smoothing}, wanted 0 up to, not including, 1.")
        self.schedule = schedule
        self.optimizer = optimizer
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing
        self.options = network

    def build_network(self) -> Classifier:
        data = self.trainer.datamodule
        network = Classifier(num_classes=data.num_classes, channels=data.channels, **self.options)
        self.describe(
            {"num_classes": data.num_classes, "channels": data.channels, **self.options},
            image_size=data.image_size,
            classes=list(data.classes),
        )
        return network

    def configure_optimizers(self) -> dict[str, Any]:
        parameters = list(self.network.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        if self.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, lr=1.0, momentum=self.momentum, nesterov=True)
        else:
            optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(self.momentum, 0.999))
        return self.scheduled(optimizer, self.schedule, width=self.network.num_features)

    def training_step(self, batch: ImageBatch, _: int) -> Tensor:
        logits = self.network(batch.images)
        loss = F.cross_entropy(logits.float(), batch.labels, label_smoothing=self.label_smoothing)
        accuracy = (logits.argmax(1) == batch.labels).float().mean()
        self.log_dict({"train/loss": loss, "train/accuracy": accuracy}, prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        self._sums = torch.zeros(4, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: ImageBatch, _: int) -> None:
        if not len(batch.images):  # every image of the batch was unreadable
            return
        logits = self.average(batch.images).float()
        loss = F.cross_entropy(logits, batch.labels, reduction="sum")
        best = logits.topk(min(5, logits.shape[1])).indices == batch.labels[:, None]
        count = torch.tensor(len(logits), device=self.device)
        self._sums += torch.stack([count, loss, best[:, 0].sum(), best.sum()])

    def on_validation_epoch_end(self) -> None:
        self._log_sums("val")

    # A test measures the same on the data's test images.
    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        self._log_sums("test")

    def _log_sums(self, stage: str) -> None:
        total, *sums = distributed.all_reduce_sum(self._sums)
        loss, accuracy, accuracy_top5 = (value / total for value in sums)
        self.log_dict({f"{stage}/loss": loss, f"{stage}/accuracy": accuracy}, prog_bar=True)
        if self.average.head.out_features > 5:
            self.log(f"{stage}/accuracy_top5", accuracy_top5)


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
        features = self.network.features(images[:, :channels].float() / 127.5 - 1)
        found = {"features": features, "logits": self.network.head(features)}
        return tuple(found[name] for name in self.features_list)


register_network(ClassifierModule.kind, Classifier)
register_feature_extractor(ClassifierModule.kind, ClassifierFeatures)
