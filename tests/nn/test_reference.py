"""The networks against plain references that are written from the papers, with the same weights.

The modules' own weights would hide what a layer's place means only where biases are zero: they are drawn.
"""

import pytest
import torch

from tests.nn import reference_autoencoder, reference_prior
from tests.nn.reference_autoencoder import convolutions
from vqvae2.nn.conditioning import ConditioningStack
from vqvae2.nn.hierarchical import HierarchicalVQVAE, decoder, encoder
from vqvae2.nn.pixelsnail import PixelSNAIL

CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # float64; the order of sums differs
K = 7


def redrawn(network: torch.nn.Module) -> torch.nn.Module:
    """In float64 and eval mode; every weight, bias and statistic drawn anew, so that none is 0 or 1."""
    generator = torch.Generator().manual_seed(0)
    network = network.double().eval()
    for name, tensor in network.state_dict().items():
        if not tensor.is_floating_point() or "average_" in name:
            continue
        fan_in = tensor[0].numel() if tensor.ndim > 1 and "codebook" not in name else 1
        drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * (2 / fan_in) ** 0.5
        tensor.copy_(drawn.abs() + 0.5 if "running_var" in name else drawn)
    return network


def gradients(outputs: torch.Tensor, network: torch.nn.Module) -> list[torch.Tensor]:
    weights = list(network.parameters())
    return list(torch.autograd.grad(outputs.square().sum(), weights))


