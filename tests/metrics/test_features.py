"""Feature networks by name: what they are shown, which layers are taken, what they are recognised by."""

from typing import ClassVar

import pytest
import torch
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

from tests.metrics.thin_vgg import thin_vgg
from vqvae2.metrics.extractors import URLS
from vqvae2.metrics.features import FeatureNetwork, feature_layers, to_rgb_bytes
from vqvae2.metrics.labels import INCEPTION


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


class Drops(Means):
    """Features that depend on the mode and on the precision of products."""

    def forward(self, images):
        flat = images.flatten(1).float() / 255
        return (torch.nn.functional.dropout(flat @ torch.ones(flat.shape[1], 2) / 3, 0.5, self.training),)


if "test-drops" not in FEATURE_EXTRACTORS_REGISTRY:
    register_feature_extractor("test-drops", Drops)


def test_features_are_the_same_in_a_module_that_trains_in_half_precision():
    network = FeatureNetwork("test-drops")
    images = torch.linspace(-1, 1, 8 * 3 * 16).view(8, 3, 4, 4)
    expected = network(images).features
    around = torch.nn.Sequential(network).train()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(around(images).features, expected)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"no features 'inception'.*inception-v3-compat.*vgg16"):
        FeatureNetwork("inception")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*absent\.pth with the weights of 'vgg16'"):
        FeatureNetwork("vgg16", str(tmp_path / "absent.pth"))


@pytest.mark.parametrize("name", URLS)
def test_features_are_those_of_all_metrics_and_only_class_logits_are_logits(name):
    """No Inception score of fc2_relu, clip or dinov2, which torch-fidelity would compute."""
    kind = FEATURE_EXTRACTORS_REGISTRY[name]
    features, *logits = feature_layers(name)
    assert all(
        kind.get_default_feature_layer_for_metric(metric) == features for metric in ("fid", "kid", "prc")
    )
    assert logits == (["logits_unbiased"] if name == INCEPTION else [])


def test_fingerprints_tell_names_layers_and_weights_apart(monkeypatch, tmp_path):
    found = {FeatureNetwork("test-means").fingerprint}
    assert FeatureNetwork("test-means").fingerprint in found
    monkeypatch.setitem(FEATURE_EXTRACTORS_REGISTRY, "test-others", Means)
    found.add(FeatureNetwork("test-others").fingerprint)
    monkeypatch.setattr(Means, "get_provided_features_list", staticmethod(lambda: ("sums",)))
    monkeypatch.setattr(Means, "get_default_feature_layer_for_metric", staticmethod(lambda _: "sums"))
    found.add(FeatureNetwork("test-means").fingerprint)
    monkeypatch.setattr("torch_fidelity.__version__", "0.5.0")
    found.add(FeatureNetwork("test-means").fingerprint)
    path, name = thin_vgg(tmp_path, monkeypatch)
    found.add(FeatureNetwork(name, str(path)).fingerprint)
    weights = torch.load(path)
    weights["features.0.bias"][1] += 1e-6
    torch.save(weights, path)
    found.add(FeatureNetwork(name, str(path)).fingerprint)
    assert len(found) == 6
