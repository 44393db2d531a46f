"""What the metrics cost and how exact they are, beside the packages that people use for them.

    python experiments/bench_metrics.py            # 50,000 images of 2,048 features
    python experiments/bench_metrics.py --quick

The features are invented: 64 hidden numbers an image are mixed into many, with some noise, and cut at 0. That
gives neighbours, and a covariance that decays as a network's does.

Fréchet distance: with the matrix root of scipy.linalg.sqrtm, torch-fidelity's eigenvalues, and the singular
values of this suite. The truth is known: the second set is a x + c for each x of the first.
Precision, recall, density and coverage: of as many images as torch-fidelity and prdc can hold whole matrices
of, and of all, with the most memory that the process took until then. KID: torch-fidelity's is float32's.
"""

import vqvae2  # noqa: F401 # isort: skip  # before torch: how its threads wait

import argparse
import contextlib
import io
import os
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from prdc import compute_prdc
from scipy.linalg import sqrtm
from torch import Tensor
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from timing import compare, describe_machine, print_table
from vqvae2.metrics.frechet import Moments, frechet_distance
from vqvae2.metrics.kernel import kernel_distance
from vqvae2.metrics.manifold import Balls, ManifoldFigures, manifold_figures
from vqvae2.runs.throughput import peak_memory_gb

HIDDEN = 64
SCALE, SHIFT = 1.7, 1.0
K_PRECISION, K_DENSITY = 3, 5
KID = {"subsets": 100, "subset_size": 1000, "seed": 2020}


def invent(num_images: int, num_features: int, seed: int) -> Tensor:
    """float32 [N, D]; one seed's images are as another's."""
    mix = torch.randn(HIDDEN, num_features, generator=torch.Generator().manual_seed(0)) / HIDDEN**0.5
    generator = torch.Generator().manual_seed(seed)
    features = torch.empty(num_images, num_features)
    for part in features.split(5000):  # no second copy of everything
        noise = torch.randn(part.shape, generator=generator)
        torch.addmm(
            noise, torch.randn(len(part), HIDDEN, generator=generator), mix, beta=0.25, out=part
        ).relu_()
    return features


def with_sqrtm(first: Moments, second: Moments) -> float:
    """As most implementations of FID do it."""
    root = sqrtm((first.covariance() @ second.covariance()).numpy()).real
    traces = first.covariance().trace() + second.covariance().trace() - 2 * np.trace(root)
    return ((first.mean - second.mean).square().sum() + traces).item()


def with_eigenvalues(first: Moments, second: Moments) -> float:
    """torch-fidelity's."""
    statistics = [{"mu": one.mean.numpy(), "sigma": one.covariance().numpy()} for one in (first, second)]
    return fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


def bench_frechet(num_features: int, num_images: int, repeats: int) -> None:
    features = invent(num_images, num_features, seed=1).double()
    first, second = Moments.of(features), Moments.of(SCALE * features + SHIFT)
    change = ((SCALE - 1) * first.mean + SHIFT).square().sum()
    truth = ((1 - SCALE) ** 2 * first.covariance().trace() + change).item()
    methods = {
        "this suite": frechet_distance,
        "scipy.linalg.sqrtm": with_sqrtm,
        "torch-fidelity": with_eigenvalues,
    }
    seconds = compare({name: partial(f, first, second) for name, f in methods.items()}, repeats=repeats)
    print(f"\nFréchet distance of {num_features:,} features, {num_images:,} images")
    print_table(
        [
            {
                "": name,
                "s": seconds[name],
                "times this suite's": seconds[name] / seconds["this suite"],
                "relative error": f"{abs(method(first, second) / truth - 1):.0e}",
                "same set twice": f"{method(first, first):.0e}",
            }
            for name, method in methods.items()
        ]
    )


def bench_small(num_images: int, num_features: int, repeats: int) -> None:
    samples, real = (invent(num_images, num_features, seed) for seed in (1, 2))
    figures: dict[str, tuple] = {}

    def ours() -> None:
        figures["this suite"] = all_figures(samples, real)

    def theirs() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            found = prc_features_to_metric(samples, real, verbose=False)
            dense = compute_prdc(real.numpy(), samples.numpy(), K_DENSITY)
        figures["torch-fidelity and prdc"] = (
            found["precision"],
            found["recall"],
            float(dense["density"]),
            float(dense["coverage"]),
        )

    names = ("this suite", "torch-fidelity and prdc")
    seconds = compare(dict(zip(names, (ours, theirs), strict=True)), repeats=repeats)
    rows = [{"": name, "s": seconds[name], **_columns(figures[name])} for name in names]
    print(f"\nManifolds of {num_images:,} x {num_images:,} images, {num_features:,} features")
    print_table(rows)


def _columns(figures: tuple) -> dict[str, str]:
    return {name: f"{value:.7f}" for name, value in zip(ManifoldFigures._fields, figures, strict=True)}


def all_figures(samples: Tensor, real: Tensor) -> ManifoldFigures:
    """All four, with the balls made anew."""
    balls = Balls.around(samples, k=K_PRECISION), Balls.around(real, k=K_DENSITY)
    return manifold_figures(*balls, k_precision=K_PRECISION, k_density=K_DENSITY)


def bench_whole(num_images: int, num_features: int) -> None:
    samples, real = (invent(num_images, num_features, seed) for seed in (1, 2))
    elapsed_s, processor_s, figures = _timed(lambda: all_figures(samples, real))
    print(f"\nManifolds of {num_images:,} x {num_images:,} images, {num_features:,} features")
    row = {
        "": "this suite",
        "s": elapsed_s,
        "processor s": processor_s,
        "peak GB": peak_memory_gb(torch.device("cpu")),
        **_columns(figures),
    }
    print_table([row])
    elapsed_s, processor_s, ours = _timed(lambda: kernel_distance(samples, real, **KID))
    rows = [{"": "this suite", "s": elapsed_s, "processor s": processor_s, "KID": f"{ours.mean:.12f}"}]
    options = {"kid_subsets": KID["subsets"], "kid_subset_size": KID["subset_size"], "rng_seed": KID["seed"]}
    elapsed_s, processor_s, theirs = _timed(
        lambda: kid_features_to_metric(samples, real, verbose=False, **options)
    )
    kid = theirs["kernel_inception_distance_mean"]
    rows.append({"": "torch-fidelity", "s": elapsed_s, "processor s": processor_s, "KID": f"{kid:.12f}"})
    print(f"\nKID, {KID['subsets']} subsets of {KID['subset_size']:,}")
    print_table(rows)


def _timed(call: Callable[[], object]) -> tuple[float, float, object]:
    """Seconds on the wall and of the processor (on a shared machine only the latter mean much)."""
    start, processor = time.perf_counter(), time.process_time()
    found = call()
    return time.perf_counter() - start, time.process_time() - processor, found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that everything runs")
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=["frechet", "small", "whole"])
    options = parser.parse_args()
    if options.quick:
        options.features, options.images = 256, 5000
    print(describe_machine(), f"; OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}", sep="")
    if options.only in (None, "whole"):  # first, since the peak of memory is the process's
        bench_whole(options.images, options.features)
    if options.only in (None, "frechet"):
        for num_images in (3 * options.features, options.features // 2):
            bench_frechet(options.features, num_images, options.repeats)
    if options.only in (None, "small"):
        bench_small(min(options.images, 5000), options.features, options.repeats)


if __name__ == "__main__":
    main()
