"""From picture files to pixels: formats, depths, transparency, orientation, colour profiles."""
