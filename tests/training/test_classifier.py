"""The classifier: it learns, its checkpoint is a feature network, its options reach the network."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.quiet import quiet_trainer
from vqvae2.data.images import ImageDataModule
from vqvae2.metrics.features import FeatureNetwork
from vqvae2.nn.classifier import Classifier
from vqvae2.storage.checkpoint import load_network, rebuild
from vqvae2.training.classifier import ClassifierModule
from vqvae2.training.schedules import Cosine

SIZE, CLASSES, STEPS = 12, 7, 40
OPTIONS = {"widths": [8, 16], "blocks": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Class folders of noise on a grey level of the class's own."""
    root = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for i in range(CLASSES * 10):
        label = i % CLASSES
        path = root / f"class{label}" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = 30 * label + draw.integers(0, 25, (SIZE, SIZE, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


def data_of(folder, **options):
    return ImageDataModule(
        **{
            "train": str(folder),
            "holdout": 0.3,
            "image_size": SIZE,
            "batch_size": 16,
            "cache": True,
            **options,
        }
    )


def fit(data, steps, folder, **options):
    torch.manual_seed(0)
    schedule = Cosine(learning_rate=0.02, warmup=5)
    module = ClassifierModule(
        **{"schedule": schedule, "polyak": 0.9, "weight_decay": 0.01, **OPTIONS, **options}
    )
    trainer = quiet_trainer(
        max_steps=steps,
        check_val_every_n_epoch=None,
        val_check_interval=steps,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    trainer.fit(module, data)
    return trainer, module


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    trainer, module = fit(data_of(folder), STEPS, root)
    trainer.save_checkpoint(root / "last.ckpt")
    return trainer, module, root / "last.ckpt"


def held_out(folder):
    data = data_of(folder)
    batches = list(data.val_dataloader())
    return torch.cat([batch.images for batch in batches]), torch.cat([batch.labels for batch in batches])


def averaged_of(module):
    """The average as a checkpoint would hold it, in eval mode whatever was done to it."""
    return rebuild(module.description, module.average.state_dict())


def test_learns_the_classes_of_held_out_images(trained):
    trainer, *_ = trained
    assert trainer.callback_metrics["val/accuracy"] >= 0.95


def test_logged_figures_are_those_of_the_averaged_network(trained, folder):
    trainer, module, _ = trained
    images, labels = held_out(folder)
    logits = averaged_of(module)(images)
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    expected = {
        "val/loss": torch.nn.functional.cross_entropy(logits, labels),
        "val/accuracy": (ranks < 1).double().mean(),
        "val/accuracy_top5": (ranks < 5).double().mean(),
    }
    for name, value in expected.items():
        assert trainer.callback_metrics[name].item() == pytest.approx(value.item(), rel=1e-5), name


def test_checkpoint_rebuilds_the_averaged_network(trained, folder):
    _, module, path = trained
    network, facts = load_network(path, "classifier")
    images, _ = held_out(folder)
    assert torch.equal(network(images), module.average(images))
    assert not torch.equal(network(images), module.network.eval()(images))
    assert facts["image_size"] == SIZE
    assert facts["classes"] == [f"class{label}" for label in range(CLASSES)]


def test_checkpoint_is_a_feature_network(trained, folder):
    _, module, path = trained
    images, _ = held_out(folder)
    network = FeatureNetwork("classifier", str(path))
    seen = network(images)
    torch.testing.assert_close(seen.features, module.average.features(images))
    torch.testing.assert_close(seen.logits, module.average(images))
    with pytest.raises(ValueError, match="'classifier' need weights"):
        FeatureNetwork("classifier")


def test_a_test_measures_the_averaged_network_too(trained, folder, tmp_path):
    _, module, _ = trained
    quiet_trainer(default_root_dir=tmp_path).test(module, data_of(folder), verbose=False)
    found = json.loads((tmp_path / "accuracy.json").read_text())
    images, labels = held_out(folder)
    assert found["real"]["top1"] == pytest.approx(
        (averaged_of(module)(images).argmax(1) == labels).double().mean().item()
    )
    assert found["reconstructed"] is None


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_rate_follows_the_schedule_and_only_weights_decay(folder, tmp_path, optimizer):
    trainer, module = fit(data_of(folder), 3, tmp_path, optimizer=optimizer, weight_decay=0.5)
    (found,) = trainer.optimizers
    rate = Cosine(learning_rate=0.02, warmup=5).rate(4, width=16, total_steps=3)
    assert [group["lr"] for group in found.param_groups] == pytest.approx([rate, rate])
    decays = {id(p): group["weight_decay"] for group in found.param_groups for p in group["params"]}
    expected = {id(p): 0.5 if p.ndim > 1 else 0.0 for p in module.network.parameters()}
    assert decays == expected


def test_logits_are_the_head_of_the_features():
    torch.manual_seed(0)
    network = Classifier(num_classes=4, channels=1, widths=[4], blocks=1).eval()
    images = torch.rand(3, 1, SIZE, SIZE)
    assert torch.equal(network(images), network.head(network.features(images)))
    assert network(images).shape == (3, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": [], "blocks": 1}, "'small' needs widths and blocks"),
        ({"architecture": "resnet18", "widths": [8], "blocks": 1}, "torchvision none of them"),
        ({"architecture": "resnet18", "widths": [8]}, "torchvision none of them"),
        ({"architecture": "resnet18", "blocks": -1}, "torchvision none of them"),
        ({"architecture": "resnet18", "stem_stride": 2}, "torchvision none of them"),
        (
            {"architecture": "resnet7", "widths": [], "blocks": 0},
            "no architecture 'resnet7', wanted one of small",
        ),
        ({"num_classes": 0, "widths": [8], "blocks": 1}, "at least 2 classes, found 0"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        Classifier(**{"num_classes": 3, "channels": 3, **options})


def test_label_smoothing_is_a_share():
    with pytest.raises(ValueError, match="label_smoothing is 2"):
        ClassifierModule(schedule=Cosine(0.1, warmup=1), polyak=0.9, label_smoothing=2)


def test_torchvision_network_by_name_has_its_published_size():
    with torch.device("meta"):
        network = Classifier(num_classes=1000, channels=3, architecture="resnet50")
    assert sum(p.numel() for p in network.parameters()) == 25_557_032  # torchvision's model card
    assert network.num_features == 2048
    with torch.device("meta"):
        grey = Classifier(num_classes=1000, channels=1, architecture="resnet50")
    assert sum(p.numel() for p in grey.parameters()) == 25_557_032 - 2 * 64 * 7 * 7


def test_unlabelled_images_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="at least 2 classes, found 0"):
        fit(data_of(folder, num_classes=0), 1, tmp_path)
