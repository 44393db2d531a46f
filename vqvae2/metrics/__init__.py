"""Figures by which samples, reconstructions and priors are judged: running sums over batches and ranks."""
