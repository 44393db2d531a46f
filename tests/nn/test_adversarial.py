"""Discriminator and adversarial losses: published size, hand-computed values, autograd."""

import pytest
import torch
from torch import nn

from vqvae2.nn.adversarial import (
    LeCam,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    inside_margin,
    last_layer_gradient,
)
from vqvae2.nn.patch_discriminator import PatchDiscriminator

TAMING = {"channels": 3, "hidden": 64, "layers": 3}
NORMS = [{"norm": "batch"}, {"norm": "group", "norm_groups": 32}]


@pytest.mark.parametrize("norm", NORMS)
def test_the_discriminator_is_tamings(norm):
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(**TAMING, **norm)
    assert sum(p.numel() for p in discriminator.parameters()) == 2_765_633
    convs = [part for part in discriminator.modules() if isinstance(part, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.stride[0], c.bias is None) for c in convs] == [
        (3, 64, 2, False),
        (64, 128, 2, True),
        (128, 256, 2, True),
        (256, 512, 1, True),
        (512, 1, 1, False),
    ]
    for conv in convs:
        assert conv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    norms = [p for p in discriminator.modules() if isinstance(p, nn.GroupNorm | nn.BatchNorm2d)]
    assert len(norms) == 3
    for part in norms:
        assert part.weight.mean().item() == pytest.approx(1, abs=0.01)
        assert part.weight.std().item() == pytest.approx(0.02, rel=0.3)
        assert not part.bias.any()
    for height, width in ((256, 256), (64, 96)):
        found = discriminator(torch.zeros(1, 3, height, width)).shape[-2:]
        assert found == discriminator.patches(height, width)
    assert discriminator.patches(256, 256) == (30, 30)


def test_a_logit_sees_70_pixels():
    """ "70x70 PatchGAN" (Isola et al.); without norms, which see more."""
    discriminator = PatchDiscriminator(channels=1, hidden=2, layers=3, norm="group", norm_groups=1)
    plain = nn.Sequential(*(p for p in discriminator.layers if not isinstance(p, nn.GroupNorm)))
    image = torch.randn(1, 1, 128, 128, requires_grad=True)
    plain(image)[0, 0, 7, 7].backward()
    rows = image.grad[0, 0].abs().sum(1).nonzero().flatten()
    assert rows[-1] - rows[0] + 1 == 70


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "layers is 0"),
        ({"norm": "instance"}, "norm is instance"),
        ({"norm": "group"}, "norm_groups is None, wanted a divisor"),
        ({"norm": "group", "norm_groups": 48}, "norm_groups is 48"),
    ],
)
def test_impossible_discriminators_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PatchDiscriminator(**TAMING | {"norm": "batch"} | changes)


def test_images_without_a_patch_are_refused():
    with pytest.raises(ValueError, match=r"16x64 are too small .* 3 layers"):
        PatchDiscriminator(**TAMING, norm="batch").patches(16, 64)


def test_hinges_by_hand():
    real, fake = torch.tensor([2.0, 0.5, -1.0, 1.0]), torch.tensor([-3.0, 0.5, -1.0, 1.0])
    assert discriminator_loss(real, fake).item() == pytest.approx((2.5 / 4 + 3.5 / 4) / 2)
    assert generator_loss(fake).item() == pytest.approx(2.5 / 4)
    assert inside_margin(real, fake).item() == pytest.approx((2 / 4 + 2 / 4) / 2)
    undecided = torch.zeros(4)
    assert discriminator_loss(undecided, undecided) == 1
    assert inside_margin(undecided, undecided) == 1


def test_lambda_is_that_of_equation_7_with_autograds_gradients():
    torch.manual_seed(0)
    last, seen, target = nn.Conv2d(4, 3, 3, padding=1), torch.randn(2, 4, 6, 6), torch.randn(2, 3, 6, 6)
    made = last(seen)
    losses = (made - target).abs().mean(), -made.square().mean()
    weights = [torch.autograd.grad(loss, last.weight, retain_graph=True)[0] for loss in losses]
    images = [torch.autograd.grad(loss, made, retain_graph=True)[0] for loss in losses]
    found = [last_layer_gradient(last, seen, gradient) for gradient in images]
    for mine, expected in zip(found, weights, strict=True):
        torch.testing.assert_close(mine, expected)
    norms = [gradient.square().sum().sqrt().item() for gradient in weights]
    expected = norms[0] / (norms[1] + 1e-4)
    assert adaptive_weight(*found, maximum=1e4).item() == pytest.approx(expected, rel=1e-5)
    assert adaptive_weight(*found, maximum=0.1).item() == pytest.approx(0.1)
    assert adaptive_weight(found[0], torch.zeros(3), maximum=1e9).item() == pytest.approx(norms[0] / 1e-4)


def test_lecam_by_hand():
    lecam = LeCam(decay=0.75)
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([-1.0, 0.0])
    first = lecam(real, fake)  # averages are those of the batch: 2 and -0.5
    assert first.item() == pytest.approx((1.5**2 + 3.5**2) / 2 + (3.0**2 + 2.0**2) / 2)
    second = lecam(torch.tensor([0.0]), torch.tensor([1.0]))
    mean_real = (0.75 * 0.25 * 2 + 0.25 * 0) / (1 - 0.75**2)
    mean_fake = (0.75 * 0.25 * -0.5 + 0.25 * 1) / (1 - 0.75**2)
    expected = max(0 - mean_fake, 0) ** 2 + max(mean_real - 1, 0) ** 2
    assert second.item() == pytest.approx(expected, abs=1e-6)
    assert lecam.to(torch.bfloat16).averages.dtype == torch.float32
