"""The quantiser against a float64 reference written from the equations, alone and over two ranks."""

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from tests.precision import assert_autocast_changes_nothing, tf32, watched
from tests.ranks import run_ranks
from vqvae2.nn import quantizer as implementation
from vqvae2.nn.quantizer import VectorQuantizer, nearest, perplexity, update_codebooks, usage


def make(num_codes=20, dim=5, **changes) -> VectorQuantizer:
    options = {"decay": 0.99, "eps": 1e-5, "init": "normal", "revive_below": 0.0}
    return VectorQuantizer(num_codes=num_codes, dim=dim, **{**options, **changes})


def distance_to_vectors(codes, z):
    vectors = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
    return torch.cdist(codes.double(), vectors.double()).min(1).values


def reference_step(state, z, decay=0.99, eps=1e-5):
    """One step of section 2.1 in float64 with loops; `state` is (codebook, counts, sums, steps)."""
    codebook, counts, sums, steps = state
    codes = torch.tensor([min(range(len(codebook)), key=lambda j: ((v - codebook[j]) ** 2).sum()) for v in z])
    steps += 1
    codebook, counts, sums = codebook.clone(), counts.clone(), sums.clone()
    for j in range(len(codebook)):
        mine = z[codes == j]
        counts[j] = decay * counts[j] + (1 - decay) * len(mine)
        sums[j] = decay * sums[j] + (1 - decay) * mine.sum(0)
    unbiased_counts, unbiased_sums = counts / (1 - decay**steps), sums / (1 - decay**steps)
    total = unbiased_counts.sum()
    for j in range(len(codebook)):
        smoothed = (unbiased_counts[j] + eps) / (total + len(codebook) * eps) * total
        codebook[j] = unbiased_sums[j] / smoothed
    return codes, (codebook, counts, sums, steps)


def test_fifty_steps_equal_the_reference_with_codes_unused_at_first():
    torch.manual_seed(0)
    quantizer = make()
    quantizer.codebook[:2] = 40.0  # a tenth of the codes is out of reach of the first batch
    state = (quantizer.codebook.double(), torch.zeros(20).double(), torch.zeros(20, 5).double(), 0)
    for step in range(50):
        z = torch.randn(2, 5, 4, 4) + (40.0 if step >= 10 and step % 3 == 0 else 0.0)
        out = quantizer(z)
        codes, state = reference_step(state, z.permute(0, 2, 3, 1).reshape(-1, 5).double())
        assert torch.equal(out.codes.flatten(), codes), f"other codes at step {step}"
        quantizer.update(out.statistics)
        torch.testing.assert_close(quantizer.codebook.double(), state[0], rtol=1e-6, atol=1e-6)


def test_most_codes_come_alive_on_a_toy_problem():
    torch.manual_seed(0)
    quantizer = make(num_codes=64, dim=2)
    centres = torch.randn(64, 2) * 2
    for _ in range(30):
        z = centres[torch.randint(64, (1024,))] + 0.05 * torch.randn(1024, 2)
        out = quantizer(z.T[None, :, None])
        quantizer.update(out.statistics)
    assert quantizer.codebook.abs().max() < 10  # without the bias correction unused codes reach 1e5
    assert usage(out.statistics[:, 2]) > 0.6


def test_a_code_that_was_never_used_stays_finite_and_can_return():
    quantizer = make(num_codes=2, dim=1)
    quantizer.codebook.copy_(torch.tensor([[0.0], [100.0]]))
    z = torch.full((1, 1, 1, 8), 1.0)
    quantizer.update(quantizer(z).statistics)
    torch.testing.assert_close(quantizer.codebook, torch.tensor([[1.0], [0.0]]), atol=1e-4, rtol=0)
    assert quantizer(torch.full((1, 1, 1, 1), -1.0)).codes.item() == 1


def test_nearest_takes_the_lowest_of_equal_codes_and_agrees_with_distances_in_float64():
    torch.manual_seed(0)
    codebook = torch.randn(33, 7)
    codebook[20] = codebook[3]
    vectors = torch.cat([torch.randn(5000, 7), codebook[20:21]])  # more than one chunk
    expected = torch.cdist(vectors.double(), codebook.double()).argmin(1)
    codes = nearest(vectors, codebook)
    assert torch.equal(codes, expected)
    assert codes[-1] == 3


@pytest.mark.parametrize("num_codes", [32, 64, 96, 100, 512])
def test_of_many_equally_near_codes_the_lowest_is_taken(num_codes):
    torch.manual_seed(0)
    vectors = torch.randint(-2, 3, (700, 3)).float()  # products of small integers are exact: many real ties
    codebook = torch.randint(-2, 3, (num_codes, 3)).float()
    distances = (vectors[:, None] - codebook).square().sum(2)
    assert ((distances == distances.amin(1, keepdim=True)).sum(1) > 1).any()
    assert nearest(vectors, codebook).tolist() == distances.numpy().argmin(1).tolist()


