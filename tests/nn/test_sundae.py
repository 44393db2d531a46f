"""SUNDAE's loss: what is corrupted, what is unrolled, what is counted; where class and conditions enter."""

import math

import pytest
import torch
from torch.nn import functional as F

from tests.chi_square import ALPHA, p_value
from vqvae2.nn.sundae import SUNDAE

SIZES = {"width": 8, "heads": 2, "head_width": 8, "depth": [1, 1, 1], "dropout": 0.0, "unroll": 2}
TOP = {"grid": [4, 6], "num_codes": 5, "condition_grids": [], "condition_codes": [], "num_classes": 3}
BOTTOM = {"grid": [4, 8], "condition_grids": [[1, 4], [2, 4]], "condition_codes": [7, 3]}


def make(**changes) -> SUNDAE:
    torch.manual_seed(0)
    return SUNDAE(**{**SIZES, **TOP, **changes}).double().eval()


def inputs(prior: SUNDAE, batch=2):
    draw = torch.Generator().manual_seed(1)
    codes = torch.randint(prior.num_codes, (batch, *prior.grid), generator=draw)
    grids = [(1, 4), (2, 4)] if len(prior.condition_embeddings) else []
    above = [torch.randint(3, (batch, *grid), generator=draw) for grid in grids]
    return codes, above, torch.arange(batch) % max(prior.num_classes, 1)


def scripted(prior: SUNDAE, answer) -> list[torch.Tensor]:
    """The network answers so from now on; returns the noisy codes that it is asked about."""
    asked = []

    def logits(codes, context):
        asked.append(codes)
        return answer(codes)

    prior.logits = logits
    return asked


def test_the_number_of_replaced_codes_is_uniform():
    """t ~ U(0, 1) for each image: of N codes any number is replaced equally often."""
    prior = make(num_codes=10**6, grid=[3, 4])
    codes = torch.zeros(20000, 3, 4, dtype=torch.int64)
    replaced = prior._corrupt(codes, None) != codes
    assert p_value(torch.bincount(replaced.sum((1, 2)), minlength=13)) > ALPHA
    places = replaced.sum(0).flatten()  # each in half of the images
    deviations = (places - 10000) / 5000**0.5
    assert deviations.abs().max() < 4


def test_replaced_codes_are_uniform_and_may_be_the_true_ones():
    """Of two codes half of what is replaced stays as it was: a quarter changes in all, not half."""
    codes = torch.full((20000, 4, 4), 1)
    share = (make(num_codes=2)._corrupt(codes, None) != codes).double().mean((1, 2))
    assert abs(share.mean() - 1 / 4) < 4 * share.std() / 20000**0.5
    found = make(num_codes=5)._corrupt(codes, None).flatten()
    counts = torch.bincount(found, minlength=5)
    assert p_value(counts[[0, 2, 3, 4]]) > ALPHA
    assert abs(counts[1] / counts.sum() - (1 / 2 + 1 / 10)) < 0.01


def test_noise_is_the_same_whatever_the_default_precision():
    prior, codes = make(num_codes=1000, class_dropout=0.3).train(), torch.zeros(9, 20, 20, dtype=torch.int64)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.set_default_dtype(dtype)  # as Lightning's bf16-true has it
        try:
            torch.manual_seed(0)
            found.append((prior._corrupt(codes, None), prior._hide(torch.zeros(2000, dtype=torch.int64))))
        finally:
            torch.set_default_dtype(torch.float32)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*found, strict=True))


@pytest.mark.parametrize("unroll", [1, 2, 4])
def test_each_step_denoises_what_the_step_before_has_drawn(unroll):
    """A network that always says one more: the second step is asked about one more, and so on."""
    prior = make(unroll=unroll).train()
    asked = scripted(prior, lambda codes: 50.0 * F.one_hot((codes + 1) % 5, 5).double())
    codes, above, labels = inputs(prior)
    loss = prior.loss(codes, above, labels)
    assert len(asked) == unroll
    losses = []
    for step, noisy in enumerate(asked):
        assert torch.equal(noisy, (asked[0] + step) % 5)
        losses += [50.0 * ((noisy + 1) % 5 != codes).double().mean()]
    assert loss.item() == pytest.approx(sum(losses).item() / unroll, rel=1e-6)


