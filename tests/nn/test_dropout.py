"""Dropout's masks, and attention that drops logits against the whole N x N map by autograd."""

import pytest
import torch

from vqvae2.nn import dropout
from vqvae2.nn.dropout import Dropout, attend_dropping_logits, keep_mask

N, D, P = 23, 4, 0.3


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_masks_keep_independently_and_as_often_as_asked(p):
    torch.manual_seed(0)
    kept = keep_mask(torch.empty(2, 500, 1001), p).double()
    sigma = (p * (1 - p) / kept.numel()) ** 0.5
    assert kept.mean().item() == pytest.approx(1 - p, abs=4 * sigma + 2**-16)
    flat = kept.flatten() - kept.mean()
    for lag in (1, 2, 3, 4, 8, 1001):  # four neighbours come from one random number
        covariance = (flat[lag:] * flat[:-lag]).mean().item()
        assert abs(covariance) < 4 * p * (1 - p) / kept.numel() ** 0.5


def test_masks_at_the_ends():
    like = torch.empty(1_000_000)
    assert not keep_mask(like, 1 - 1e-9).any()
    assert keep_mask(like, 1e-9).double().mean() > 1 - 1e-4
    half = keep_mask(like, 0.5)
    assert half.any()
    assert not half.all()


def test_masks_lie_in_memory_as_what_they_mask():
    x = torch.empty(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert keep_mask(x, P).stride() == x.stride()


def test_dropout_scales_what_it_keeps_and_its_gradient_alike():
    torch.manual_seed(0)
    x = torch.randn(4, 8, 6, 6).double().requires_grad_()
    layer = Dropout(P)
    y = layer(x)
    kept = y != 0
    assert 0.6 < kept.double().mean() < 0.8
    torch.testing.assert_close(y, kept * x / (1 - P))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, kept.double() / (1 - P))
    assert torch.equal(layer.eval()(x), x)


def whole_map(query, key, value, keep, p=P):
    """The definition, all pairs at once, differentiated by autograd."""
    logits = query @ key.mT / D**0.5 * keep / (1 - p)
    later = torch.ones(N, N, dtype=torch.bool).triu(1)
    return logits.masked_fill(later, float("-inf")).softmax(-1) @ value


@pytest.fixture
def drawn(monkeypatch):
    """The masks of a call, as one map; what no query may see is kept."""
    rows = torch.ones(3, N, N, dtype=torch.bool)
    filled = []

    def draw(like, p):
        mask = keep_mask(like, p)
        first = sum(filled)
        rows[:, first : first + mask.shape[1], : mask.shape[2]] = mask
        filled.append(mask.shape[1])
        return mask

    monkeypatch.setattr(dropout, "keep_mask", draw)
    return rows


@pytest.mark.parametrize("at_once", [1, 5, 23, 64])
def test_attention_and_its_gradients_are_those_of_the_whole_map(at_once, drawn, monkeypatch):
    monkeypatch.setitem(dropout.QUERIES_AT_ONCE, "cpu", at_once)
    torch.manual_seed(0)
    given = [torch.randn(3, N, D).double().requires_grad_() for _ in range(3)]
    out = attend_dropping_logits(*given, P)
    assert 0.2 < 1 - drawn.double()[:, torch.ones(N, N).tril().bool()].mean() < 0.4
    expected = whole_map(*given, drawn)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    incoming = torch.randn_like(out)
    found = torch.autograd.grad(out, given, incoming)
    for mine, theirs in zip(found, torch.autograd.grad(expected, given, incoming), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


def test_attention_is_no_wider_than_a_chunk(monkeypatch):
    monkeypatch.setitem(dropout.QUERIES_AT_ONCE, "cpu", 5)
    widest = []
    softmax = dropout._softmax
    monkeypatch.setattr(dropout, "_softmax", lambda logits: widest.append(logits.shape[1]) or softmax(logits))
    given = [torch.randn(3, N, D).requires_grad_() for _ in range(3)]
    attend_dropping_logits(*given, P).sum().backward()
    assert max(widest) == 5
    assert len(widest) == 2 * 5  # forward, and again backward


@pytest.mark.parametrize("on_gpu", [False, True])
def test_half_precision_attention_is_exact_but_for_its_products(on_gpu, drawn):
    """The path of a GPU multiplies in bf16, that of a CPU in float32; both take the softmax in float32."""
    torch.manual_seed(0)
    given = [torch.randn(3, N, D).bfloat16().requires_grad_() for _ in range(3)]
    if on_gpu:
        query, key, value = given
        out = dropout._AttendDroppingLogits.apply(query * (D**-0.5 / (1 - P)), key, value, P)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            out = attend_dropping_logits(*given, P)
    assert out.dtype == torch.bfloat16
    exact = [x.detach().double().requires_grad_() for x in given]
    expected = whole_map(*exact, drawn)
    incoming = torch.randn_like(out)
    found = torch.autograd.grad(out, given, incoming)
    theirs = torch.autograd.grad(expected, exact, incoming.double())
    relative, absolute = (0.05, 0.05) if on_gpu else (2**-8, 1e-5)  # on a CPU only the results are rounded
    for mine, reference in zip((out, *found), (expected, *theirs), strict=True):
        torch.testing.assert_close(mine.double(), reference, rtol=relative, atol=absolute)


def test_weights_of_half_precision_logits_are_not_rounded():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    later = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]).bool()
    expected = logits.float().masked_fill(later, float("-inf")).softmax(-1)
    torch.testing.assert_close(dropout._softmax(logits.clone()), expected)
