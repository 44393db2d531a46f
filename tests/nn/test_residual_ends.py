"""Every number of HR-VQVAE and of path priors at the ends of its range: it works, or is refused by name."""

import math

import pytest
import torch
from torch.nn import functional as F

from tests.nn import ends
from tests.nn.linked_reference import make
from vqvae2.nn.hr_vqvae import HRVQVAE
from vqvae2.nn.path_prior import PathPrior
from vqvae2.nn.quantizer import update_codebooks

NETWORK = {"channels": 3, "factor": 4, "hidden": 8, "residual": 4, "residual_blocks": 1, "branch": 3}
NETWORK |= {"depth": 3, "code_dim": 4, "beta": 0.25, "decay": 0.99, "eps": 1e-5}
PRIOR = {"grid": (4, 6), "num_codes": 9, "condition_grids": [], "condition_codes": [], "num_classes": 2}
PRIOR |= {"depth": 2, "output_layers": 1, "hidden": 8, "residual": 4, "layers": 2, "attention_layers": 1}
PRIOR |= {"heads": 2, "kernel": 3, "dropout": 0.1, "conditioning_hidden": 4, "conditioning_blocks": 2}


@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {"branch": 2, "depth": 1, "dim": 1, "init": "data"},
        {"branch": 2, "depth": 6, "init": "data"},
        *ends.CODEBOOKS,
        {"revive_below": math.nextafter(1, 0), "init": "data"},
        {"residual_gradient": "full", "beta": 0.0},
        {"residual_gradient": "full", "beta": 1e6},
    ],
)
def test_codebooks_stay_finite_and_near_the_data(changes, linked):
    """What a level leaves may be twice as large as what it saw: that, less a code of the same size."""
    torch.manual_seed(0)
    quantizer = make(linked=linked, **changes)
    for _ in range(60):
        quantizer.update(quantizer(torch.randn(2, quantizer.dim, 4, 4)).statistics)
        for i, level in enumerate(quantizer.levels):
            assert level.codebook.isfinite().all()
            assert level.codebook.abs().max() < 5 * 2**i


def test_without_decay_visited_codes_are_the_means_of_the_last_batch():
    torch.manual_seed(0)
    quantizer = make(decay=0.0, eps=1e-9, depth=2)
    for _ in range(3):
        before = quantizer.levels[1].codebook.clone()
        vectors = torch.randn(1, 5, 4, 4)
        out = quantizer(vectors)
        left = (vectors - quantizer.lookup(out.codes, 1))[0].flatten(1).T
        quantizer.update(out.statistics)
    nodes = out.codes.flatten()
    for node, code in enumerate(quantizer.levels[1].codebook):
        expected = left[nodes == node].mean(0) if (nodes == node).any() else before[node]
        torch.testing.assert_close(code, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"branch": 1}, "branch is 1, wanted at least 2"),
        ({"depth": 0}, "depth is 0, wanted at least 1"),
        ({"branch": 8, "depth": 9}, r"branch \*\* depth is 134217728, wanted at most 16,777,216 leaves"),
        ({"residual_gradient": "half"}, "residual_gradient is half, wanted stop, full or none"),
        *ends.IMPOSSIBLE_CODEBOOKS,
    ],
)
def test_impossible_codebooks_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        *ends.AUTOENCODERS,
        {"branch": 2, "depth": 1, "code_dim": 1},
        {"factor": 16},
        {"linked": False, "residual_gradient": "full"},
    ],
)
def test_tokenizers_take_steps(changes):
    torch.manual_seed(0)
    network = HRVQVAE(**NETWORK | changes).train()
    images = torch.randn(2, network.channels, 16, 16)
    for _ in range(3):
        network.zero_grad()
        out = network(images)
        (F.mse_loss(out.images, images) + out.commitment + sum(out.commitments)).backward()
        update_codebooks(network.quantizers, out.statistics)
        assert all(p.grad.isfinite().all() for p in network.parameters())
    assert network.eval()(images).images.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"), [*ends.IMPOSSIBLE_AUTOENCODERS, ({"branch": 1}, "branch is 1")]
)
def test_impossible_tokenizers_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        HRVQVAE(**NETWORK | changes)


@pytest.mark.parametrize(
    "changes",
    [
        *ends.TOP_PRIORS,
        *ends.PRIORS,
        {"num_codes": 3, "depth": 1, "conditioning_hidden": 0},
        {"condition_grids": [(2, 3)], "condition_codes": [4]},
    ],
)
def test_path_priors_learn_and_draw(changes):
    torch.manual_seed(0)
    prior = PathPrior(**PRIOR | changes).train()
    above = [torch.randint(4, (2, 2, 3))] if "condition_grids" in changes else []
    ends.check_learning_and_drawing(prior, prior.nll, above)
