"""CUDA graphs: what a function launches, recorded once and replayed without Python in between."""

from collections.abc import Callable

import torch

_WARM_UPS = (
    3  # so that libraries choose their algorithms, and compiled functions compile, before the recording
)


def captured(function: Callable[[], None], restart: Callable[[], None]) -> Callable[[], None]:
    """A function that replays on the GPU what `function` does there.

    Args:
        function: works in place on tensors that stay where they are, and never waits for the GPU.
        restart: puts those tensors into a state that `function` can start from; called before each warm-up.
    """
    warm_up = torch.cuda.Stream()
    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):
        for _ in range(_WARM_UPS):
            restart()
            function()
    torch.cuda.current_stream().wait_stream(warm_up)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay
