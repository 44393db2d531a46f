"""Every figure, from features, sums or counts."""
