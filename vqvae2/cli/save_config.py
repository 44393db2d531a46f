"""The composed config of a job, written beside what it makes."""

from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from vqvae2.runs.loggers import WandbLogger


class SaveConfig(SaveConfigCallback):
    """Writes the composed config to `config.yaml` in the run folder, and to W&B when it is on.

    It waits for the first batch, so that a job that fails before leaves the config of an earlier run alone.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Too early."""

    def _on_first_batch(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.already_saved or trainer.sanity_checking:
            return
        self.already_saved = True
        if trainer.is_global_zero:
            self.save_config(trainer, pl_module, trainer.state.fn)

    on_train_batch_start = on_validation_batch_start = _on_first_batch
    on_test_batch_start = on_predict_batch_start = _on_first_batch

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        config = self.config.clone()
        for name in ("resume", "allow_inexact_resume"):  # the file, used as a config, goes on with the run
            config.pop(name, None)
        text = self.parser.dump(config, skip_unset=False)
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{self.config_filename}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(folder / self.config_filename)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams(yaml.safe_load(text))
