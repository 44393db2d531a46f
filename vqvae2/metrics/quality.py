"""How good a set of images is beside a reference: every figure of the papers, from what networks saw.

Shape legend: M images of the set, N of the reference.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from vqvae2.metrics.frechet import Gaussian, frechet_infinity
from vqvae2.metrics.inception_score import inception_score
from vqvae2.metrics.kernel import kernel_distance
from vqvae2.metrics.manifold import Balls, manifold_figures
from vqvae2.metrics.record import Record

KERNEL_SEED = 2020  # torch-fidelity's, so that its figures are ours
INFINITY_SEED = 0


@dataclass(frozen=True)
class KernelSubsets:
    """Draws that the kernel inception distance is averaged over.

    Args:
        subsets: how many; torch-fidelity takes 100.
        subset_size: images of each side in one; torch-fidelity takes 1,000.
    """

    subsets: int
    subset_size: int


@dataclass(frozen=True)
class InfinitySizes:
    """Numbers of samples that FID-infinity extrapolates from, evenly spaced.

    Args:
        points: how many; Chong & Forsyth (2020) take 15.
        smallest: they take 5,000.
        largest: they take 50,000.
    """

    points: int
    smallest: int
    largest: int

    @property
    def sizes(self) -> list[int]:
        step = (self.largest - self.smallest) / max(self.points - 1, 1)
        return [round(self.smallest + step * i) for i in range(self.points)]


@dataclass(frozen=True)
class Neighbourhoods:
    """Neighbours that the balls of precision, recall, density and coverage reach to.

    Args:
        k_precision: of precision and recall; Kynkäänniemi et al. (2019) take 3.
        k_density: of density and coverage; Naeem et al. (2020) take 5.
    """

    k_precision: int
    k_density: int

    @property
    def largest(self) -> int:
        return max(self.k_precision, self.k_density)


@dataclass(frozen=True)
class Wanted:
    """Which figures are computed beyond FID, FID* and the Inception score, and how; None leaves one out."""

    splits: int
    kid: KernelSubsets | None = None
    fid_infinity: InfinitySizes | None = None
    manifold: Neighbourhoods | None = None

    def least(self) -> dict[str, int]:
        """How many images of a set each figure needs, and the reference where it is compared pair by pair."""
        least = {"fid": 2, "is": self.splits}
        if self.kid is not None:
            least["kid"] = self.kid.subset_size
        if self.fid_infinity is not None:
            least["fid_infinity"] = self.fid_infinity.largest
        if self.manifold is not None:
            least["precision"] = least["recall"] = self.manifold.largest + 1
            least["density"] = least["coverage"] = self.manifold.largest + 1
        return least


class Reference(NamedTuple):
    """What sets are held against."""

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
        wanted: which figures.

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
