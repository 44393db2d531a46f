"""VQ-GAN's networks against a slow reference, published sizes, and the contract of tokenizers."""

import pytest
import torch

from tests.nn import reference_vqgan as reference
from vqvae2.nn.gradient_quantizer import GradientQuantizer
from vqvae2.nn.quantizer import update_codebooks
from vqvae2.nn.vqgan import VQGAN

OPTIONS = {"channels": 3, "resolution": 16, "hidden": 4, "multipliers": [1, 2, 3], "residual_blocks": 2}
OPTIONS |= {"attention_resolutions": [8], "norm_groups": 2, "latent_channels": 5, "num_codes": 7}
OPTIONS |= {"code_dim": 6, "codebook": "gradient"}
AVERAGES = {"codebook": "averages", "decay": 0.9, "eps": 1e-5}
TAMING = {"channels": 3, "hidden": 128, "norm_groups": 32, "latent_channels": 256, "code_dim": 256}
TAMING |= {"codebook": "gradient"}
F16 = {"resolution": 256, "multipliers": [1, 1, 2, 2, 4], "residual_blocks": 2}
F16 |= {"attention_resolutions": [16], "num_codes": 1024}
TABLE_4 = {"resolution": 1024, "multipliers": [1, 1, 2, 2, 4, 4], "residual_blocks": 1}  # SUNDAE on VQ-GAN
TABLE_4 |= {"attention_resolutions": [64], "num_codes": 8192}


def make(**changes):
    torch.manual_seed(0)
    network = VQGAN(**OPTIONS | changes)
    with torch.no_grad():
        for parameter in network.parameters():  # none is 0 or 1, as norms and biases are at the start
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def size(*parts):
    return sum(p.numel() for part in parts for p in part.parameters())


@torch.no_grad()
def test_encoder_and_decoder_are_those_of_the_description():
    network = make()
    how = {"widths": [4, 8, 12], "blocks": 2, "attends": [False, True, False], "groups": 2}
    image, latent = torch.randn(3, 8, 12), torch.randn(5, 2, 3)
    weights = iter(network.encoder.parameters())
    expected = reference.encode(image, weights, **how)
    assert next(weights, None) is None
    torch.testing.assert_close(network.encoder(image[None])[0].double(), expected, rtol=1e-4, atol=1e-5)
    weights = iter([*network.decoder.parameters(), *network.last.parameters()])
    expected = reference.decode(latent, weights, **how)
    assert next(weights, None) is None
    found = network.last(network.decoder(latent[None]))[0]
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_tamings_sizes():
    """72.1 M, of which 29.3 M encode and 42.4 M decode: what tables of other papers say of its f = 16."""
    with torch.device("meta"):
        network = VQGAN(**TAMING, **F16)
    assert size(network.encoder) == 29_298_176
    assert size(network.decoder, network.last) == 42_449_795
    assert size(network) == 72_141_699
    assert network.image_size([(16, 16)]) == (256, 256)


def test_table_4_halves_megapixel_images_five_times():
    with torch.device("meta"):
        network = VQGAN(**TAMING, **TABLE_4)
    assert network.grids(1024, 1024) == ((32, 32),)
    assert network.image_size([(32, 32)]) == (1024, 1024)
    kinds = [type(layer).__name__ for layer in network.encoder]
    assert kinds.count("Attention") == 2  # at 64x64, and in the middle at 32x32
    assert [layer.out_channels for layer in network.encoder if type(layer).__name__ == "Downsample"] == [
        *(128, 128, 256, 256, 512)
    ]