def state_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights by name, through which gradients flow."""
    return {**dict(network.named_buffers()), **dict(network.named_parameters())}


@pytest.mark.parametrize("blocks", [0, 1, 3])
@pytest.mark.parametrize("halvings", [1, 2, 3])
@pytest.mark.parametrize("build", [encoder, decoder])
def test_encoders_and_decoders(build, halvings, blocks):
    """With their gradients: a relu that happens to be inactive still shows in them."""
    channels = (5,) if build is encoder else (5, 3)
    network = redrawn(build(*channels, 8, 6, blocks, 2**halvings))
    x = torch.randn(2, 5, 16, 24, dtype=torch.float64)
    weights = convolutions({f"it.{name}": value for name, value in state_of(network).items()}, "it")
    if build is encoder:
        expected = reference_autoencoder.encoder(x, weights, halvings=halvings, blocks=blocks)
    else:
        expected = reference_autoencoder.decoder(x, weights, doublings=halvings, blocks=blocks)
    found = network(x)
    torch.testing.assert_close(found, expected, **CLOSE)
    for mine, theirs in zip(gradients(found, network), gradients(expected, network), strict=True):
        torch.testing.assert_close(mine, theirs, **CLOSE)


@pytest.mark.parametrize(("num_levels", "factor"), [(1, 2), (1, 8), (2, 4), (3, 8)])
def test_the_hierarchy_of_levels(num_levels, factor):
    """Algorithm 1: what is quantised, codes, images, and the gradient of equation 2 for every weight."""
    network = redrawn(
        HierarchicalVQVAE(
            channels=3, num_levels=num_levels, factor=factor, hidden=8, residual=6, residual_blocks=2,
            num_codes=K, code_dim=4, decay=0.99, eps=1e-5,
        )
    )  # fmt: skip
    state, depth = state_of(network), {"halvings": factor.bit_length() - 1, "blocks": 2}
    side = factor * 2 ** (num_levels - 1) * 2
    images = 10 * torch.randn(2, 3, side, side + side // 2, dtype=torch.float64)
    quantised = []
    for layer in network.to_code:
        layer.register_forward_hook(lambda *call: quantised.append(call[2]))
    out = network(images)
    levels = reference_autoencoder.quantise(state, images, num_levels=num_levels, **depth)
    for level, mine, codes in zip(levels, quantised, out.codes, strict=True):
        torch.testing.assert_close(mine, level.before, **CLOSE)
        assert torch.equal(codes, level.codes)
        assert not torch.equal(codes[0], codes[1])
    expected = reference_autoencoder.reconstruct(state, [level.vectors for level in levels], **depth)
    torch.testing.assert_close(out.images, expected, **CLOSE)
    beta = 1e3  # so that neither term hides the other
    loss = (out.images - images).square().mean() + beta * sum(out.commitments)
    theirs = reference_autoencoder.loss(images, levels, expected, beta)
    weights = list(network.parameters())
    for found, wanted in zip(*(torch.autograd.grad(of, weights) for of in (loss, theirs)), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max().item())


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_the_conditioning_stack(blocks):
    network = redrawn(ConditioningStack(6, 8, blocks))
    x = torch.randn(2, 6, 8, 12, dtype=torch.float64)
    state = {f"it.{name}": value for name, value in state_of(network).items()}
    found, expected = network(x), reference_prior.conditioning_stack(state, "it", x, blocks)
    torch.testing.assert_close(found, expected, **CLOSE)
    for mine, theirs in zip(gradients(found, network), gradients(expected, network), strict=True):
        torch.testing.assert_close(mine, theirs, **CLOSE)


def test_the_conditioning_stack_of_a_grid_that_does_not_halve_twice_is_that_of_a_larger_one():
    network = redrawn(ConditioningStack(3, 4, 2))
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    padded = torch.nn.functional.pad(x, (0, 2, 0, 3))
    state = {f"it.{name}": value for name, value in state_of(network).items()}
    expected = reference_prior.conditioning_stack(state, "it", padded, 2)
    torch.testing.assert_close(network(x), expected[:, :, :5, :6], **CLOSE)


def test_the_conditioning_stack_has_the_widths_of_the_pseudo_code():
    """1024 and 2048 units, inside the blocks 256 and 512; blocks 20 / 2 at the finer scales, 20 below."""
    with torch.device("meta"):
        stack = ConditioningStack(512, 1024, 20)
    for part, count, units, inner in (
        (stack.down1, 10, 1024, 256), (stack.down2, 10, 2048, 512), (stack.middle, 20, 2048, 512),
        (stack.up2, 10, 2048, 512), (stack.up1, 10, 1024, 256),
    ):  # fmt: skip
        shapes = [tuple(p.shape) for p in part[0].parameters() if p.ndim == 4]
        assert len(part) == count
        assert shapes == [(inner, units, 1, 1), (inner, inner, 3, 3), (units, inner, 1, 1)]


DEPTHS = [  # layers, attention layers, after which of the layers they come
    (20, 4, [5, 10, 15, 20]),  # the paper's: "every five layers"
    (20, 1, [20]),
    (7, 3, [2, 4, 6]),
    (3, 3, [1, 2, 3]),
    (4, 0, []),
]


@pytest.mark.parametrize(("layers", "attention_layers", "places"), DEPTHS)
def test_attention_comes_behind_the_layers_that_its_period_says(layers, attention_layers, places):
    """Seen in the order of the calls, not in the names."""
    prior = make_prior(layers=layers, attention_layers=attention_layers, heads=2, output_layers=0)
    calls = []
    for layer in prior.layers:
        layer.register_forward_hook(lambda *_: calls.append("gated"))
    for layer in prior.attention.values():
        layer.register_forward_hook(lambda *_: calls.append("attention"))
    prior(torch.zeros(1, 4, 4, dtype=torch.int64), [], torch.zeros(1, dtype=torch.int64))
    assert [calls[:i].count("gated") for i, call in enumerate(calls) if call == "attention"] == places
    assert calls.count("gated") == layers


def make_prior(*, grid=(4, 4), above=(), num_classes=3, kernel=5, **changes) -> PixelSNAIL:
    options = {"hidden": 8, "residual": 12, "dropout": 0.1, "heads": 0, **changes}
    if above:
        options |= {"conditioning_hidden": 8}
    return redrawn(
        PixelSNAIL(
            grid=grid, num_codes=K, condition_grids=above, condition_codes=[5] * len(above),
            num_classes=num_classes, kernel=kernel, **options,
        )
    )  # fmt: skip


PRIORS = {
    "top": {"layers": 5, "attention_layers": 2, "heads": 4, "output_layers": 2},
    "top, of faces": {"layers": 3, "attention_layers": 1, "heads": 2, "output_layers": 0, "num_classes": 0},
    "mid": {
        "layers": 4, "attention_layers": 1, "heads": 2, "output_layers": 0, "above": [(4, 8)], "blocks": 2,
    },
    "bottom": {
        "layers": 3, "attention_layers": 0, "output_layers": 1, "above": [(4, 4), (8, 8)], "blocks": 3,
        "grid": (16, 16),
    },
    "a small window": {"layers": 2, "attention_layers": 0, "output_layers": 1, "kernel": 3, "grid": (8, 4)},
}  # fmt: skip


@pytest.mark.parametrize("kind", PRIORS)
def test_priors(kind):
    options = {"grid": (8, 16), "num_classes": 3, "kernel": 5, "heads": 0, "blocks": 0} | PRIORS[kind]
    above, blocks = options.pop("above", []), options.pop("blocks")
    prior = make_prior(above=above, **options, **({"conditioning_blocks": blocks} if above else {}))
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(K, (2, *options["grid"]), generator=generator)
    conditions = [torch.randint(5, (2, *grid), generator=generator) for grid in above]
    labels = torch.tensor([2, 1]) if options["num_classes"] else None
    depth = {
        name: options[name] for name in ("layers", "attention_layers", "heads", "kernel", "output_layers")
    }
    expected = reference_prior.logits(state_of(prior), codes, conditions, labels, **depth, blocks=blocks)
    found = prior(codes, conditions, labels)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert found.std() > 0.1
    for mine, theirs in zip(gradients(found, prior), gradients(expected, prior), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-7)
