"""The gated layer against loops written from its equations, one position at a time."""

import pytest
import torch
from torch.nn import functional as F

from vqvae2.nn.causal import GatedLayer, OutputLayer

C, R, Z = 4, 6, 3


def slow_gate(x):
    return torch.tanh(x[: R // 2]) * torch.sigmoid(x[R // 2 :])


def window(stream, row, column, rows, columns, kernel):
    """What a causal window sees of elu(stream) [C, H, W], zero outside: [C, rows, columns]."""
    seen = torch.zeros(C, rows, columns, dtype=stream.dtype)
    for i in range(rows):
        for j in range(columns):
            at_row = row - (rows - 1) + i
            at_column = column - (kernel // 2 if rows > 1 else columns - 1) + j
            if 0 <= at_row < stream.shape[1] and 0 <= at_column < stream.shape[2]:
                seen[:, i, j] = F.elu(stream[:, at_row, at_column])
    return seen


@torch.no_grad()
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize(
    ("conditioned", "labelled"), [(True, True), (True, False), (False, True), (False, False)]
)
def test_gated_layer(kernel, conditioned, labelled):
    torch.manual_seed(0)
    layer = GatedLayer(C, R, kernel, 0.0, Z if conditioned else 0, labelled).double()
    v, h = torch.randn(2, C, 4, 6).double(), torch.randn(2, C, 4, 6).double()
    condition = torch.randn(2, Z, 2, 3).double() if conditioned else None
    label = torch.randn(2, C).double() if labelled else None
    got_v, got_h = layer(v, h, condition, label)
    reach = (kernel + 1) // 2
    for b in range(2):
        for row in range(4):
            for column in range(6):
                context = (
                    layer.condition.weight[:, :, 0, 0] @ condition[b, :, row // 2, column // 2]
                    if conditioned
                    else 0
                )
                v_seen = window(v[b], row, column, reach, kernel, kernel)
                h_seen = window(h[b], row, column, 1, reach, kernel)
                v_pre = (layer.v_conv.weight * v_seen).sum((1, 2, 3)) + layer.v_conv.bias + context
                h_pre = (layer.h_conv.weight * h_seen).sum((1, 2, 3)) + layer.h_conv.bias + context
                if labelled:
                    v_pre = v_pre + layer.v_label.weight @ label[b]
                    h_pre = h_pre + layer.h_label.weight @ label[b]
                v_out = (
                    v[b, :, row, column]
                    + layer.v_out.weight[:, :, 0, 0] @ slow_gate(v_pre)
                    + layer.v_out.bias
                )
                h_pre = h_pre + layer.h_from_v.weight[:, :, 0, 0] @ F.elu(v_out)
                h_out = (
                    h[b, :, row, column]
                    + layer.h_out.weight[:, :, 0, 0] @ slow_gate(h_pre)
                    + layer.h_out.bias
                )
                torch.testing.assert_close(got_v[b, :, row, column], v_out)
                torch.testing.assert_close(got_h[b, :, row, column], h_out)


@pytest.mark.parametrize(
    ("conditioned", "labelled"), [(True, True), (True, False), (False, True), (False, False)]
)
def test_gradients_of_a_gated_layer_are_finite_differences(conditioned, labelled):
    torch.manual_seed(0)
    layer = GatedLayer(C, R, 3, 0.0, Z if conditioned else 0, labelled).double()
    shapes = [(1, C, 2, 4), (1, C, 2, 4), (1, Z, 1, 2) if conditioned else None, (1, C) if labelled else None]
    given = [torch.randn(shape).double().requires_grad_() if shape else None for shape in shapes]
    streams = [x.contiguous(memory_format=torch.channels_last) for x in given[:2]]
    assert torch.autograd.gradcheck(layer, (*streams, *given[2:]))
    names, weights = zip(*layer.named_parameters(), strict=True)

    def as_function_of_weights(*weights):
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), tuple(given))

    assert torch.autograd.gradcheck(as_function_of_weights, weights, fast_mode=True)


@torch.no_grad()
def test_output_layer():
    layer = OutputLayer(C, R, 0.0).double()
    h = torch.randn(1, C, 1, 1).double()
    pre = layer.expand.weight[:, :, 0, 0] @ F.elu(h[0, :, 0, 0]) + layer.expand.bias
    expected = h[0, :, 0, 0] + layer.reduce.weight[:, :, 0, 0] @ slow_gate(pre) + layer.reduce.bias
    torch.testing.assert_close(layer(h)[0, :, 0, 0], expected)


@pytest.mark.parametrize("layer", [GatedLayer(C, R, 3, 0.999999, 0, False), OutputLayer(C, R, 0.999999)])
def test_dropout_is_on_the_branches_and_leaves_the_residual_alone(layer):
    """With nearly everything dropped, what is left of a branch is its last bias."""
    h = torch.randn(1, C, 3, 3)
    if isinstance(layer, OutputLayer):
        torch.testing.assert_close(layer(h), h + layer.reduce.bias[:, None, None])
        return
    v, out = layer(h, 2 * h, None, None)
    torch.testing.assert_close(v, h + layer.v_out.bias[:, None, None])
    torch.testing.assert_close(out, 2 * h + layer.h_out.bias[:, None, None])
