"""The hierarchy of levels: shapes of its grids, who sees whom, exact decoding, and a tiny overfit."""

import pytest
import torch

from vqvae2.nn.hierarchical import HierarchicalVQVAE
from vqvae2.nn.quantizer import update_codebooks
from vqvae2.nn.weights import fingerprint

SMALL = {"channels": 3, "factor": 4, "hidden": 16, "residual": 8, "residual_blocks": 1, "num_codes": 16}
CODEBOOK = {"code_dim": 4, "decay": 0.99, "eps": 1e-5}


def make(num_levels: int, **changes) -> HierarchicalVQVAE:
    torch.manual_seed(0)
    return HierarchicalVQVAE(num_levels=num_levels, **{**SMALL, **CODEBOOK, **changes})


@pytest.mark.parametrize(
    ("num_levels", "factor", "millions"),
    [(2, 4, 1.717), (3, 8, 3.271)],
)
def test_the_papers_networks_have_the_expected_weights(num_levels, factor, millions):
    with torch.device("meta"):
        network = make(
            num_levels, factor=factor, hidden=128, residual=64, residual_blocks=2, num_codes=512, code_dim=64
        )
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=5e-4)
    assert sum(q.codebook.numel() for q in network.quantizers) == num_levels * 32768


@pytest.mark.parametrize(
    ("num_levels", "factor", "side", "grids"),
    [(1, 2, 8, ((4, 4),)), (2, 4, 256, ((32, 32), (64, 64))), (3, 8, 1024, ((32, 32), (64, 64), (128, 128)))],
)
def test_grids(num_levels, factor, side, grids):
    network = make(num_levels, factor=factor)
    assert network.grids(side, side) == grids
    with pytest.raises(ValueError, match=f"multiples of {side // grids[0][0]}"):
        network.grids(side + factor // 2, side)


@pytest.mark.parametrize("num_levels", [1, 2, 3])
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_forward_equals_encode_then_decode_to_the_bit(num_levels, factor):
    network = make(num_levels, factor=factor).eval()
    height, width = factor * 2 ** (num_levels - 1) * 2, factor * 2 ** (num_levels - 1) * 3
    images = torch.randn(2, 3, height, width)
    with torch.no_grad():
        out = network(images)
        codes = network.encode(images)
        assert [tuple(c.shape[1:]) for c in codes] == list(network.grids(height, width))
        assert all(torch.equal(a, b) for a, b in zip(out.codes, codes, strict=True))
        assert torch.equal(out.images, network.decode(codes))
        assert out.images.shape == images.shape


@pytest.mark.parametrize("channels", [1, 3])
def test_activations_are_channels_last_so_that_the_quantisers_copy_nothing(channels):
    network = make(2, channels=channels)
    for vectors in before_quantisation(network, torch.randn(2, channels, 32, 32)):
        assert vectors.permute(0, 2, 3, 1).is_contiguous()


def before_quantisation(network: HierarchicalVQVAE, images: torch.Tensor) -> list[torch.Tensor]:
    seen = []
    hooks = [layer.register_forward_hook(lambda *call: seen.append(call[2])) for layer in network.to_code]
    network.encode(images)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("num_levels", [2, 3])
def test_each_level_depends_on_the_pixels_and_on_the_codes_above(num_levels):
    network = make(num_levels).eval()
    images = torch.randn(2, 3, 32, 32)
    vectors = before_quantisation(network, images)
    assert all(not torch.equal(level[0], level[1]) for level in vectors)
    for level in range(num_levels - 1):
        changed = make(num_levels).eval()
        changed.quantizers[level].codebook.mul_(-3)
        after = before_quantisation(changed, images)
        same = [torch.equal(a, b) for a, b in zip(after, vectors, strict=True)]
        assert same == [below <= level for below in range(num_levels)]


@pytest.mark.parametrize("num_levels", [1, 2, 3])
def test_the_decoder_is_fed_by_all_levels(num_levels):
    network = make(num_levels).eval()
    codes = network.encode(torch.randn(2, 3, 32, 32))
    image = network.decode(codes)
    for level in range(num_levels):
        other = [(grid + 1) % 16 if i == level else grid for i, grid in enumerate(codes)]
        assert not torch.equal(network.decode(other), image)
    if num_levels > 1:
        upper_only = network.decode(codes, num_levels=1)
        other = [codes[0], *((grid + 1) % 16 for grid in codes[1:])]
        assert torch.equal(network.decode(other, num_levels=1), upper_only)
        assert torch.equal(network.decode(codes, num_levels=num_levels), image)


def test_level_dropout_hides_lower_levels_of_whole_images_while_training_only():
    network = make(3, level_dropout=0.5)
    vectors = [torch.ones(3000, 4, 1, 1) for _ in range(3)]
    hidden = torch.stack([level.flatten(1).sum(1) == 0 for level in network._drop_lower_levels(vectors)])
    assert not hidden[0].any()  # the top is always seen
    assert (hidden[2] >= hidden[1]).all()  # a hidden level hides those below it
    assert hidden[2].float().mean() == pytest.approx(0.5, abs=0.04)
    assert hidden[1].float().mean() == pytest.approx(0.25, abs=0.04)
    network.eval()
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(network(images).images, network.decode(network.encode(images)))


def test_fingerprint_tells_networks_apart():
    network, same = make(2), make(2)
    assert fingerprint(network) == fingerprint(same)
    assert fingerprint(network) == fingerprint(same.to(memory_format=torch.contiguous_format))
    same.quantizers[1].codebook[3, 2] += 1e-3
    assert fingerprint(network) != fingerprint(same)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_levels": 4}, "num_levels"),
        ({"factor": 6}, "power of two"),
        ({"num_levels": 1, "level_dropout": 0.1}, "two levels"),
    ],
)
def test_impossible_hierarchies_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**{"num_levels": 2, **changes})


def test_a_few_images_are_learned_with_the_help_of_both_levels():
    """`test_reference.py` holds the layers; here gradients and codebooks together have to get there."""
    network = make(2, hidden=32, num_codes=64, code_dim=8, codebook_init="data", revive_below=0.01)
    images = torch.nn.functional.interpolate(torch.randn(4, 3, 8, 8), scale_factor=4, mode="bilinear").tanh()
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(200):
        out = network(images)
        error = (out.images - images).square().mean()
        (error + 0.25 * sum(out.commitments)).backward()
        optimizer.step()
        optimizer.zero_grad()
        update_codebooks(network.quantizers, out.statistics)
    assert error < 0.1 * images.var()
    top, bottom = network.encode(images)
    for swapped in ((top.flip(0), bottom), (top, bottom.flip(0))):
        assert (network.decode(swapped) - images).square().mean() > 2 * error
