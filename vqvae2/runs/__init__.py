"""The life of a run: its folder, checkpoints, resuming, signals, health, logs and previews."""
