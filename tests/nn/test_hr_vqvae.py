"""HR-VQVAE: exact decoding from leaf indices, refinements, names of its codebooks, files."""

import pytest
import torch
from torch.nn import functional as F

from vqvae2.nn.hr_vqvae import HRVQVAE
from vqvae2.nn.quantizer import update_codebooks
from vqvae2.nn.weights import fingerprint
from vqvae2.storage.checkpoint import load_network, save_network

OPTIONS = {"channels": 3, "factor": 4, "hidden": 16, "residual": 8, "residual_blocks": 1, "branch": 3}
OPTIONS |= {"depth": 3, "code_dim": 5, "beta": 0.25, "decay": 0.9, "eps": 1e-5}


def make(**changes) -> HRVQVAE:
    """With codes of all levels that are in use."""
    torch.manual_seed(0)
    network = HRVQVAE(**OPTIONS | changes)
    images = torch.randn(8, network.channels, 24, 32)
    for _ in range(5):
        update_codebooks(network.quantizers, network(images).statistics)
    return network.eval()


@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize(("factor", "channels"), [(2, 1), (4, 3), (8, 3)])
@torch.no_grad()
def test_forward_equals_encode_then_decode_to_the_bit(factor, channels, linked):
    network = make(factor=factor, channels=channels, linked=linked)
    images = torch.randn(2, channels, 24, 32)
    out = network(images)
    (codes,) = network.encode(images)
    assert tuple(codes.shape[1:]) == network.grids(24, 32)[0] == (24 // factor, 32 // factor)
    assert codes.unique().numel() > 6
    assert torch.equal(out.codes[0], codes)
    assert torch.equal(network.decode([codes]), out.images)
    assert torch.equal(network.decode([codes], num_levels=1), out.images)
    assert out.images.shape == images.shape
    assert network.image_size([codes.shape[1:]]) == (24, 32)


@torch.no_grad()
def test_decoding_feeds_the_sum_of_the_codes_on_the_path_to_the_decoder():
    network = make()
    (codes,) = network.encode(torch.randn(2, 3, 24, 32))
    tables = [level.codebook for level in network.quantizer.levels]
    paths = [codes // 9, codes // 3, codes]
    total = sum(table[nodes] for table, nodes in zip(tables, paths, strict=True)).permute(0, 3, 1, 2)
    torch.testing.assert_close(network.decode([codes]), network.decoder(total))


@torch.no_grad()
def test_refinements_go_from_the_first_level_to_the_whole():
    network = make()
    (codes,) = network.encode(torch.randn(2, 3, 24, 32))
    steps = network.refinements([codes])
    assert len(steps) == 3
    assert torch.equal(steps[-1], network.decode([codes]))
    cousins = codes // 9 * 9 + (codes + 1) % 9  # the same first node
    assert torch.equal(network.refinements([cousins])[0], steps[0])
    siblings = codes // 3 * 3 + (codes + 1) % 3  # the same first two
    assert torch.equal(network.refinements([siblings])[1], steps[1])
    assert not torch.equal(network.refinements([siblings])[2], steps[2])
    strangers = (codes + 9) % 27
    assert not any(torch.equal(*pair) for pair in zip(network.refinements([strangers]), steps, strict=True))
    for depth, step in enumerate(steps, start=1):
        assert torch.equal(step, network.decoder(network.quantizer.lookup(codes, depth)))


def test_codebooks_are_the_levels_and_each_has_its_nodes():
    network, apart = make(), make(linked=False)
    leaves = torch.arange(27).view(1, 3, 9)
    assert network.codebooks == {"level1": 3, "level2": 9, "level3": 27}
    assert apart.codebooks == {"level1": 3, "level2": 3, "level3": 3}
    assert network.codebook_sizes == apart.codebook_sizes == (27,)
    for one, found in ((network, (9, 3, 1)), (apart, (9, 3, 1))):
        for nodes, below, size in zip(one.by_codebook([leaves]), found, one.codebooks.values(), strict=True):
            assert torch.equal(nodes, leaves // below % size)


def test_options_reach_every_level():
    options = {"decay": 0.7, "eps": 0.03, "codebook_init": "uniform", "revive_below": 0.2, "beta": 0.6}
    quantizer = HRVQVAE(**OPTIONS | options).quantizer
    assert (quantizer.beta, quantizer.dim, quantizer.depth, quantizer.branch) == (0.6, 5, 3, 3)
    for level in quantizer.levels:
        assert (level.decay, level.eps, level.init, level.revive_below) == (0.7, 0.03, "uniform", 0.2)
        assert level.codebook.abs().max() <= (3 / 5) ** 0.5


def test_shares_of_visited_nodes_are_those_before_the_step():
    torch.manual_seed(0)
    network = HRVQVAE(**OPTIONS)
    images = torch.randn(8, 3, 24, 32)
    seen = [torch.zeros(size).bool() for size in (3, 9, 27)]
    shares = []
    for step in range(4):
        out = network(images)
        shares.append([float(share) for share in out.visited])
        assert shares[-1] == pytest.approx([float(level.float().mean()) for level in seen])
        update_codebooks(network.quantizers, out.statistics)
        for i, nodes in enumerate(network.by_codebook(out.codes)):
            if i <= step:  # below, nothing has started
                seen[i][nodes.flatten()] = True
    assert shares[-1][2] > 0.3
    assert out.images.requires_grad


def test_sizes_that_do_not_divide_are_refused_with_both_sides():
    network = make()
    assert network.grids(24, 32) == ((6, 8),)
    for size in ((22, 32), (24, 34)):
        with pytest.raises(ValueError, match=rf"{size[0]}x{size[1]} do not divide .* multiples of 4"):
            network.grids(*size)


@pytest.mark.parametrize("changes", [{}, {"linked": False, "residual_gradient": "full"}])
def test_a_network_alone_is_written_and_read_to_the_bit(tmp_path, changes):
    network = make(**changes)
    save_network(tmp_path / "x.ckpt", network, OPTIONS | changes, image_size=[24, 32])
    loaded, facts = load_network(tmp_path / "x.ckpt", "autoencoder")
    assert isinstance(loaded, HRVQVAE)
    assert facts["architecture"] == "hr-vqvae"
    assert fingerprint(loaded) == fingerprint(network)
    assert not loaded.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    images = torch.randn(1, 3, 24, 32)
    with torch.no_grad():
        assert torch.equal(loaded(images).images, network(images).images)
    assert loaded.quantizer.levels[1].started.dtype == torch.bool


@torch.no_grad()
def test_half_precision_decodes_from_codebooks_of_float32():
    network = make()
    (codes,) = network.encode(torch.randn(2, 3, 24, 32))
    exact = network.decode([codes])
    before = [level.codebook.clone() for level in network.quantizer.levels]
    network.bfloat16()
    assert all(torch.equal(a.codebook, b) for a, b in zip(network.quantizer.levels, before, strict=True))
    found = network.decode([codes])
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=0, atol=0.05 * float(exact.abs().max()))


def test_a_few_images_are_learned_and_every_level_adds_to_it():
    torch.manual_seed(0)
    network = HRVQVAE(**OPTIONS | {"factor": 2, "code_dim": 8, "branch": 4, "revive_below": 0.01})
    images = F.interpolate(torch.randn(4, 3, 4, 4), scale_factor=4, mode="bilinear").tanh()
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(150):
        out = network(images)
        error = F.mse_loss(out.images, images)
        (error + 0.25 * (out.commitment + sum(out.commitments))).backward()
        optimizer.step()
        optimizer.zero_grad()
        update_codebooks(network.quantizers, out.statistics)
    network.eval()
    with torch.no_grad():
        first, second, third = (
            float(F.mse_loss(step, images)) for step in network.refinements(network.encode(images))
        )
    assert third < second < first
    assert third < 0.1 * float(images.var())
