"""Pictures that a run leaves behind: files in its folder, and W&B when that is on."""

from pathlib import Path

import lightning as L
import torch

from vqvae2.pixels import write_png
from vqvae2.runs.loggers import WandbLogger


def log_picture(trainer: L.Trainer, name: str, picture: torch.Tensor) -> Path:
    """Writes `images/NAME-STEP.png` in the run folder, and to W&B when it is on; only rank 0 does.

    Args:
        trainer: gives the run folder, the step and the loggers.
        name: such as `reconstructions`; a slash in it becomes a dash in the file's name.
        picture: uint8 `[C, H, W]`, C 1 or 3.

    Returns:
        The file's path, on every rank.
    """
    path = (
        Path(trainer.default_root_dir) / "images" / f"{name.replace('/', '-')}-{trainer.global_step:07d}.png"
    )
    if not trainer.is_global_zero:
        return path
    write_png(path, picture)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [str(path)], step=trainer.global_step)
    return path
