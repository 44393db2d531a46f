"""Every number of the networks at the ends of its range: it works, or it is refused by name."""

import math

import pytest
import torch
from torch.nn import functional as F

from vqvae2.nn.batch_norm import BatchNorm
from vqvae2.nn.classifier import Classifier
from vqvae2.nn.hierarchical import HierarchicalVQVAE
from vqvae2.nn.pixelsnail import PixelSNAIL
from vqvae2.nn.quantizer import VectorQuantizer, update_codebooks
from vqvae2.sampling.ancestral import AncestralSampler
from vqvae2.sampling.draw import Draw, Noise

QUANTIZER = {"num_codes": 20, "dim": 5, "decay": 0.99, "eps": 1e-5, "init": "normal", "revive_below": 0.0}
AUTOENCODER = {"channels": 3, "num_levels": 2, "factor": 4, "hidden": 8, "residual": 4, "residual_blocks": 1}
AUTOENCODER |= {"num_codes": 16, "code_dim": 4, "decay": 0.99, "eps": 1e-5}
PRIOR = {"grid": (8, 8), "num_codes": 5, "condition_grids": [(4, 4)], "condition_codes": [3]}
PRIOR |= {"num_classes": 2, "output_layers": 1}
PRIOR |= {"hidden": 8, "residual": 4, "layers": 2, "attention_layers": 1, "heads": 2, "kernel": 3}
PRIOR |= {"dropout": 0.1, "conditioning_hidden": 4, "conditioning_blocks": 2}
TOP = {"condition_grids": [], "condition_codes": []}
CLASSIFIER = {"num_classes": 2, "channels": 1, "widths": [4, 8], "blocks": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {"num_codes": 1},
        {"num_codes": 1, "dim": 1, "init": "data"},
        {"dim": 1, "init": "uniform"},
        {"decay": 0},
        {"decay": 0.0, "init": "data", "revive_below": 0.5},
        {"decay": 1e-300},
        {"decay": math.nextafter(1, 0)},
        {"eps": 1e-30, "decay": 0.5},
        {"eps": 1e6},
        {"revive_below": math.nextafter(1, 0)},
    ],
)
def test_codebooks_stay_finite_and_near_the_data(changes):
    torch.manual_seed(0)
    quantizer = VectorQuantizer(**QUANTIZER | changes)
    for _ in range(200):
        vectors = torch.randn(2, quantizer.dim, 4, 4)
        quantizer.update(quantizer(vectors).statistics)
        assert quantizer.codebook.abs().max() < 10


def test_without_decay_codes_are_the_means_of_the_last_batch():
    torch.manual_seed(0)
    quantizer = VectorQuantizer(**QUANTIZER | {"decay": 0.0, "num_codes": 3, "eps": 1e-9})
    for _ in range(3):
        vectors = torch.randn(1, 5, 8, 8)
        out = quantizer(vectors)
        quantizer.update(out.statistics)
    rows, codes = vectors[0].flatten(1).T.double(), out.codes.flatten()
    means = torch.stack([rows[codes == code].mean(0) for code in range(3)])
    torch.testing.assert_close(quantizer.codebook.double(), means, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_codes": 0}, "num_codes is 0, wanted at least 1"),
        ({"dim": 0}, "code_dim is 0, wanted at least 1"),
        ({"decay": 1.0}, "decay is 1.0, wanted 0 up to"),
        ({"decay": -0.1}, "decay is -0.1"),
        ({"decay": math.nan}, "decay is nan"),
        ({"eps": 0.0}, "eps is 0.0, wanted above 0"),
        ({"eps": 1e-50}, "eps is 1e-50"),  # nothing in float32: unused codes would be 0 / 0
        ({"eps": math.inf}, "eps is inf"),
        ({"revive_below": 1.0}, "revive_below is 1.0"),
        ({"init": "zeros"}, "codebook_init is zeros, wanted normal, uniform or data"),
    ],
)
def test_impossible_codebooks_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        VectorQuantizer(**QUANTIZER | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden": 2, "residual": 1, "residual_blocks": 0},
        {"hidden": 3, "channels": 1},
        {"num_codes": 1, "code_dim": 1},
        {"factor": 2},
        {"factor": 16, "num_levels": 1},
        {"level_dropout": 1.0},
        {"decay": 0.0},
    ],
)
def test_autoencoders_take_a_step(changes):
    torch.manual_seed(0)
    network = HierarchicalVQVAE(**AUTOENCODER | changes).train()
    images = torch.randn(2, (AUTOENCODER | changes)["channels"], 16, 16)
    out = network(images)
    (F.mse_loss(out.images, images) + sum(out.commitments)).backward()
    update_codebooks(network.quantizers, out.statistics)
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
    assert network.eval()(images).images.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 0}, "channels is 0, wanted at least 1"),
        ({"hidden": 1}, "hidden is 1, wanted at least 2"),
        ({"residual": 0}, "residual is 0, wanted at least 1"),
        ({"residual_blocks": -1}, "residual_blocks is -1, wanted 0 or more"),
        ({"factor": 1}, "factor is 1, wanted a power of two"),
        ({"num_levels": 0}, "num_levels is 0"),
        ({"level_dropout": 1.1}, "level_dropout is 1.1, wanted 0 to 1"),
        ({"eps": 0.0}, "eps is 0.0"),
    ],
)
def test_impossible_autoencoders_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalVQVAE(**AUTOENCODER | changes)


