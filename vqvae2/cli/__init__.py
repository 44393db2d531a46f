"""The commands `lightning` and `vqvae2`."""

from vqvae2.cli.suite import main

__all__ = ["main"]
