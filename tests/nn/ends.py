"""Ends of ranges that several networks have in common, and what holds of priors there."""

import math
from collections.abc import Callable

import torch

from vqvae2.nn.contracts import PriorNetwork
from vqvae2.sampling.draw import Draw, Noise, level_sampler

# Widths of a small prior of any kind that has conditions and an output stack.
WIDTHS = {"hidden": 8, "residual": 8, "layers": 2, "attention_layers": 1, "heads": 2, "kernel": 3}
WIDTHS |= {"dropout": 0.1, "output_layers": 1, "conditioning_hidden": 8, "conditioning_blocks": 2}

CODEBOOKS = [
    {"dim": 1, "init": "uniform"},
    {"decay": 0},
    {"decay": 0.0, "init": "data", "revive_below": 0.5},
    {"decay": 1e-300},
    {"decay": math.nextafter(1, 0)},
    {"eps": 1e-30, "decay": 0.5},
    {"eps": 1e6},
    {"revive_below": math.nextafter(1, 0)},
]
IMPOSSIBLE_CODEBOOKS = [
    ({"dim": 0}, "code_dim is 0, wanted at least 1"),
    ({"decay": 1.0}, "decay is 1.0, wanted 0 up to"),
    ({"decay": -0.1}, "decay is -0.1"),
    ({"decay": math.nan}, "decay is nan"),
    ({"eps": 0.0}, "eps is 0.0, wanted above 0"),
    ({"eps": 1e-50}, "eps is 1e-50"),  # nothing in float32: unused codes would be 0 / 0
    ({"eps": math.inf}, "eps is inf"),
    ({"revive_below": 1.0}, "revive_below is 1.0"),
    ({"init": "zeros"}, "codebook_init is zeros, wanted normal, uniform or data"),
]
AUTOENCODERS = [
    {"hidden": 2, "residual": 1, "residual_blocks": 0},
    {"hidden": 3, "channels": 1},
    {"factor": 2},
    {"decay": 0.0},
]
IMPOSSIBLE_AUTOENCODERS = [
    ({"channels": 0}, "channels is 0, wanted at least 1"),
    ({"hidden": 1}, "hidden is 1, wanted at least 2"),
    ({"residual": 0}, "residual is 0, wanted at least 1"),
    ({"residual_blocks": -1}, "residual_blocks is -1, wanted 0 or more"),
    ({"factor": 1}, "factor is 1, wanted a power of two"),
    ({"factor": 6}, "factor is 6, wanted a power of two"),
    ({"code_dim": 0}, "code_dim is 0, wanted at least 1"),
    ({"codebook_init": "zeros"}, "codebook_init is zeros"),
    ({"eps": 0.0}, "eps is 0.0"),
]
TOP_PRIORS = [
    {"grid": (1, 1)},
    {"grid": (1, 5), "attention_layers": 2},
    {"grid": (5, 1), "attention_layers": 0, "heads": 0},
]
PRIORS = [
    {"num_codes": 1},
    {"num_classes": 0},
    {"num_classes": 1},
    {"layers": 1, "output_layers": 0},
    {"kernel": 31},
    {"dropout": 0.0},
    {"conditioning_blocks": 0},
    {"conditioning_blocks": 1},
]


def check_learning_and_drawing(
    prior: PriorNetwork, nll: Callable[..., torch.Tensor], above: list[torch.Tensor]
) -> None:
    """Gradients are finite; what is drawn are codes, whose likelihood is what `nll` says of them.

    Args:
        prior: in training mode.
        nll: of codes, conditions and labels, a position each.
        above: the conditions of two samples.
    """
    codes = torch.randint(prior.num_codes, (2, *prior.grid))
    labels = torch.tensor([0, max(prior.num_classes, 1) - 1])
    for network in getattr(prior, "levels", [prior]):
        torch.nn.init.normal_(network.to_logits.weight)
    nll(codes, above, labels).mean().backward()
    assert all(p.grad.isfinite().all() for p in prior.parameters() if p.grad is not None)
    given = torch.full((2, *prior.grid), -1)
    drawn = level_sampler(prior.eval(), Draw())(above, labels, Noise(0, [0, 1], 0), given)
    assert 0 <= drawn.codes.min() <= drawn.codes.max() < prior.num_codes
    with torch.inference_mode():
        expected = nll(drawn.codes, above, labels).double().sum((1, 2))
    torch.testing.assert_close(drawn.nll_nats, expected, rtol=1e-4, atol=1e-4)