@pytest.mark.parametrize("codebook", [{}, AVERAGES])
@pytest.mark.parametrize("halvings", [1, 2, 4])
def test_any_power_of_two_by_contract(codebook, halvings):
    options = {"multipliers": [1] * (halvings + 1), "attention_resolutions": [16 // 2**halvings]}
    network = make(**codebook, **options)
    factor = 2**halvings
    images = torch.randn(2, 3, factor, 3 * factor)
    out = network(images)
    assert out.images.shape == images.shape
    [codes] = network.encode(images)
    assert codes.dtype == torch.int64
    assert (codes.shape[1:],) == network.grids(*images.shape[-2:]) == ((1, 3),)
    assert torch.equal(codes, out.codes[0])
    decoded = network.decode([codes])
    torch.testing.assert_close(decoded, out.images, rtol=1e-4, atol=1e-5)
    [whole] = network.refinements([codes])
    assert torch.equal(whole, decoded)
    assert network.codebooks == {"top": 7}
    assert network.image_size([(1, 3)]) == (factor, 3 * factor)
    with pytest.raises(ValueError, match=f"must be multiples of {factor}"):
        network.grids(factor, factor + 1)


def test_the_gradient_passes_straight_through_and_each_term_moves_its_side():
    torch.manual_seed(0)
    quantizer = GradientQuantizer(num_codes=5, dim=2)
    assert quantizer.codebook.abs().max() <= 1 / 5
    vectors = torch.randn(2, 2, 3, 3, requires_grad=True)
    found = quantizer(vectors)
    rows = vectors.permute(0, 2, 3, 1).reshape(-1, 2)
    distances = (rows[:, None] - quantizer.codebook[None]).square().sum(2)
    assert torch.equal(found.codes.flatten(), distances.argmin(1))
    assert torch.equal(found.vectors, quantizer.lookup(found.codes))  # to the bit
    assert found.commitment.item() == pytest.approx(distances.min(1).values.mean().item() / 2, rel=1e-5)
    assert found.codebook.item() == pytest.approx(found.commitment.item())

    def gradients(loss):
        return torch.autograd.grad(loss, [vectors, quantizer.codebook], retain_graph=True, allow_unused=True)

    upstream = torch.randn_like(found.vectors)
    on_vectors, on_codes = gradients((found.vectors * upstream).sum())
    assert torch.equal(on_vectors, upstream)
    assert on_codes is None
    difference = (vectors - found.vectors).detach()
    on_vectors, on_codes = gradients(found.commitment)
    torch.testing.assert_close(on_vectors, 2 * difference / difference.numel())
    assert on_codes is None
    on_vectors, on_codes = gradients(found.codebook)
    assert on_vectors is None
    expected = torch.zeros(5, 2).index_add(
        0, found.codes.flatten(), -2 * difference.permute(0, 2, 3, 1).reshape(-1, 2) / difference.numel()
    )
    torch.testing.assert_close(on_codes, expected)


def test_codebooks_of_both_kinds_count_their_use_and_only_averages_learn_by_it():
    for codebook in ({}, AVERAGES):
        network = make(**codebook).train()
        before = network.quantizer.codebook.clone()
        out = network(torch.randn(2, 3, 8, 8))
        [counts] = update_codebooks(network.quantizers, out.statistics)
        assert torch.equal(counts, torch.bincount(out.codes[0].flatten(), minlength=7).float())
        assert torch.equal(before, network.quantizer.codebook) == (not codebook)
    assert out.codebook == 0


def test_half_precision_spares_the_codebook():
    for codebook in ({}, AVERAGES):
        network = make(**codebook).to(torch.bfloat16)
        assert network.quantizer.codebook.dtype == torch.float32
        assert network.last.weight.dtype == torch.bfloat16
        out = network(torch.randn(1, 3, 8, 8, dtype=torch.bfloat16))
        assert out.images.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"multipliers": [1]}, "multipliers"),
        ({"norm_groups": 3}, r"norm_groups is 3, wanted a divisor of each of the widths \[4, 8, 12\]"),
        ({"attention_resolutions": [32]}, r"some of \[16, 8, 4\]"),
        ({"resolution": 18}, "a multiple of 4"),
        ({"residual_blocks": 0}, "residual_blocks is 0"),
        ({"codebook": "kmeans"}, "codebook is kmeans"),
        ({"codebook": "averages"}, "needs decay and eps"),
        ({"decay": 0.9}, "decay is given"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"num_codes": 0}, "num_codes is 0"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        VQGAN(**OPTIONS | changes)
