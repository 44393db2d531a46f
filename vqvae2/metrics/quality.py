"""How good a set of images is beside a reference: every figure of the papers, from what networks saw.

Shape legend: M images of the set, N of the reference.
"""

from typing import NamedTuple

from torch import Tensor

from vqvae2.metrics.feature_statistics import Record
from vqvae2.metrics.frechet import Gaussian, frechet_infinity
from vqvae2.metrics.inception_score import inception_score
from vqvae2.metrics.kernel import kernel_distance
from vqvae2.metrics.manifold import Balls, manifold_figures
from vqvae2.metrics.sizes import InfinitySizes, KernelSubsets, Neighbourhoods, Wanted

__all__ = ["InfinitySizes", "KernelSubsets", "Neighbourhoods", "Reference", "Wanted", "quality"]

KERNEL_SEED = 2020  # torch-fidelity's, so that its figures are ours
INFINITY_SEED = 0


class Reference(NamedTuple):
    """What sets are compared with."""

    real: Gaussian  # features of all real images
    real_features: Tensor  # [N, D] of those kept
    balls: Balls | None  # around features of the second network
    reconstructed: Gaussian | None  # features of the real images' reconstructions


def quality(
    distance: Record, manifold: Record | None, reference: Reference, wanted: Wanted
) -> dict[str, float]:
    """The figures of a set by the name of their metric; those that it has too few images for are absent.

    With several ranks, which all hold the same records, each does a part of the work and all have the result.

    Args:
        distance: of the network for FID, FID*, FID-infinity, the Inception score and KID.
        manifold: of the network for precision, recall, density and coverage; None leaves them out.
        reference: by the same networks.
        wanted: which figures, with numbers for all sizes.

    Raises:
        ValueError: the features are not finite.
    """
    enough = {name for name, least in wanted.least().items() if distance.count >= least}
    figures: dict[str, float] = {}
    if "fid" in enough:
        gaussian = distance.gaussian()
        figures["fid"] = gaussian.distance(reference.real)
        if reference.reconstructed is not None:
            figures["fid_star"] = gaussian.distance(reference.reconstructed)
    if "fid_infinity" in enough:
        sizes = wanted.fid_infinity.sizes
        figures["fid_infinity"] = frechet_infinity(
            distance.features, reference.real, sizes=sizes, seed=INFINITY_SEED
        )
    if "is" in enough and distance.logits is not None:
        figures["is"], figures["is_std"] = inception_score(distance.logits, splits=wanted.splits)
    if "kid" in enough:
        figures["kid"], figures["kid_std"] = kernel_distance(
            distance.features, reference.real_features, **vars(wanted.kid), seed=KERNEL_SEED
        )
    if "precision" in enough and manifold is not None:
        ks = wanted.manifold
        balls = manifold.with_radii(ks.largest).balls()
        found = manifold_figures(balls, reference.balls, k_precision=ks.k_precision, k_density=ks.k_density)
        figures |= found._asdict()
    return figures
