"""Causality, receptive field and conditioning of every kind of prior, by gradients and by changed codes."""

import math

import pytest
import torch

from vqvae2.nn.causal import positions
from vqvae2.nn.pixelsnail import PixelSNAIL

WIDTHS = {"num_codes": 11, "hidden": 8, "residual": 12, "kernel": 5, "dropout": 0.1}
KINDS = {
    "top": {"layers": 3, "attention_layers": 1, "heads": 2, "output_layers": 2},
    "top without attention": {"layers": 4, "attention_layers": 0, "output_layers": 0},
    "mid": {"layers": 2, "attention_layers": 1, "heads": 2, "output_layers": 0, "condition_grids": [(4, 8)]},
    "top with a small window": {"layers": 3, "attention_layers": 0, "output_layers": 1, "kernel": 3},
    "bottom": {"layers": 3, "attention_layers": 0, "output_layers": 0, "condition_grids": [(4, 4), (4, 8)]},
}


def make(kind: str, *, num_classes=3, grid=(8, 16), **changes) -> PixelSNAIL:
    """A small prior in float64 whose logits are not all zero."""
    torch.manual_seed(0)
    options = {"condition_grids": [], **WIDTHS, **KINDS[kind], **changes}
    if options["condition_grids"]:
        options = {"conditioning_hidden": 8, "conditioning_blocks": 2, **options}
    codes = [7] * len(options["condition_grids"])
    prior = PixelSNAIL(grid=grid, num_classes=num_classes, condition_codes=codes, **options).double().eval()
    torch.nn.init.normal_(prior.to_logits.weight)
    return prior