def test_steps_draw_at_temperature_one():
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0, 0.5], dtype=torch.float64)
    prior = make().train()
    asked = scripted(prior, lambda codes: logits.expand(*codes.shape, 5))
    codes = torch.zeros(2000, 4, 4, dtype=torch.int64)
    prior(codes, [], torch.zeros(2000, dtype=torch.int64))
    assert p_value(torch.bincount(asked[1].flatten(), minlength=5), logits.softmax(0)) > ALPHA


@pytest.mark.parametrize("levels", [TOP, {**TOP, **BOTTOM}], ids=["top", "bottom"])
def test_the_loss_is_the_mean_over_steps_and_all_positions_with_its_gradient(levels):
    """By hand, from the noisy codes that the network was asked about; none of them carries a gradient."""
    prior, asked = make(**levels, unroll=3).train(), []
    hook = prior.embedding.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0]))
    codes, above, labels = inputs(prior)
    loss = prior(codes, above, labels)
    hook.remove()
    assert len(asked) == 3
    assert not torch.equal(asked[0], asked[1])
    nll = torch.zeros((), dtype=torch.float64)
    for noisy in asked:
        logits = prior.logits(noisy, prior.context(above, labels, prior.grid)).log_softmax(-1)
        for place in torch.cartesian_prod(*(torch.arange(size) for size in codes.shape)):
            nll = nll - logits[(*place, codes[(*place,)])]
    expected = nll / (3 * codes.numel())
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
    weights = list(prior.parameters())
    for mine, theirs in zip(*(torch.autograd.grad(x, weights) for x in (loss, expected)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_evaluation_draws_the_same_noise_each_time_and_training_does_not():
    prior = make()
    batch = inputs(prior)
    first = prior.loss(*batch)
    torch.rand(5)
    assert prior.loss(*batch) == first
    state = torch.get_rng_state()
    prior.loss(*batch)
    assert torch.equal(torch.get_rng_state(), state)
    prior.train()
    assert len({prior.loss(*batch).item() for _ in range(3)}) == 3


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6])
def test_class_dropout_hides_its_share_of_labels_in_training_alone(share):
    prior, seen = make(class_dropout=share), []
    scripted(prior, lambda codes: torch.zeros(*codes.shape, 5))
    assert prior.label_embedding.num_embeddings == (4 if share else 3)
    prior.label_embedding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    labels = torch.arange(6000) % 3
    codes = torch.zeros(6000, 1, 1, dtype=torch.int64)
    prior.train()(codes, [], labels)
    prior.eval()(codes, [], labels)
    trained, evaluated = seen
    assert torch.equal(evaluated, labels)
    hidden = trained != labels
    assert (trained[hidden] == 3).all()
    for label in range(3):
        count = hidden[labels == label].sum()
        assert p_value(torch.stack([count, 2000 - count]), torch.tensor([share, 1 - share])) > ALPHA