@pytest.mark.parametrize(
    "changes",
    [
        TOP | {"grid": (1, 1)},
        TOP | {"grid": (1, 5), "attention_layers": 2},
        TOP | {"grid": (5, 1), "attention_layers": 0, "heads": 0},
        TOP | {"hidden": 1, "residual": 2, "heads": 1},
        {"num_codes": 1},
        {"num_classes": 0},
        {"num_classes": 1},
        {"layers": 1, "output_layers": 0},
        {"kernel": 31},
        {"dropout": 0.0},
        {"dropout": math.nextafter(1, 0)},
        {"dropout": math.nextafter(1, 0), "attention_dropout": "weights"},
        {"dropout": 1e-12},
        {"conditioning_blocks": 0},
        {"conditioning_blocks": 1},
    ],
)
def test_priors_learn_and_draw(changes):
    torch.manual_seed(0)
    prior = PixelSNAIL(**PRIOR | changes).train()
    codes = torch.randint(prior.num_codes, (2, *prior.grid))
    above = [torch.randint(3, (2, *grid)) for grid in prior.condition_grids]
    labels = torch.tensor([0, max(prior.num_classes, 1) - 1])
    torch.nn.init.normal_(prior.to_logits.weight)
    F.cross_entropy(prior(codes, above, labels), codes).backward()
    assert all(p.grad.isfinite().all() for p in prior.parameters() if p.grad is not None)
    given = torch.full((2, *prior.grid), -1)
    drawn = AncestralSampler(prior.eval(), Draw())(above, labels, Noise(0, [0, 1], 0), given)
    assert 0 <= drawn.codes.min() <= drawn.codes.max() < prior.num_codes
    with torch.inference_mode():
        nll = F.cross_entropy(prior(drawn.codes, above, labels), drawn.codes, reduction="none").sum((1, 2))
    torch.testing.assert_close(drawn.nll_nats, nll.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel": 1}, "kernel is 1, wanted an odd number of at least 3"),
        ({"kernel": 2}, "kernel is 2"),
        ({"kernel": 4}, "kernel is 4"),
        ({"kernel": -3}, "kernel is -3"),
        ({"num_codes": 0}, "num_codes is 0, wanted at least 1"),
        ({"num_classes": -1}, "num_classes is -1"),
        ({"grid": (0, 4), **TOP}, r"grid is \(0, 4\), wanted at least 1x1"),
        ({"layers": 0}, "layers is 0"),
        ({"attention_layers": 3}, "attention_layers is 3, wanted 0 to 2"),
        ({"heads": 0}, "0 attention heads"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"attention_dropout": "keys"}, "attention_dropout is keys, wanted logits or weights"),
        ({"output_layers": -1}, "output_layers is -1"),
        ({"residual": 1}, "residual is 1, wanted an even number"),
        ({"conditioning_hidden": 0}, "conditioning_hidden is 0"),
        ({"conditioning_blocks": -1}, "conditioning_blocks is -1, wanted 0 or more"),
    ],
)
def test_impossible_priors_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PixelSNAIL(**PRIOR | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 0}, "channels is 0"),
        ({"blocks": -1}, "blocks is -1, wanted at least 1"),
        ({"blocks": 0}, "needs widths and blocks"),
        ({"widths": []}, "needs widths and blocks"),
        ({"widths": [4, 0]}, r"widths is \[4, 0\], wanted at least 1 each"),
        ({"stem_stride": 0}, "stem_stride is 0"),
        ({"num_classes": 1}, "at least 2 classes, found 1"),
    ],
)
def test_impossible_classifiers_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Classifier(**CLASSIFIER | changes)


def test_one_value_a_channel_has_no_variance():
    layer = BatchNorm(3)
    assert layer.eval()(torch.ones(1, 3, 1, 1)).shape == (1, 3, 1, 1)
    with pytest.raises(ValueError, match=r"one value a channel.*data\.batch_size"):
        layer.train()(torch.ones(1, 3, 1, 1))
