"""VQ-VAE-2: train, sample and judge hierarchical vector-quantised image models."""