def inputs(prior: PixelSNAIL, batch=1):
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(prior.num_codes, (batch, *prior.grid), generator=generator)
    above = [torch.randint(7, (batch, *grid), generator=generator) for grid in prior.condition_grids]
    return codes, above, torch.arange(batch) % max(prior.num_classes, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_code_changes_no_logits_up_to_its_own_position(kind):
    prior = make(kind)
    codes, above, labels = inputs(prior)
    before = prior(codes, above, labels).flatten(2)
    for position in range(0, codes.numel(), 3):
        changed = codes.clone()
        changed.view(-1)[position] = (changed.view(-1)[position] + 1) % prior.num_codes
        after = prior(changed, above, labels).flatten(2)
        assert torch.equal(after[..., : position + 1], before[..., : position + 1])


def dependence(prior: PixelSNAIL, row: int, column: int):
    """By gradients: which codes, conditions and labels the logits at one position depend on."""
    codes, above, labels = inputs(prior)
    leaves = []

    def differentiable(module, _, output):
        leaf = output.detach().requires_grad_()
        leaves.append(leaf)
        return leaf

    embeddings = [*prior.condition_embeddings, prior.label_embedding, prior.embedding]
    hooks = [embedding.register_forward_hook(differentiable) for embedding in embeddings]
    logits = prior(codes, above, labels)[0, :, row, column]
    for hook in hooks:
        hook.remove()
    gradients = torch.autograd.grad(logits @ torch.randn_like(logits), leaves)
    *conditions, label, own = (gradient.abs().sum(-1)[0] > 0 for gradient in gradients)
    return own, conditions, label


def receptive_field(prior: PixelSNAIL, row: int, column: int) -> torch.Tensor:
    """What the two streams should see, by walking their windows; attention sees everything earlier."""
    height, width = prior.grid
    earlier = torch.arange(height * width).view(height, width) < row * width + column
    if len(prior.attention):
        return earlier
    rows, reach = prior.v_in.kernel_size[0], prior.v_in.kernel_size[1] // 2
    seen = torch.zeros(height, width, dtype=torch.bool)
    # The first convolution reaches `rows` up or `taps` left, every layer one less, because it has the centre.
    # Sideways in the rows above, the first convolution and every layer reach alike, in v or in h.
    taps = prior.h_in.kernel_size[1]
    left = taps + len(prior.layers) * (taps - 1)
    up = rows + len(prior.layers) * (rows - 1)
    side = reach * (len(prior.layers) + 1)
    seen[row, max(0, column - left) : column] = True
    seen[max(0, row - up) : row, max(0, column - side) : column + side + 1] = True
    return seen & earlier


@pytest.mark.parametrize("kind", KINDS)
def test_logits_depend_on_every_earlier_code_in_the_receptive_field(kind):
    """No blind spot: the nearest rows above are seen to both sides, and everything left."""
    prior = make(kind)
    height, width = prior.grid
    for row, column in [(0, 0), (0, 5), (3, 0), (5, 7), (7, width - 1)]:
        own, _, _ = dependence(prior, row, column)
        earlier = torch.arange(height * width).view(height, width) < row * width + column
        assert not (own & ~earlier).any()
        missing = receptive_field(prior, row, column) & ~own
        assert not missing.any(), f"({row}, {column}) is blind to {missing.nonzero().tolist()}"


@pytest.mark.parametrize("kind", KINDS)
def test_logits_depend_on_the_label_and_on_every_level_above(kind):
    prior = make(kind)
    for row, column in [(0, 0), (5, 7)]:
        _, conditions, label = dependence(prior, row, column)
        assert label.item()
        for condition in conditions:
            scale = prior.grid[0] // condition.shape[0], prior.grid[1] // condition.shape[1]
            assert condition[row // scale[0], column // scale[1]]


@pytest.mark.parametrize("kind", KINDS)
def test_cutting_the_grid_below_a_row_keeps_the_rows_above(kind):
    prior = make(kind)
    codes, above, labels = inputs(prior, batch=2)
    whole = prior(codes, above, labels)
    for rows in (1, 3, 6):
        torch.testing.assert_close(prior(codes[:, :rows], above, labels), whole[:, :, :rows])


def test_an_untrained_prior_is_uniform():
    prior = PixelSNAIL(
        grid=(4, 4), num_classes=0, condition_grids=[], condition_codes=[], **WIDTHS, **KINDS["top"]
    )
    logits = prior.eval()(torch.randint(11, (2, 4, 4)))
    nll = torch.nn.functional.cross_entropy(logits, torch.randint(11, (2, 4, 4)))
    assert nll.item() == pytest.approx(math.log(11))


@pytest.mark.parametrize("dropout_on", ["logits", "weights"])
def test_attention_is_that_of_explicit_masked_softmax(dropout_on):
    """Every query on its own, over the keys before it, in a loop."""
    prior = make("top", attention_dropout=dropout_on)
    attention = next(iter(prior.attention.values()))
    height, width = prior.grid
    h, embedded = torch.randn(2, 8, height, width).double(), torch.randn(2, 8, height, width).double()
    out = attention(h, embedded).flatten(2)
    rows = torch.arange(height).double().repeat_interleave(width)
    columns = torch.arange(width).double().repeat(height)
    here = torch.stack([(rows - height / 2) / height, (columns - width / 2) / width])
    for b in range(2):
        flat = torch.cat([h[b].flatten(1), here]).T
        both = torch.cat([h[b].flatten(1), embedded[b].flatten(1), here]).T
        queries, (keys, values) = attention.query(flat), attention.key_value(both).chunk(2, -1)
        for i in (0, 1, 17, height * width - 1):
            attended = []
            for head in (slice(0, 4), slice(4, 8)):
                weights = (keys[:i, head] @ queries[i, head] / 2).softmax(0)
                attended.append(weights @ values[:i, head])
            expected = h[b].flatten(1)[:, i] + attention.out(torch.cat(attended))
            torch.testing.assert_close(out[b, :, i], expected)


def test_logit_dropout_zeroes_logits_before_the_softmax():
    """All logits dropped but none masked wrongly: every position averages what came before it."""
    attention = next(iter(make("top", dropout=0.999999).attention.values())).train()
    torch.manual_seed(0)
    h, embedded = torch.randn(1, 8, 8, 16).double(), torch.randn(1, 8, 8, 16).double()
    out = attention(h, embedded)
    here = [x.flatten(2).transpose(1, 2) for x in (h, embedded)]
    coordinates = positions(8, 16, like=h).flatten(2).transpose(1, 2)
    _, values = attention.project_key_value(*here, coordinates)
    mean = values.transpose(1, 2).flatten(2).cumsum(1) / torch.arange(1, 129)[:, None]
    expected = h.flatten(2).transpose(1, 2)[:, 1:] + attention.out(mean[:, :-1])
    torch.testing.assert_close(out.flatten(2).transpose(1, 2)[:, 1:], expected)


def gradients(prior: PixelSNAIL, batch=3):
    """Of the loss in training, dropout and all, with the statistics that the pass leaves behind."""
    codes, above, labels = inputs(prior, batch)
    torch.manual_seed(5)
    prior.zero_grad()
    torch.nn.functional.cross_entropy(prior(codes, above, labels), codes).backward()
    found = {name: weights.grad for name, weights in prior.named_parameters()}
    return found | {name: buffer.clone() for name, buffer in prior.named_buffers()}


@pytest.mark.parametrize("kind", ["top", "mid", "bottom"])
def test_checkpointed_layers_have_the_same_gradients_and_statistics(kind):
    plain, checkpointed = make(kind).train(), make(kind).train()
    checkpointed.checkpoint_layers = True
    runs = []
    first = checkpointed.layers[0].v_conv
    first.register_forward_hook(lambda *_: runs.append(0))
    expected, found = gradients(plain), gradients(checkpointed)
    assert len(runs) == 2  # or nothing was computed again
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    with torch.no_grad():
        checkpointed(*inputs(checkpointed))
    assert len(runs) == 3


def test_checkpointed_layers_keep_less():
    def kept(prior):
        found = {}

        def pack(tensor):
            found[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logits = prior(*inputs(prior, batch=8))
        return sum(tensor.untyped_storage().nbytes() for tensor in found.values()), logits

    prior = make("bottom").train()
    plain, _ = kept(prior)
    prior.checkpoint_layers = True
    assert kept(prior)[0] < plain / 2


@pytest.mark.parametrize("kind", ["top", "bottom"])
def test_half_precision_ends_in_float32(kind):
    prior = make(kind).float()
    codes, above, labels = inputs(prior, batch=2)
    exact = prior(codes, above, labels)
    with torch.autocast("cpu", torch.bfloat16):
        logits = prior(codes, above, labels)
    assert logits.dtype == torch.float32
    assert 0 < (logits - exact).abs().max() < 0.05 * exact.abs().max()
    assert (logits.bfloat16() != logits).any()  # computed in float32, not only returned so


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_compiled_prior_trains_alike_under_the_same_names(checkpointed):
    plain, compiled = make("mid", dropout=0.0).train(), make("mid", dropout=0.0).train()
    compiled.checkpoint_layers = checkpointed
    names = list(compiled.state_dict())
    compiled.compile(backend="aot_eager", fullgraph=True)  # without a C++ compiler
    expected, found = gradients(plain), gradients(compiled)
    assert list(compiled.state_dict()) == names
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel": 4}, "odd"),
        ({"residual": 9}, "even"),
        ({"attention_layers": 9}, "0 to 3"),
        ({"heads": 3}, "attention heads"),
        ({"condition_grids": [(4, 5)]}, "whole multiple"),
        ({"branch": 11, "condition_grids": [(8, 16)]}, "branch"),  # 7 codes above have 77 children
        ({"num_codes": 14, "branch": 2, "condition_grids": [(4, 8)]}, "branch"),  # of another grid
    ],
)
def test_impossible_shapes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make("top", **changes)


def puzzle(generator: torch.Generator, batch: int = 8, num_codes: int = 5):
    """Fresh codes [B, 8, 8], of which every second row and column is drawn and all else can be known.

    The very first is the label. In each block of four, the code on the right is the one on its left, the one
    below that is the one above it, and the last is the condition's.
    """
    codes, above, labels = (
        torch.randint(num_codes, (batch, *shape), generator=generator) for shape in ((8, 8), (4, 4), ())
    )
    codes[:, 0, 0] = labels
    codes[:, ::2, 1::2] = codes[:, 1::2, ::2] = codes[:, ::2, ::2]
    codes[:, 1::2, 1::2] = above
    return codes, [above], labels


def test_a_tiny_prior_learns_what_only_each_of_its_paths_can_tell_it():
    """Every batch is new, so nothing can be learned by heart; what was drawn stays unknown: no leak."""
    widths = {"hidden": 16, "residual": 32, "kernel": 3, "dropout": 0.0, "conditioning_hidden": 16}
    prior = make("mid", num_classes=5, grid=(8, 8), condition_grids=[(4, 4)], num_codes=5, **widths)
    prior.float().train()
    torch.nn.init.zeros_(prior.to_logits.weight)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(prior.parameters(), 1e-2)
    last = []
    for step in range(150):
        codes, above, labels = puzzle(generator)
        nll = torch.nn.functional.cross_entropy(prior(codes, above, labels), codes, reduction="none")
        optimizer.zero_grad()
        nll.mean().backward()
        optimizer.step()
        last += [nll.detach().mean(0)] if step >= 130 else []
    nll = torch.stack(last).mean(0)
    known = {
        "label": nll[0, 0],
        "left": nll[::2, 1::2].mean(),
        "above": nll[1::2, ::2].mean(),
        "condition": nll[1::2, 1::2].mean(),
    }
    assert all(found < 0.5 for found in known.values()), known
    assert nll[2::2, 2::2].mean() > 0.99 * math.log(5)
