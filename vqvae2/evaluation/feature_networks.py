"""The feature networks of an evaluation by their roles."""

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from vqvae2.metrics.features import FeatureNetwork, Features

DISTANCE, MANIFOLD = "distance", "manifold"


class FeatureNetworks(nn.Module):
    """One network for FID, IS and KID, and one for precision, recall, density, coverage and neighbours.

    If both roles have the same network, it computes its features once.
    """

    def __init__(self, distance: FeatureNetwork, manifold: FeatureNetwork) -> None:
        super().__init__()
        self.by_role = nn.ModuleDict({DISTANCE: distance})
        if manifold.fingerprint != distance.fingerprint:
            self.by_role[MANIFOLD] = manifold
        self.manifold_role = MANIFOLD if MANIFOLD in self.by_role else DISTANCE

    @property
    def distance(self) -> FeatureNetwork:
        return self.by_role[DISTANCE]

    @property
    def manifold(self) -> FeatureNetwork:
        return self.by_role[self.manifold_role]

    def describe(self) -> dict[str, dict[str, Any]]:
        """What the networks are, by their roles (plain types)."""
        return {
            role: {
                "name": network.name,
                "layers": network.layers,
                "fingerprint": network.fingerprint,
                "weights": network.weights,
            }
            for role, network in ((DISTANCE, self.distance), (MANIFOLD, self.manifold))
        }

    def features(self, images: Tensor, roles: Collection[str] | None = None) -> dict[str, Features]:
        """Features of images [B, C, H, W] in [-1, 1] by the networks of some roles, or of all."""
        return {role: self.by_role[role](images) for role in self.by_role if roles is None or role in roles}
