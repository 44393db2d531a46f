"""Feature networks by name: what they are shown, and what is said when their weights cannot be had."""

import socket
from typing import ClassVar

import pytest
import torch
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

from vqvae2.metrics.features import INCEPTION, FeatureNetwork, to_rgb_bytes


class Means(FeatureExtractorBase):
    """Mean of each channel as features, no logits."""

    shown: ClassVar[list] = []

    def __init__(self, name, features_list, feature_extractor_weights_path=None, **_):
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list():
        return ("means",)

    @staticmethod
    def get_default_feature_layer_for_metric(_):
        return "means"

    @staticmethod
    def can_be_compiled():
        return False

    def forward(self, images):
        self.shown.append(images)
        return (images.float().mean((2, 3)),)


if "test-means" not in FEATURE_EXTRACTORS_REGISTRY:
    register_feature_extractor("test-means", Means)


def test_bytes_survive_the_way_to_floats_and_back():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    assert torch.equal(to_rgb_bytes(pixels.float().div(255).mul(2).sub(1)), pixels)
    overshoot = torch.tensor([-1.2, -1.0, 1.0, 1.3]).view(1, 1, 2, 2)
    assert to_rgb_bytes(overshoot)[0, 2].flatten().tolist() == [0, 0, 255, 255]


def test_registered_network_is_shown_rgb_bytes_of_grey_images():
    network = FeatureNetwork("test-means")
    seen = network(torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4))
    assert seen.logits is None
    assert torch.equal(seen.features, torch.tensor([[0.0] * 3, [255.0] * 3]))
    assert Means.shown[-1].dtype == torch.uint8


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"no features 'inception'.*inception-v3-compat.*vgg16"):
        FeatureNetwork("inception")


def test_weights_that_cannot_be_downloaded_name_the_file_and_the_option(monkeypatch, tmp_path):
    def no_network(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"weights-inception-2015-12-05-\w+\.pth.*model\.init_args\.weights"):
        FeatureNetwork(INCEPTION)


def test_weights_that_are_missing_or_of_something_else(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*absent\.pth"):
        FeatureNetwork(INCEPTION, str(tmp_path / "absent.pth"))
    (tmp_path / "text.pth").write_text("not weights")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    for name in ("text.pth", "other.pth"):
        with pytest.raises(ValueError, match=f"{name} does not hold the weights of 'inception-v3-compat'"):
            FeatureNetwork(INCEPTION, str(tmp_path / name))


def test_inception_from_a_local_file_gives_features_and_unbiased_logits(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", None)
    torch.manual_seed(0)
    random = object.__new__(FeatureExtractorInceptionV3)
    with monkeypatch.context() as patched:  # build it with its random weights: no file to read
        patched.setattr(
            "torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *_, **__: {}
        )
        patched.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        random.__init__(INCEPTION, ["2048"])
    torch.save(random.state_dict(), tmp_path / "inception.pth")
    network = FeatureNetwork(INCEPTION, str(tmp_path / "inception.pth"))
    images = torch.rand(2, 3, 20, 20) * 2 - 1
    seen = network(images)
    assert network.layers == ["2048", "logits_unbiased"]
    assert torch.equal(seen.features, random(to_rgb_bytes(images))[0])
    torch.testing.assert_close(seen.logits, seen.features @ random.fc.weight.T)
