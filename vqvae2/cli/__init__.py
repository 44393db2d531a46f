"""The commands `lightning` and `vqvae2`."""

from vqvae2.cli.main import main

__all__ = ["main"]
