"""Every number of the networks at the ends of its range: it works, or it is refused by name."""

import math

import pytest
import torch
from torch.nn import functional as F

from tests.nn import ends
from vqvae2.nn.batch_norm import BatchNorm
from vqvae2.nn.classifier import Classifier
from vqvae2.nn.hierarchical import HierarchicalVQVAE
from vqvae2.nn.pixelsnail import PixelSNAIL
from vqvae2.nn.quantizer import VectorQuantizer, update_codebooks

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
        *ends.CODEBOOKS,
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
        *ends.IMPOSSIBLE_CODEBOOKS,
    ],
)
def test_impossible_codebooks_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        VectorQuantizer(**QUANTIZER | changes)


@pytest.mark.parametrize(
    "changes",
    [
        *ends.AUTOENCODERS,
        {"num_codes": 1, "code_dim": 1},
        {"factor": 16, "num_levels": 1},
        {"level_dropout": 1.0},
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
        *ends.IMPOSSIBLE_AUTOENCODERS,
        ({"num_levels": 0}, "num_levels is 0"),
        ({"level_dropout": 1.1}, "level_dropout is 1.1, wanted 0 to 1"),
    ],
)
def test_impossible_autoencoders_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalVQVAE(**AUTOENCODER | changes)


@pytest.mark.parametrize(
    "changes",
    [
        *(TOP | changes for changes in ends.TOP_PRIORS),
        TOP | {"hidden": 1, "residual": 2, "heads": 1},
        *ends.PRIORS,
        {"dropout": math.nextafter(1, 0)},
        {"dropout": math.nextafter(1, 0), "attention_dropout": "weights"},
        {"dropout": 1e-12},
    ],
)
def test_priors_learn_and_draw(changes):
    torch.manual_seed(0)
    prior = PixelSNAIL(**PRIOR | changes).train()
    above = [torch.randint(3, (2, *grid)) for grid in prior.condition_grids]

    def nll(codes, *given):
        return F.cross_entropy(prior(codes, *given), codes, reduction="none")

    ends.check_learning_and_drawing(prior, nll, above)


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
