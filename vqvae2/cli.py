"""The commands `lightning` and `vqvae2`: every job is a verb and a config.

lightning fit -c configs/imagenet_vqvae.yaml -c configs/parts/wandb.yaml --trainer.devices 8
"""

import argparse
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from tqdm import tqdm

from vqvae2.callbacks.loggers import MetricsFile, WandbLogger, WandbSettings
from vqvae2.callbacks.progress import ImageProgress
from vqvae2.callbacks.run_folder import RunCheckpoint, StreamedCheckpoints, check_writable
from vqvae2.composition import UsageError, compose, config_files
from vqvae2.data.chunks import ChunkedDataModule
from vqvae2.usage import check_job, check_verb, needs_weights, one_line, underlying, usage_line

SHARDED = "meta.pt"  # marks a checkpoint that is a folder, as sharded training writes it


def main(args: list[str] | None = None) -> None:
    """Runs one command; what the user can mend ends in one line on stderr, with status 2 (usage) or 1.

    Other exceptions are mistakes in the code and keep their traceback. VQVAE2_DEBUG=1 shows all of them.
    """
    args = sys.argv[1:] if args is None else args
    try:
        check_verb(args, list(SuiteCLI.subcommands()))
        config_files(args)  # what is wrong with the files themselves is said before anything else
        _quiet_lightning()
        SuiteCLI(args)
    except (argparse.ArgumentError, UsageError) as error:
        _fail(usage_line(error, args), status=2)
    except (ValueError, OSError, MisconfigurationException) as error:
        cause = underlying(error)
        if not isinstance(cause, ValueError | OSError | MisconfigurationException):
            raise cause from None
        _fail(one_line(cause), status=1)


def _fail(message: str, *, status: int) -> NoReturn:
    if os.environ.get("VQVAE2_DEBUG"):
        raise  # the error being handled, with its traceback
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()  # an open one would share its line with the message
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


class SuiteParser(LightningArgumentParser):
    """Reads a config together with those that it builds on."""

    def parse_path(self, path: str | os.PathLike, **kwargs: Any) -> Any:
        # Sorted, because the parser wants class_path before init_args.
        return self.parse_string(yaml.safe_dump(compose(Path(path)), sort_keys=True), **kwargs)


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
        text = self.parser.dump(self.config, skip_unset=False)
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{self.config_filename}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(folder / self.config_filename)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams(yaml.safe_load(text))


class SuiteCLI(LightningCLI):
    """Lightning's CLI with this suite's conventions: a run folder, its checkpoints, its metrics.

    `trainer.default_root_dir` is the run folder. A fit writes `metrics.csv`, `last.ckpt` and `best.ckpt`
    there (options under `checkpoint`); every verb writes `config.yaml`. `wandb` turns Weights & Biases on.
    """

    def __init__(self, args: ArgsType) -> None:
        super().__init__(
            parser_class=SuiteParser,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults={"use_distributed_sampler": False},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # checkpoints describe their network themselves
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        verbs = LightningCLI.subcommands()
        verbs["predict"].add("return_predictions")
        return verbs

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        return super().init_parser(**kwargs, exit_on_error=False, allow_abbrev=False)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(RunCheckpoint, "checkpoint")
        parser.add_argument(
            "--wandb", type=WandbSettings | None, default=None, help="Weights & Biases, if wanted."
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Resolves 'last' and 'best'. A checkpoint changes no setting of the config.

        What a fit has trained is validated and tested as its last checkpoint has it, unless another is named.
        """
        config = self.config[self.config.subcommand]
        if config.ckpt_path is None and needs_weights(self.config.subcommand, config):
            config.ckpt_path = "last"
        if config.ckpt_path is None:
            return
        named = config.ckpt_path in ("last", "best")
        path = self._run_folder(config) / f"{config.ckpt_path}.ckpt" if named else Path(config.ckpt_path)
        if path.is_file() or (path / SHARDED).is_file():
            config.ckpt_path = str(path)
        elif self.config.subcommand == "fit" and config.ckpt_path == "last":
            config.ckpt_path = None  # the first start of a job that resumes itself
        else:
            raise ValueError(f"There is no checkpoint {path} (--ckpt_path). Train it first, or name another.")

    @staticmethod
    def _run_folder(config: Any) -> Path:
        if config.trainer.default_root_dir is None:
            raise UsageError(
                "trainer.default_root_dir is missing: name the run folder, such as runs/demo/vqvae."
            )
        return Path(config.trainer.default_root_dir).expanduser()

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        check_job(self.subcommand, config)
        if config.trainer.use_distributed_sampler:
            raise UsageError(
                "trainer.use_distributed_sampler must be false: the data modules deal samples to the ranks."
            )
        check_writable(self._run_folder(config))
        if config.trainer.accelerator == "auto" and torch.backends.mps.is_available():
            config.trainer.accelerator = "cpu"  # sums and sampling are in float64, which Apple's GPUs lack

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        settings = self.config_init[self.subcommand]
        if settings.trainer.enable_checkpointing is not False:
            settings.trainer.callbacks = [*_listed(settings.trainer.callbacks), settings.checkpoint]
        settings.trainer.plugins = [*_listed(settings.trainer.plugins), StreamedCheckpoints()]
        callbacks = _listed(settings.trainer.callbacks)
        if settings.trainer.enable_progress_bar is not False and not any(
            isinstance(callback, ProgressBar) for callback in callbacks
        ):
            settings.trainer.callbacks = [*callbacks, self._progress_bar()]
        try:
            return super().instantiate_trainer(logger=self._loggers(settings) or False, **kwargs)
        except TypeError as error:  # Lightning's, of an option such as devices
            raise UsageError(f"'trainer': {error}") from error

    def _progress_bar(self) -> ProgressBar:
        if isinstance(self.datamodule, ChunkedDataModule) and self.subcommand == "predict":
            return ImageProgress()
        # Batches between two looks at the figures, which wait for the device.
        every = 1 if self.subcommand != "fit" else 10 if sys.stdout.isatty() else 50
        return TQDMProgressBar(refresh_rate=every)

    def _loggers(self, settings: Any) -> list[Logger]:
        folder = self._run_folder(settings)
        if settings.trainer.logger is False:
            return []
        loggers: list[Logger] = []
        if self.subcommand == "fit":
            loggers.append(MetricsFile(folder, append=settings.ckpt_path is not None))
        if settings.wandb is not None:
            loggers.append(WandbLogger(settings.wandb, folder))
        return loggers + [logger for logger in _listed(settings.trainer.logger) if logger is not True]

    def predict(self, **kwargs: Any) -> None:
        """Callbacks write what a predict job makes; keeping it in memory too would fill the memory."""
        self.trainer.predict(return_predictions=False, **kwargs)


def _listed(value: Any) -> list:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _quiet_lightning() -> None:
    """Keeps advertisements and advice that does not fit this suite out of the log."""
    rank_zero = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    rank_zero.addFilter(lambda record: not record.getMessage().startswith(("💡", "TPU available: False")))
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated.*")
    warnings.filterwarnings("ignore", ".*custom batch sampler `ChunkBatches` for prediction.*")
    warnings.filterwarnings("ignore", ".*Total length of `list` across ranks is zero.*")
    warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")  # the Polyak average


if __name__ == "__main__":
    main()
