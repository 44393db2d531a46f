"""Rejection classifiers from checkpoints and from torchvision's files; nothing is downloaded."""

from urllib.error import URLError

import pytest
import torch
import torchvision
from PIL import Image

from tests.evaluation.evaluation_run import save
from vqvae2.jobs.rejection_classifier import load_rejection_classifier
from vqvae2.nn.classifier import Classifier
from vqvae2.pixels import to_pil, to_uint8

OPTIONS = {"num_classes": 3, "channels": 1, "widths": [4, 6], "blocks": 1}
DATA = {"num_classes": 3, "channels": 1, "image_size": 16}
IMAGENET = {"num_classes": 1000, "channels": 3, "image_size": 40}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path, network = tmp_path_factory.mktemp("classifier") / "last.ckpt", Classifier(**OPTIONS)
    return path, save(path, "classifier", network, OPTIONS, image_size=16, classes=["a", "b", "c"])


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    torch.manual_seed(0)
    path, network = tmp_path_factory.mktemp("hub") / "mine.pth", torchvision.models.resnet18(weights=None)
    torch.save(network.state_dict(), path)
    return path, network.eval()


def test_a_classifier_of_the_suite(checkpoint):
    path, network = checkpoint
    classifier = load_rejection_classifier(str(path), **DATA, classes=["a", "b", "c"])
    images = torch.rand(5, 1, 16, 16) * 2 - 1
    assert torch.equal(classifier(images), network(images))
    assert not classifier.training
    assert not any(p.requires_grad for p in classifier.parameters())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"num_classes": 0}, "these have no classes. Leave out rejection_classifier"),
        ({"num_classes": 4}, "trained for .* num_classes 3, but the data has .* num_classes 4"),
        ({"channels": 3}, "trained for .* channels 1, .* but the data has .* channels 3"),
        ({"image_size": 32}, "trained for image_size 16, .* but the data has image_size 32"),
        ({"classes": ["a", "c", "b"]}, "trained on the classes a, b, c, but the data has a, c, b"),
    ],
)
def test_a_rejection_classifier_of_other_samples(checkpoint, data, message):
    with pytest.raises(ValueError, match=message):
        load_rejection_classifier(str(checkpoint[0]), **{**DATA, **data})


def test_torchvisions_weights_see_images_as_they_were_trained(resnet):
    path, network = resnet
    classifier = load_rejection_classifier(f"torchvision:resnet18:{path}", **IMAGENET)
    images = torch.rand(2, 3, 40, 56) * 2 - 1
    preset = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    pictures = torch.stack([preset(to_pil(image)) for image in to_uint8(images)])  # torchvision's own way
    with torch.no_grad():
        expected = network(pictures)
    assert (classifier(images) - expected).abs().max() < 0.05 * expected.std()  # 8 bits there, floats here
    assert not classifier.training
    assert not any(p.requires_grad for p in classifier.parameters())


def test_a_released_file_is_recognised_by_its_name(tmp_path):
    weights = torchvision.models.ResNet50_Weights
    state = torchvision.models.resnet50(weights=None).state_dict()
    resized = {}
    for release, url in ((w, w.url) for w in weights):
        path = tmp_path / url.rpartition("/")[2]
        torch.save(state, path)
        resized[release.name] = load_rejection_classifier(
            f"torchvision:resnet50:{path}", **IMAGENET
        ).preprocess.resize_size
    assert resized == {"IMAGENET1K_V1": [256], "IMAGENET1K_V2": [232]}


def test_weights_that_cannot_be_downloaded(monkeypatch):
    def fail(url, *args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)
    message = r"'torchvision:resnet50' cannot .*no route.* Download https://.*/resnet50-11ad3fa6\.pth .*"
    with pytest.raises(ValueError, match=message + "torchvision:resnet50:FILE"):
        load_rejection_classifier("torchvision:resnet50", **IMAGENET)


def test_torchvision_files_that_do_not_fit(resnet, tmp_path):
    path = resnet[0]
    refuses(f"torchvision:resnet34:{path}", r"mine\.pth does not hold the weights of torchvision's resnet34")
    refuses("torchvision:resnet18:absent.pth", r"there is no file absent\.pth")
    refuses("torchvision:inception_v3", "no classifier 'torchvision:inception_v3', wanted .* resnet50")
    Image.new("L", (4, 4)).save(tmp_path / "image.png")
    refuses(f"torchvision:resnet18:{tmp_path / 'image.png'}", "damaged or something else")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    refuses(
        f"torchvision:resnet18:{tmp_path / 'tensor.pth'}",
        r"tensor\.pth cannot be read .*no dictionary of tensors",
    )
    refuses(
        f"torchvision:resnet18:{path}",
        r"num_classes 1000, but the data has .* num_classes 10\.",
        num_classes=10,
    )
    refuses(f"torchvision:resnet18:{path}", "channels 3, .* but the data has .* channels 1", channels=1)


def refuses(path, message, **data):
    with pytest.raises(ValueError, match=message):
        load_rejection_classifier(path, **{**IMAGENET, **data})
