"""The priors' layers as the paper says them, one call of torch after the other: slow and obvious.

Source: VQ-VAE-2 (Razavi et al., 2019), supplement A.2: pseudo code of the conditioning stack, "interspersed
with causal multi-headed attention", "1 x 1 convolutions on top of the PixelCNN stack". The figure of the
gated layer is lost; that layer is the two-stream one of Gated PixelCNN (van den Oord et al., 2016), here with
windows written out as masks. Attention: keys read the code itself, so only earlier positions are seen.

Weights are taken from a state dict by the role that their names say.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

State = Mapping[str, Tensor]


def conv(state: State, name: str, x: Tensor, **options) -> Tensor:
    return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), **options)


def normalised(state: State, name: str, h: Tensor) -> Tensor:
    """Batch normalisation with the statistics that training left behind."""
    statistics = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return F.batch_norm(h, *statistics, state[f"{name}.weight"], state[f"{name}.bias"], training=False)


def resnet_block(state: State, name: str, h: Tensor) -> Tensor:
    """`resnet_block` of the pseudo code, statement by statement."""
    h = normalised(state, f"{name}.0", h)
    h = F.relu(h)
    h = conv(state, f"{name}.2", h)
    h = F.relu(h)
    h = conv(state, f"{name}.4", h, padding=1)
    h = F.relu(h)
    return conv(state, f"{name}.6", h)


def resnet_blocks(state: State, name: str, h: Tensor, count: int) -> Tensor:
    for i in range(count):
        h = h + resnet_block(state, f"{name}.{i}", h)
    assert f"{name}.{count}.2.weight" not in state, "there are more blocks than the pseudo code has"
    return h


def transposed(state: State, name: str, h: Tensor) -> Tensor:
    return F.conv_transpose2d(h, state[f"{name}.weight"], state[f"{name}.bias"], stride=2)


def conditioning_stack(state: State, name: str, h: Tensor, blocks: int) -> Tensor:
    """`conditioning_stack` of the pseudo code, statement by statement."""
    h = conv(state, f"{name}.enter", h)
    h = resnet_blocks(state, f"{name}.down1", h, blocks // 2)
    h2 = conv(state, f"{name}.shrink1", h, stride=2)
    h2 = resnet_blocks(state, f"{name}.down2", h2, blocks // 2)
    h3 = conv(state, f"{name}.shrink2", h2, stride=2)
    h3 = resnet_blocks(state, f"{name}.middle", h3, blocks)
    h2 = h2 + transposed(state, f"{name}.grow2", h3)
    h2 = resnet_blocks(state, f"{name}.up2", h2, blocks // 2)
    h = h + transposed(state, f"{name}.grow1", h2)
    return resnet_blocks(state, f"{name}.up1", h, blocks // 2)


def window(state: State, name: str, x: Tensor, *, above: int, left: int, right: int) -> Tensor:
    """A convolution that sees so many rows above and columns to the sides of its position, and that."""
    return conv(state, name, F.pad(x, (left, right, above, 0)))


def gate(x: Tensor) -> Tensor:
    first, second = x.chunk(2, 1)
    return first.tanh() * second.sigmoid()


def gated_layer(state: State, name: str, v: Tensor, h: Tensor, reach: int, condition, label):
    """v += W gate(Conv(elu v) + ...), h += W' gate(Conv(elu h) + U elu(v) + ...), v being the new one."""
    given_v = given_h = 0.0
    if condition is not None:
        shared = conv(state, f"{name}.condition", condition)
        times = v.shape[-1] // condition.shape[-1]
        given_v = given_h = shared.repeat_interleave(times, 2).repeat_interleave(times, 3)
    if label is not None:
        given_v = given_v + F.linear(label, state[f"{name}.v_label.weight"])[:, :, None, None]
        given_h = given_h + F.linear(label, state[f"{name}.h_label.weight"])[:, :, None, None]
    seen = window(state, f"{name}.v_conv", F.elu(v), above=reach, left=reach, right=reach)
    v = v + conv(state, f"{name}.v_out", gate(seen + given_v))
    seen = window(state, f"{name}.h_conv", F.elu(h), above=0, left=reach, right=0)
    seen = seen + conv(state, f"{name}.h_from_v", F.elu(v))
    h = h + conv(state, f"{name}.h_out", gate(seen + given_h))
    return v, h


