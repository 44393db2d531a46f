"""Exact products where the surroundings allow others: TF32, autocast."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

BACKENDS = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul


def precisions() -> list[str]:
    """How float32 is multiplied now, on GPUs and on processors."""
    return [backend.fp32_precision for backend in BACKENDS]


def watched(function: Callable, seen: list[str]) -> Callable:
    """The function; each call adds the precisions of its time to `seen`."""

    def watching(*args: Any, **options: Any) -> Any:
        seen.extend(precisions())
        return function(*args, **options)

    return watching


@contextmanager
def tf32() -> Iterator[None]:
    """TF32 is asked for meanwhile, and still is at the end."""
    before = precisions()
    try:
        for backend in BACKENDS:
            backend.fp32_precision = "tf32"
        yield
        assert precisions() == ["tf32", "tf32"]
    finally:
        for backend, precision in zip(BACKENDS, before, strict=True):
            backend.fp32_precision = precision


def assert_autocast_changes_nothing(quantizer: torch.nn.Module, z: torch.Tensor, precision: torch.dtype):
    """Codes, vectors and what they are learnt from are as in float32."""
    expected = quantizer(z)
    with torch.autocast("cpu", precision):
        out = quantizer(z)
        assert torch.equal(quantizer.encode(z), expected.codes)
    assert torch.equal(out.codes, expected.codes)
    assert torch.equal(out.vectors, expected.vectors)
    assert out.vectors.dtype == out.statistics.dtype == out.commitment.dtype == torch.float32