def in_one_piece(quantizer, z, upstream, commitment_weight):
    """Forward and backward as the equations say them, in float64 by autograd, given the codes."""
    codes = nearest(z.permute(0, 2, 3, 1).flatten(0, 2).float(), quantizer.codebook)
    z = z.double().requires_grad_()
    rows, e = z.permute(0, 2, 3, 1).flatten(0, 2), quantizer.codebook.double()[codes]
    straight_through = (rows + (e - rows).detach()).view(*z.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
    commitment = (e - rows).square().mean()
    ((straight_through * upstream.double()).sum() + commitment_weight * commitment).backward()
    chosen = nn.functional.one_hot(codes, quantizer.num_codes).double()
    statistics = torch.cat([chosen.T @ rows.detach(), chosen.sum(0)[:, None]], 1)
    return straight_through, codes, commitment, statistics, z.grad


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_pieces_and_gradients_equal_the_equations_in_float64(layout, precision, monkeypatch):
    monkeypatch.setitem(implementation._ROWS_AT_ONCE, "cpu", 50)  # two of the seven images of 4x6
    monkeypatch.setitem(implementation._DISTANCES_AT_ONCE, "cpu", 64 * 13)
    torch.manual_seed(0)
    quantizer = make(num_codes=64, dim=5)
    z = torch.randn(7, 5, 4, 6).to(precision, memory_format=layout)
    upstream = torch.randn(7, 5, 4, 6).contiguous(memory_format=layout)
    vectors, codes, commitment, statistics, gradient = in_one_piece(quantizer, z, upstream, 200.0)
    z.requires_grad_()
    out = quantizer(z)
    (out.vectors * upstream).sum().add(200.0 * out.commitment).backward()
    rounding = {torch.float32: 1e-6, torch.bfloat16: 2**-8}[precision]
    assert z.grad.dtype == precision
    assert torch.equal(out.codes.flatten(), codes)
    assert torch.equal(quantizer.encode(z), out.codes)
    torch.testing.assert_close(out.vectors.double(), vectors)
    torch.testing.assert_close(out.commitment.double(), commitment, rtol=1e-6, atol=0)
    torch.testing.assert_close(out.statistics.double(), statistics, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(z.grad.double(), gradient, rtol=rounding, atol=1e-6)


def test_memory_stays_far_below_the_matrix_of_distances():
    """What is allocated at any moment beyond the vectors' images, their codes and the gradient."""
    quantizer = make(num_codes=512, dim=64)
    z = torch.randn(16, 64, 64, 64).contiguous(memory_format=torch.channels_last).requires_grad_()
    upstream = torch.ones_like(z)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        out = quantizer(z)
        torch.autograd.backward([out.vectors, out.commitment], [upstream, torch.tensor(1.0)])
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = torch.tensor([change for _, change in changes]).cumsum(0)
    z_grad_made = z.nbytes  # held from the backward pass on
    assert held.max() - out.vectors.nbytes - out.codes.nbytes < z_grad_made + 0.1 * 65536 * 512 * 4


def test_gradient_passes_straight_through_and_commitment_pulls_to_the_code():
    quantizer = make()
    z = torch.randn(2, 5, 3, 3, requires_grad=True)
    out = quantizer(z)
    assert torch.equal(out.vectors, quantizer.lookup(out.codes))  # exactly the codes, not z + (e - z)
    weights = torch.randn_like(z)
    (gradient,) = torch.autograd.grad((out.vectors * weights).sum(), z, retain_graph=True)
    assert torch.equal(gradient, weights)
    (gradient,) = torch.autograd.grad(out.commitment, z)
    torch.testing.assert_close(gradient, 2 * (z - out.vectors).detach() / z.numel())


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_distances_are_float32_under_autocast(precision):
    torch.manual_seed(0)
    quantizer = make(num_codes=512, dim=64)
    assert_autocast_changes_nothing(quantizer, torch.randn(1, 64, 16, 16), precision)


def test_reduced_precision_products_are_off_while_codes_are_compared(monkeypatch):
    seen = []
    monkeypatch.setattr("vqvae2.nn.quantizer.nearest", watched(nearest, seen))
    with tf32():
        make()(torch.randn(1, 5, 2, 2))
    assert seen == ["ieee", "ieee"]


@pytest.mark.parametrize("changes", [{}, {"init": "data"}, {"revive_below": 0.5}])
def test_forward_writes_no_buffer(changes):
    quantizer = make(**changes)
    before = {name: buffer.clone() for name, buffer in quantizer.named_buffers()}
    for mode in (True, False):
        quantizer.train(mode)(torch.randn(2, 5, 4, 4))
    assert all(torch.equal(buffer, before[name]) for name, buffer in quantizer.named_buffers())


def test_data_initialisation_puts_every_code_on_a_vector_of_the_first_batch():
    quantizer = make(init="data")
    z = torch.randn(4, 5, 4, 4) + 10
    quantizer.update(quantizer(z).statistics)
    assert distance_to_vectors(quantizer.codebook, z).max() < 1e-3
    quantizer.update(quantizer(z).statistics)
    assert usage(torch.bincount(quantizer(z).codes.flatten(), minlength=20)) > 0.6


def test_dead_codes_are_revived_and_live_ones_left_alone():
    torch.manual_seed(0)
    dead, alive = make(revive_below=0.1), make()
    alive.load_state_dict(dead.state_dict())
    for quantizer in (dead, alive):
        quantizer.codebook[:5] = 1000.0
    z = torch.randn(8, 5, 4, 4)
    out = dead(z)
    used = out.statistics[:, 5] > 0.1 * out.statistics[:, 5].mean()
    dead.update(out.statistics)
    alive.update(alive(z).statistics)
    assert not used[:5].any()
    assert distance_to_vectors(dead.codebook[:5], z).max() < 1e-2
    torch.testing.assert_close(dead.codebook[used], alive.codebook[used], rtol=1e-3, atol=1e-3)


def test_accumulated_micro_batches_equal_one_batch():
    whole, parts = make(), make()
    parts.load_state_dict(whole.state_dict())
    z = torch.randn(4, 5, 4, 4)
    whole.update(whole(z).statistics)
    parts.update(parts.accumulate(parts(z[:1]).statistics, parts(z[1:]).statistics))
    torch.testing.assert_close(parts.codebook, whole.codebook)


def test_accumulation_keeps_candidates_that_are_vectors():
    quantizer = make(init="data")
    z = torch.randn(2, 5, 4, 4) + 10
    quantizer.update(quantizer.accumulate(quantizer(z).statistics, quantizer(z).statistics))
    assert distance_to_vectors(quantizer.codebook, z).max() < 1e-3


def test_perplexity_and_usage_have_their_closed_forms():
    assert perplexity(torch.full((16,), 3)).item() == pytest.approx(16)
    assert perplexity(torch.tensor([5, 0, 0])).item() == pytest.approx(1)
    assert usage(torch.tensor([5, 0, 0, 1])).item() == 0.5


def _train(rank, world_size, **changes):
    """Twenty steps of an encoder and two codebooks; the batch is dealt to the ranks."""
    torch.manual_seed(1)
    encoder = nn.Conv2d(3, 5, 1)
    quantizers = [make(**changes), make(**changes)]
    if world_size > 1:
        encoder = nn.parallel.DistributedDataParallel(encoder, broadcast_buffers=False)
    optimizer = torch.optim.SGD(encoder.parameters(), 0.1)
    torch.manual_seed(2)
    for _ in range(20):
        images = torch.randn(8, 3, 4, 4).chunk(world_size)[rank]
        out = [quantizer(encoder(images)) for quantizer in quantizers]
        loss = sum(
            (level.vectors - images.mean(1, keepdim=True)).square().mean() + level.commitment for level in out
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        counts = update_codebooks(quantizers, [level.statistics for level in out])
    return [quantizer.codebook for quantizer in quantizers], counts


def test_two_ranks_with_half_the_batch_equal_one():
    alone, alone_counts = _train(0, 1)
    together = run_ranks(_train_on_rank, 2)
    for codebooks, counts in together:
        for mine, expected in zip(codebooks, alone, strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-6)
        assert all(torch.equal(a, b) for a, b in zip(counts, alone_counts, strict=True))


def _train_on_rank(changes=None):
    return _train(torch.distributed.get_rank(), torch.distributed.get_world_size(), **(changes or {}))


def _first_update_on_rank():
    """Vectors of this rank, and the codes that the first update put on vectors of all ranks."""
    torch.manual_seed(3)
    quantizer = make(init="data")
    z = torch.randn(2, 2, 5, 4, 4)[torch.distributed.get_rank()] + 10
    update_codebooks([quantizer], [quantizer(z).statistics])
    return z, quantizer.codebook


def test_initial_codes_are_single_vectors_of_the_ranks_and_of_each_of_them():
    (first, codes), (second, same) = run_ranks(_first_update_on_rank, 2)
    assert torch.equal(codes, same)
    of_rank = [distance_to_vectors(codes, z) < 1e-3 for z in (first, second)]
    assert (of_rank[0] ^ of_rank[1]).all()
    assert of_rank[0].sum() == of_rank[1].sum() == 10


def test_ranks_agree_on_initial_and_revived_codes():
    first, second = run_ranks(_train_on_rank, 2, {"init": "data", "revive_below": 0.5})
    assert all(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True))
