"""Sizes that figures are computed with: published ones, where there are images enough, or such as fit."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

AUTO = "auto"
Size = int | Literal["auto"]

# What "auto" is with images enough.
SPLITS = 10  # Salimans et al., 2016
SUBSET_SIZE = 1000  # torch-fidelity 0.4
SMALLEST, LARGEST = 5000, 50000  # Chong & Forsyth, 2020
K_PRECISION = 3  # Kynkäänniemi et al., 2019
K_DENSITY = 5  # Naeem et al., 2020

_MOST_SUBSETS = 10**6


@dataclass(frozen=True)
class KernelSubsets:
    """Draws that the kernel inception distance is averaged over.

    Args:
        subsets: how many; torch-fidelity takes 100.
        subset_size: images of each side in one. auto: 1,000, as torch-fidelity takes, or as many as the
            smallest set has.
    """

    subsets: int
    subset_size: Size = AUTO


@dataclass(frozen=True)
class InfinitySizes:
    """Numbers of samples that FID-infinity extrapolates from, evenly spaced.

    Args:
        points: how many; Chong & Forsyth (2020) take 15.
        smallest: auto: 5,000, as they take, or a fifth of the largest.
        largest: auto: 50,000, as they take, or as many as there are samples.
    """

    points: int
    smallest: Size = AUTO
    largest: Size = AUTO

    @property
    def sizes(self) -> list[int]:
        step = (self.largest - self.smallest) / max(self.points - 1, 1)
        return [round(self.smallest + step * i) for i in range(self.points)]


@dataclass(frozen=True)
class Neighbourhoods:
    """Neighbours that the balls of precision, recall, density and coverage reach to.

    Args:
        k_precision: of precision and recall. auto: 3, as Kynkäänniemi et al. (2019) take, or all others of
            the smallest set.
        k_density: of density and coverage. auto: 5, as Naeem et al. (2020) take, or all others too.
    """

    k_precision: Size = AUTO
    k_density: Size = AUTO

    @property
    def largest(self) -> int:
        """With images enough."""
        return max(_or(self.k_precision, K_PRECISION), _or(self.k_density, K_DENSITY))

    @property
    def least(self) -> int:
        """How many images of a set the balls need."""
        return max(_or(self.k_precision, 1), _or(self.k_density, 1)) + 1

    @property
    def fits(self) -> bool:
        """Whether it may be fitted to fewer images than it asks for."""
        return AUTO in (self.k_precision, self.k_density)


@dataclass(frozen=True)
class Wanted:
    """Which figures are computed beyond FID, FID* and the Inception score, and how; None leaves one out.

    Args:
        splits: parts of the images that the Inception score is averaged over. auto: 10, as papers take, or as
            many as the smallest set has images.
    """

    splits: Size
    kid: KernelSubsets | None = None
    fid_infinity: InfinitySizes | None = None
    manifold: Neighbourhoods | None = None

    def least(self) -> dict[str, int]:
        """How many images of a set each figure needs, and the reference where it is compared pair by pair."""
        least = {"fid": 2, "is": _or(self.splits, 1)}
        if self.kid is not None:
            least["kid"] = _or(self.kid.subset_size, 2)
        if self.fid_infinity is not None:
            least["fid_infinity"] = _or(self.fid_infinity.largest, 0)
        if self.manifold is not None:
            for name in ("precision", "recall", "density", "coverage"):
                least[name] = self.manifold.least
        return least

    def check(self) -> None:
        """Refuses sizes that no images could be enough for.

        Raises:
            ValueError: such a size.
        """
        _at_least(1, splits=self.splits)
        if self.kid is not None:
            _at_least(2, **{"kid.subset_size": self.kid.subset_size})
            if not 1 <= self.kid.subsets <= _MOST_SUBSETS:
                raise ValueError(f"kid.subsets is {self.kid.subsets}, wanted 1 to {_MOST_SUBSETS:,}.")
        if self.manifold is not None:
            ks = vars(self.manifold)
            _at_least(1, **{f"manifold.{name}": k for name, k in ks.items()})
        if self.fid_infinity is not None:
            smallest, largest = self.fid_infinity.smallest, self.fid_infinity.largest
            _at_least(2, **{"fid_infinity.smallest": smallest, "fid_infinity.largest": largest})
            different = _or(largest, LARGEST) - min(_or(smallest, 2), _or(largest, LARGEST)) + 1
            if not 2 <= self.fid_infinity.points <= different:
                raise ValueError(
                    f"fid_infinity draws a line through {self.fid_infinity.points} points from {smallest} to "
                    f"{largest} samples, wanted at least 2 and at most {different}. Set points, smallest and "
                    "largest so."
                )


def fitted(wanted: Wanted, *, samples: int, sets: Sequence[int], real: int) -> tuple[Wanted, list[str]]:
    """What is wanted with a number for each "auto", and a sentence for each that is not the published one.

    Args:
        wanted: numbers in it stay.
        samples: images of the smallest set of samples.
        sets: images of the other sets; those of one alone have no figures and do not count.
        real: real images whose features are kept.
    """
    fewest = min((count for count in (samples, *sets, real) if count > 1), default=2)
    notes: list[str] = []

    def fit(what: str, size: Size, published: int, most: int) -> int:
        if size != AUTO:
            return size
        if most < published:
            notes.append(f"{what}: {most:,}, not {published:,}, because there are not more images.")
        return min(published, most)

    kid, infinity, manifold = wanted.kid, wanted.fid_infinity, wanted.manifold
    splits = fit("splits of the Inception score", wanted.splits, SPLITS, fewest)
    if kid is not None:
        kid = replace(kid, subset_size=fit("images in a subset of KID", kid.subset_size, SUBSET_SIZE, fewest))
    if manifold is not None:
        manifold = Neighbourhoods(
            fit("neighbours of precision and recall", manifold.k_precision, K_PRECISION, fewest - 1),
            fit("neighbours of density and coverage", manifold.k_density, K_DENSITY, fewest - 1),
        )
    if infinity is not None:
        largest = fit("samples of FID-infinity", infinity.largest, LARGEST, samples)
        smallest = infinity.smallest
        if smallest == AUTO:
            smallest = min(SMALLEST, max(largest // 5, 2))
        infinity = replace(infinity, smallest=smallest, largest=largest)
        if smallest >= largest:
            notes.append(
                f"FID-infinity is left out: it needs more than {smallest:,} samples, found {largest:,}."
            )
            infinity = None
    return Wanted(splits, kid, infinity, manifold), notes


def _or(size: Size, otherwise: int) -> int:
    return otherwise if size == AUTO else size


def _at_least(least: int, **sizes: Size) -> None:
    for name, size in sizes.items():
        if size != AUTO and size < least:
            raise ValueError(f"{name} is {size}, wanted at least {least}, or auto.")
