"""Activation checkpointing: less memory for more work, with the same gradients."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_again(module: nn.Module, *inputs: Tensor | None) -> Any:
    """module(*inputs), which keeps its inputs only and runs once more in the backward pass.

    Dropout draws the same masks again, and batch statistics count once.
    """
    if not torch.is_grad_enabled():
        return module(*inputs)
    writes = next(module.buffers(), None) is not None
    if not writes or torch.compiler.is_compiling():  # a compiled pass writes its buffers once anyway
        return checkpoint(module, *inputs, use_reentrant=False)
    return checkpoint(module, *inputs, use_reentrant=False, context_fn=partial(_contexts, module))


def _contexts(module: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """For the first pass and for the second."""
    return nullcontext(), _on_copies_of_buffers(module)


@contextmanager
def _on_copies_of_buffers(module: nn.Module) -> Iterator[None]:
    buffers = [(part, *named) for part in module.modules() for named in part.named_buffers(recurse=False)]
    for part, name, buffer in buffers:
        setattr(part, name, buffer.clone())
    try:
        yield
    finally:
        for part, name, buffer in buffers:
            setattr(part, name, buffer)
