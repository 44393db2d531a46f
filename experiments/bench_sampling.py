"""Sampling: incremental against naive, and a whole image of a data set's chain of priors.

    python experiments/bench_sampling.py                           # a prior of 26.6 M weights, 32x32 codes
    python experiments/bench_sampling.py --chain imagenet --precision bf16 --batch 1 64          # for a GPU
    python experiments/bench_sampling.py --chain demo --batch 1 64

Weights are random: they take the time of trained ones. A naive sampler makes a full pass for every code; the
time of one is measured and multiplied by the number of codes.
"""

import vqvae2  # noqa: F401 # isort: skip  # before torch: how its threads wait

import argparse
import math

import torch
from torch import nn

from configured import PRIOR_26M, network
from timing import add_beside, compare, describe_machine, print_table, seconds
from vqvae2.nn.pixelsnail import PixelSNAIL
from vqvae2.sampling.chain import ChainSampler
from vqvae2.sampling.draw import Draw

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chain", help="data set whose priors and decoder to run, such as imagenet")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--precision", choices=PRECISIONS, nargs="+", default=list(PRECISIONS))
    parser.add_argument("--repeats", type=int, default=3)
    add_beside(parser)
    parser.add_argument("--compile", action="store_true", help="torch.compile the passes")
    options = parser.parse_args()
    print(describe_machine())
    rows = []
    for precision in options.precision:
        priors, decoder = networks(options.chain, PRECISIONS[precision])
        for batch_size in options.batch:
            rows.append(
                {"precision": precision, "batch": batch_size} | measure(priors, decoder, batch_size, options)
            )
    print_table(rows)


def networks(dataset: str | None, dtype: torch.dtype) -> tuple[list[PixelSNAIL], nn.Module | None]:
    """The priors, top first, and the autoencoder of a data set; without one, the prior of 26.7 M weights."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    decoder = None if dataset is None else network(f"{dataset}_vqvae", device).to(dtype).eval()
    if decoder is None:
        priors = [PixelSNAIL(**PRIOR_26M)]
    else:
        priors = [network(f"{dataset}_{level}", device) for level in decoder.level_names]
    for prior in priors:
        nn.init.normal_(prior.to_logits.weight, std=prior.embedding.embedding_dim**-0.5)
    return [prior.to(device, dtype).eval().requires_grad_(False) for prior in priors], decoder


def measure(
    priors: list[PixelSNAIL], decoder: nn.Module | None, batch_size: int, options: argparse.Namespace
) -> dict[str, float]:
    """Seconds an image, naive and incremental; the first batch, which makes buffers and graphs, apart."""
    device = priors[0].embedding.weight.device
    labels = torch.zeros(batch_size, dtype=torch.int64, device=device)
    sampler = ChainSampler(priors, [Draw()] * len(priors), compiled=options.compile)

    @torch.inference_mode()
    def sample() -> None:
        codes = [level.codes for level in sampler(labels, seed=0, images=range(batch_size))]
        if decoder is not None:
            decoder.decode(codes)

    first_s = seconds(sample)
    how = {"repeats": options.repeats, "warmup": 0, "beside": options.beside}
    incremental_s = compare({f"batch {batch_size}": sample}, **how)[f"batch {batch_size}"] / batch_size
    naive_s = sum(naive_seconds(prior, labels, options.repeats) for prior in priors) / batch_size
    row = {
        "first batch, s": first_s,
        "incremental, s an image": incremental_s,
        "naive, s an image": naive_s,
        "naive / incremental": naive_s / incremental_s,
    }
    if device.type == "cuda":
        row["memory, GB"] = torch.cuda.max_memory_allocated() / 1e9
    return row


@torch.inference_mode()
def naive_seconds(prior: PixelSNAIL, labels: torch.Tensor, repeats: int) -> float:
    """Of a batch, at a full pass a code."""
    codes = labels.new_zeros(len(labels), *prior.grid)
    above = [labels.new_zeros(len(labels), *grid) for grid in prior.condition_grids]
    condition, label = prior.condition(above), prior.embed_labels(labels)
    full_pass_s = min(seconds(lambda: prior.logits(codes, condition, label)) for _ in range(repeats + 1))
    return full_pass_s * math.prod(prior.grid)


if __name__ == "__main__":
    main()