def test_class_and_conditions_are_added_where_they_lie():
    prior, seen = make(**{**TOP, **BOTTOM}), []
    prior.trunk.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    codes, (upper, lower), labels = inputs(prior)
    prior.logits(codes, prior.context([upper, lower], labels, (4, 8)))
    first, second = (embed.weight for embed in prior.condition_embeddings)
    for image, row, column in torch.cartesian_prod(torch.arange(2), torch.arange(4), torch.arange(8)):
        expected = prior.embedding.weight[codes[image, row, column]]
        expected = expected + prior.label_embedding.weight[labels[image]]
        expected = expected + first[upper[image, row // 4, column // 2]]
        expected = expected + second[lower[image, row // 2, column // 2]]
        torch.testing.assert_close(seen[0][image, row, column], expected)


@pytest.mark.parametrize("levels", [TOP, {**TOP, **BOTTOM}], ids=["top", "bottom"])
def test_every_logit_depends_on_every_code_condition_and_the_class(levels):
    prior, leaves = make(**levels), []
    codes, above, labels = inputs(prior, batch=1)

    def differentiable(module, _, output):
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    for embedding in (prior.embedding, prior.label_embedding, *prior.condition_embeddings):
        embedding.register_forward_hook(differentiable)
    logits = prior.logits(codes, prior.context(above, labels, prior.grid))
    for row, column in ((0, 0), (1, 3), (3, 5)):
        gradients = torch.autograd.grad(logits[0, row, column, 2], leaves, retain_graph=True)
        assert len(gradients) == 2 + len(above)
        assert all((gradient.abs().amax(-1) > 1e-9).all() for gradient in gradients)


def test_it_takes_other_grids_than_the_one_it_was_made_for():
    prior = make(**{**TOP, **BOTTOM})
    for grid, grids in (((8, 8), [(2, 4), (4, 8)]), ((3, 5), [(1, 5), (3, 1)]), ((1, 1), [(1, 1), (1, 1)])):
        codes = torch.randint(5, (2, *grid))
        above = [torch.randint(3, (2, *above)) for above in grids]
        assert prior.loss(codes, above, torch.zeros(2, dtype=torch.int64)).isfinite()
        context = prior.context(above, torch.zeros(2, dtype=torch.int64), grid)
        assert prior.logits(codes, context).shape == (2, *grid, 5)


def gradients(prior: SUNDAE) -> list[torch.Tensor]:
    torch.manual_seed(5)
    prior.zero_grad()
    prior(*inputs(prior)).backward()
    return [weights.grad for weights in prior.parameters()]


def test_checkpointed_layers_have_the_same_gradients():
    plain, checkpointed = (make(dropout=0.3).train() for _ in range(2))
    checkpointed.checkpoint_layers, runs = True, []
    checkpointed.blocks[0].register_forward_pre_hook(lambda *_: runs.append(0))
    expected, found = gradients(plain), gradients(checkpointed)
    assert len(runs) == 2 * 2  # twice in each step
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


def test_a_compiled_prior_trains_alike_under_the_same_names():
    plain, compiled = (make(class_dropout=0.5, depth=[0, 1, 0]).train() for _ in range(2))
    names = list(compiled.state_dict())
    compiled.compile(backend="eager", fullgraph=True)  # without a C++ compiler
    expected, found = gradients(plain), gradients(compiled)
    assert list(compiled.state_dict()) == names
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_half_precision_ends_in_float32():
    prior = make().float()
    codes, above, labels = inputs(prior)
    context = prior.context(above, labels, prior.grid)
    exact = prior.logits(codes, context)
    with torch.autocast("cpu", torch.bfloat16):
        logits = prior.logits(codes, context)
        assert prior(codes, above, labels).dtype == torch.float32
    assert logits.dtype == torch.float32
    assert 0 < (logits - exact).abs().max() < 0.05 * exact.abs().max()
    assert (logits.bfloat16() != logits).any()


@pytest.mark.parametrize(
    "changes",
    [
        {"grid": [1, 1]},
        {"grid": [1, 7], "depth": [0, 0, 0]},
        {"num_codes": 1},
        {"num_classes": 0},
        {"num_classes": 1, "class_dropout": math.nextafter(1, 0)},
        {"unroll": 1, "width": 1, "heads": 1, "head_width": 4},
        {"dropout": math.nextafter(1, 0)},
    ],
)
def test_priors_at_the_ends_of_their_options_learn(changes):
    prior = make(**changes).float().train()
    prior(*inputs(prior)).backward()
    assert all(p.grad.isfinite().all() for p in prior.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_codes": 0}, "num_codes is 0, wanted at least 1"),
        ({"num_classes": -1}, "num_classes is -1, wanted 0"),
        ({"unroll": 0}, "unroll is 0, wanted at least 1"),
        ({"class_dropout": 1.0}, "class_dropout is 1.0, wanted 0 up to"),
        ({"class_dropout": 0.1, "num_classes": 0}, "class_dropout needs classes"),
        ({"condition_grids": [[3, 2]], "condition_codes": [2]}, "4x6 cannot be conditioned on one of 3x2"),
        ({"head_width": 2}, "head_width is 2"),
    ],
)
def test_impossible_priors_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)
