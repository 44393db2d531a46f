"""The feature networks of a verdict by their roles."""

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from vqvae2.metrics.features import FeatureNetwork, Features

DISTANCE, MANIFOLD = "distance", "manifold"


class Eyes(nn.Module):
    """One network for FID, IS and KID, and one for precision, recall, density, coverage and neighbours.

    Both roles may be of the same network, which then looks once.
    """

    def __init__(self, distance: FeatureNetwork, manifold: FeatureNetwork) -> None:
        super().__init__()
        self.networks = nn.ModuleDict({DISTANCE: distance})
        if manifold.fingerprint != distance.fingerprint:
            self.networks[MANIFOLD] = manifold
        self.manifold_role = MANIFOLD if MANIFOLD in self.networks else DISTANCE

    @property
    def distance(self) -> FeatureNetwork:
        return self.networks[DISTANCE]

    @property
    def manifold(self) -> FeatureNetwork:
        return self.networks[self.manifold_role]

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

    def look(self, images: Tensor, roles: Collection[str] | None = None) -> dict[str, Features]:
        """What the networks of some roles, or all, see in images [B, C, H, W] in [-1, 1]."""
        return {role: self.networks[role](images) for role in self.networks if roles is None or role in roles}