def attention(state: State, name: str, h: Tensor, embedded: Tensor, heads: int) -> Tensor:
    """Queries of [h; place], keys and values of [h; code; place]; each position looks at those before it."""
    batch, channels, height, width = h.shape
    flat, codes = (x.flatten(2).transpose(1, 2) for x in (h, embedded))
    rows = (torch.arange(height, dtype=h.dtype) - height / 2) / height
    columns = (torch.arange(width, dtype=h.dtype) - width / 2) / width
    place = torch.stack([rows.repeat_interleave(width), columns.repeat(height)], 1).expand(batch, -1, -1)
    query, key_value = (
        F.linear(torch.cat(parts, 2), state[f"{name}.{role}.weight"], state[f"{name}.{role}.bias"])
        for role, parts in (("query", [flat, place]), ("key_value", [flat, codes, place]))
    )
    key, value = key_value.chunk(2, 2)
    found = torch.zeros_like(flat)
    for i in range(1, height * width):  # the first has nothing before it
        for part in torch.arange(channels).chunk(heads):
            logits = (key[:, :i, part] * query[:, i : i + 1, part]).sum(2) / len(part) ** 0.5
            found[:, i, part] = (logits.softmax(1)[:, :, None] * value[:, :i, part]).sum(1)
    out = F.linear(found, state[f"{name}.out.weight"], state[f"{name}.out.bias"])
    return h + out.transpose(1, 2).view_as(h)


def output_layer(state: State, name: str, h: Tensor) -> Tensor:
    return h + conv(state, f"{name}.reduce", gate(conv(state, f"{name}.expand", F.elu(h))))


def condition(state: State, above: Sequence[Tensor], blocks: int) -> Tensor:
    """The codes of the levels above, embedded, on the finest of their grids, through the stack."""
    embedded = []
    for i, codes in enumerate(above):
        times = above[-1].shape[-1] // codes.shape[-1]
        codes = codes.repeat_interleave(times, 1).repeat_interleave(times, 2)
        embedded.append(state[f"condition_embeddings.{i}.weight"][codes].permute(0, 3, 1, 2))
    return conditioning_stack(state, "conditioning", torch.cat(embedded, 1), blocks)


def logits(
    state: State,
    codes: Tensor,
    above: Sequence[Tensor],
    labels: Tensor | None,
    *,
    layers: int,
    attention_layers: int,
    heads: int,
    kernel: int,
    output_layers: int,
    blocks: int,
) -> Tensor:
    """Logits [B, K, H, W] of codes [B, H, W], by supplement A.2."""
    reach = kernel // 2
    given = condition(state, above, blocks) if above else None
    label = None if labels is None else state["label_embedding.weight"][labels]
    embedded = state["embedding.weight"][codes].permute(0, 3, 1, 2)
    # The first convolutions see nothing of the position itself: v the rows above, h what is left of it.
    v = window(state, "v_in", embedded, above=reach + 1, left=reach, right=reach)[:, :, :-1]
    h = window(state, "h_in", embedded, above=0, left=reach + 1, right=0)[:, :, :, :-1]
    period = layers // attention_layers if attention_layers else layers + 1  # "every five layers"
    for number in range(1, layers + 1):
        v, h = gated_layer(state, f"layers.{number - 1}", v, h, reach, given, label)
        if number % period == 0 and number // period <= attention_layers:
            h = attention(state, f"attention.{number - 1}", h, embedded, heads)
    for i in range(output_layers):
        h = output_layer(state, f"output.{i}", h)
    return conv(state, "to_logits", F.elu(h))
