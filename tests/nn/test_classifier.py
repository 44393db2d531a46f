"""The small classifier against the layers of He et al. (2016), figure 2, one call after the other."""

import pytest
import torch
from torch.nn import functional as F

from tests.nn.test_reference import redrawn
from vqvae2.nn.classifier import Classifier


def conv_bn(state, name, x, stride):
    weight = state[f"{name}.0.weight"]
    x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
    moments = state[f"{name}.1.running_mean"], state[f"{name}.1.running_var"]
    return F.batch_norm(x, *moments, state[f"{name}.1.weight"], state[f"{name}.1.bias"], training=False)


def reference(state, x, widths, blocks, stem_stride):
    """Every stage but the first halves the picture in its first block."""
    h = F.relu(conv_bn(state, "body.0", x, stem_stride))
    number = 2
    for stage in range(len(widths)):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            name = f"body.{number}"
            branch = F.relu(conv_bn(state, f"{name}.first", h, stride))
            branch = conv_bn(state, f"{name}.second", branch, 1)
            widens = f"{name}.skip.0.weight" in state
            h = F.relu(branch + (conv_bn(state, f"{name}.skip", h, stride) if widens else h))
            number += 1
    features = h.mean((2, 3))
    return features, F.linear(features, state["head.weight"], state["head.bias"])


@torch.no_grad()
@pytest.mark.parametrize(
    ("widths", "blocks", "stem_stride"), [([4, 6], 1, 1), ([4, 4, 6], 2, 2), ([5], 3, 1)]
)
def test_features_and_logits(widths, blocks, stem_stride):
    options = {"widths": widths, "blocks": blocks, "stem_stride": stem_stride}
    network = redrawn(Classifier(num_classes=3, channels=2, **options))
    images = torch.randn(4, 2, 16, 12, dtype=torch.float64)
    features, logits = reference(network.state_dict(), images, widths, blocks, stem_stride)
    torch.testing.assert_close(network.features(images), features)
    torch.testing.assert_close(network(images), logits)
    assert features.std(0).max() > 0.01
