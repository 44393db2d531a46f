"""The Fréchet distance without a covariance matrix."""

import torch


def nuclear_norm_form(x, y):
    """‖Δμ‖² + tr Σ₁ + tr Σ₂ − 2‖X̃₁X̃₂ᵀ‖_*/√((n₁−1)(n₂−1)), exact also with fewer samples than features."""
    (n, m), (cx, cy) = (len(x), len(y)), (x - x.mean(0), y - y.mean(0))
    cross = torch.linalg.svdvals(cx @ cy.T).sum() / ((n - 1) * (m - 1)) ** 0.5
    spread = cx.square().sum() / (n - 1) + cy.square().sum() / (m - 1)
    return ((x.mean(0) - y.mean(0)).square().sum() + spread - 2 * cross).item()
