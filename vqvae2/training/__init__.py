"""LightningModules that fit, one file each, with their schedules and their sharding."""
