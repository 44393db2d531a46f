"""The commands `lightning` and `vqvae2`: every job is a verb and a config.

lightning fit -c configs/imagenet_vqvae.yaml -c configs/parts/wandb.yaml --trainer.devices 8
"""

import argparse
import gc
import logging
import os
import signal
import sys
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar, Timer, TQDMProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from tqdm import tqdm

from vqvae2.cli.composition import UsageError
from vqvae2.cli.help import help_text
from vqvae2.cli.parsing import SuiteParser, expand_homes, refuse_keys_given_twice
from vqvae2.cli.recipes import expanded, next_command
from vqvae2.cli.save_config import SaveConfig
from vqvae2.cli.usage import (
    check_devices,
    check_job,
    check_verb,
    check_weights,
    needs_weights,
    one_line,
    underlying,
    usage_line,
)
from vqvae2.data.chunked import ChunkedDataModule
from vqvae2.data.loader import dead_worker, of_dead_worker
from vqvae2.jobs.progress import ImageProgress
from vqvae2.runs.checkpoint_files import StreamedCheckpoints, check_whole, find_last, read_facts
from vqvae2.runs.folder_lock import locked
from vqvae2.runs.identity import RUN, concerns_network, differences, listed, moved, run_identity
from vqvae2.runs.loggers import MetricsFile, WandbLogger, WandbSettings
from vqvae2.runs.loop_state import StepNumbers
from vqvae2.runs.preemption import INTERRUPTED, LeaveOnSignal, Stopped, StopRequest, restarted
from vqvae2.runs.run_folder import RunCheckpoint, check_writable
from vqvae2.runs.step_progress import StepProgress
from vqvae2.storage.checkpoint import DESCRIPTION, META, unvalidated
from vqvae2.surroundings import show_any_name


def main(args: list[str] | None = None) -> None:
    """Runs one command; what the user can mend ends in one line on stderr, with status 2 (usage) or 1.

    A run that was stopped from outside and can go on ends with status 75.
    Other exceptions are mistakes in the code and keep their traceback. VQVAE2_DEBUG=1 shows all of them.
    """
    show_any_name()
    args = sys.argv[1:] if args is None else args
    try:
        check_verb(args, list(SuiteCLI.subcommands()))
        if args[1:] in (["-h"], ["--help"]):
            print(help_text(args[0]))
            return
        # What is wrong with the files themselves is said before anything else.
        command, SuiteParser.composed = expanded(args)
        _quiet_lightning()
        SuiteCLI(command)
        if rank_zero_only.rank == 0 and (following := next_command(args)):
            print(f"Next: {following}")
    except Stopped as stop:
        _end_stopped(stop)
    except KeyboardInterrupt:  # before the job is known
        _end_stopped(Stopped("stopped by Ctrl-C before the job began.", INTERRUPTED))
    except (argparse.ArgumentError, UsageError) as error:
        _fail(usage_line(error, args), status=2)
    except (ValueError, OSError, MisconfigurationException) as error:
        cause = underlying(error)
        if not isinstance(cause, ValueError | OSError | MisconfigurationException):
            raise cause from None
        _fail(one_line(cause), status=1)
    except RuntimeError as error:
        if of_dead_worker(error):
            _fail(one_line(dead_worker(error)), status=1)
        if not _is_of_another_process(error):
            raise
        _fail(
            f"another process of this run died, or did not answer in time ({one_line(error)}). "
            "See its own message. Run the same command again to continue.",
            status=1,
        )


def _is_of_another_process(error: RuntimeError) -> bool:
    return isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error)


def _fail(message: str, *, status: int) -> NoReturn:
    if os.environ.get("VQVAE2_DEBUG"):
        raise  # the error being handled, with its traceback
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()  # an open one would share its line with the message
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def _end_stopped(stop: Stopped) -> NoReturn:
    for signum in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_IGN)  # SLURM and launchers may send more while the process ends
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # but Ctrl-C ends it at once
    if rank_zero_only.rank == 0:
        print(stop, file=sys.stderr)
    gc.freeze()  # looking for garbage in all of torch would take a second more than all else
    # Lightning kills all processes that it has launched when one of them fails; only the first may tell.
    outside = {"TORCHELASTIC_RUN_ID", "SLURM_NTASKS"} & set(os.environ)
    sys.exit(0 if int(os.environ.get("LOCAL_RANK", 0)) and not outside else stop.status)


class SuiteCLI(LightningCLI):
    """Lightning's CLI with this suite's conventions: a run folder, its checkpoints, its metrics.

    `trainer.default_root_dir` is the run folder. A fit writes `metrics.csv`, `last.ckpt` and `best.ckpt`
    there (options under `checkpoint`) and goes on from `last.ckpt` when it is started again; every verb
    writes `config.yaml`. `wandb` turns Weights & Biases on.
    """

    start: Path | None = None  # the checkpoint that a fit goes on from

    def __init__(self, args: ArgsType) -> None:
        self.request = StopRequest()
        refuse_keys_given_twice()
        with ExitStack() as self.held:  # the whole job is run within: what is held ends with it
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
            "--run",
            type=str | None,
            default=None,
            help="The folder of the recipe's run ($run in configs). Every path of the job moves with it.",
        )
        parser.add_argument(
            "--wandb",
            type=WandbSettings | None,
            default=None,
            help="Weights & Biases; off unless one of these is given.",
        )
        parser.add_argument(
            "--resume",
            type=bool,
            default=True,
            help="Continue from last.ckpt of the run folder if it exists. false moves the old run aside and "
            "starts anew (not when SLURM or torchrun has restarted the job).",
        )
        parser.add_argument(
            "--allow_inexact_resume",
            type=bool,
            default=False,
            help="Continue even if settings or data differ from those that the run began with.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Keeps the checkpoint from Lightning, which would let it change settings: here, it changes none."""
        self.config = parser.parse_args(args)
        config = self.config[self.config.subcommand]
        expand_homes(config)
        self.named_checkpoint, config.ckpt_path = config.ckpt_path, None

    def _checkpoint(self, config: Any) -> str | None:
        """The one that is named, 'last' and 'best' as their paths but for a fit, for which see `_start`.

        What a fit has trained is validated and tested as its last checkpoint has it, unless another is named.
        """
        named = self.named_checkpoint
        if named is None and needs_weights(self.subcommand, config):
            named = "last"
        return named if named is None or self.subcommand == "fit" else str(self._existing(config, named))

    def _start(self, config: Any) -> Path | None:
        """What a fit goes on from: the checkpoint that is named, else its own last one, if there is one."""
        keeps = config.trainer.enable_checkpointing is not False and not config.trainer.fast_dev_run
        last = find_last(self._run_folder(config)) if keeps else None
        again = restarted(os.environ)
        if config.ckpt_path not in (None, "last") and not (again and last):
            return self._existing(config, config.ckpt_path)
        return last if config.resume or again or config.ckpt_path == "last" else None

    def _existing(self, config: Any, named: str) -> Path:
        path = self._run_folder(config) / f"{named}.ckpt" if named in ("last", "best") else Path(named)
        if not path.is_file() and not (path / META).is_file():
            mend = unvalidated(path) or "Train it first, or name another."
            raise ValueError(f"There is no checkpoint {path} (--ckpt_path). {mend}")
        return path

    @staticmethod
    def _run_folder(config: Any) -> Path:
        if config.trainer.default_root_dir is None:
            raise UsageError(
                "trainer.default_root_dir is missing: name the run folder, such as runs/demo/vqvae."
            )
        return Path(config.trainer.default_root_dir)

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        check_job(self.subcommand, config)
        check_devices(config.trainer, os.environ)
        config.ckpt_path = self._checkpoint(config)
        if config.trainer.use_distributed_sampler:
            raise UsageError(
                "trainer.use_distributed_sampler must be false: the data modules deal samples to the ranks."
            )
        folder = self._run_folder(config)
        check_writable(folder)
        self.held.enter_context(self.request.at_hand())
        if self.subcommand in ("fit", "test"):
            another = "Wait for it or stop it, or name another folder with --trainer.default_root_dir."
            self.held.enter_context(locked(folder, self.subcommand, another))
        if self.subcommand == "fit":
            self.start = self._start(config)
            if self.start is not None and rank_zero_only.rank == 0:
                check_whole(self.start)
        if checkpoint := self.start or config.ckpt_path:
            check_weights(config, checkpoint)
        if config.trainer.accelerator == "auto" and torch.backends.mps.is_available():
            config.trainer.accelerator = "cpu"  # sums and sampling are in float64, which Apple's GPUs lack

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        settings = self.config_init[self.subcommand]
        if self.subcommand == "fit" and settings.trainer.enable_checkpointing is not False:
            settings.trainer.callbacks = [
                StepNumbers(),
                *_listed(settings.trainer.callbacks),
                self._run_checkpoint(settings),
            ]
        elif self.subcommand != "fit":
            settings.trainer.callbacks = [*_listed(settings.trainer.callbacks), LeaveOnSignal(self.request)]
        settings.trainer.plugins = [*_listed(settings.trainer.plugins), StreamedCheckpoints()]
        callbacks = _listed(settings.trainer.callbacks)
        if settings.trainer.enable_progress_bar is not False and not any(
            isinstance(callback, ProgressBar) for callback in callbacks
        ):
            settings.trainer.callbacks = [*callbacks, self._progress_bar()]
        try:
            return super().instantiate_trainer(logger=self._loggers(settings) or False, **kwargs)
        except (TypeError, ModuleNotFoundError) as error:  # Lightning's, of an option such as devices
            raise UsageError(f"'trainer': {error}") from error

    def _run_checkpoint(self, settings: Any) -> RunCheckpoint:
        """Counts the time limit of this start itself: Lightning's would validate first, and add up starts."""
        callback: RunCheckpoint = settings.checkpoint
        callback.starts_anew, callback.request = self.start is None, self.request
        if settings.trainer.max_time is not None:
            self.request.limit(Timer(settings.trainer.max_time).time_remaining())
            settings.trainer.max_time = None
        return callback

    def _progress_bar(self) -> ProgressBar:
        if isinstance(self.datamodule, ChunkedDataModule) and self.subcommand == "predict":
            return ImageProgress()
        if self.subcommand == "fit":  # steps between two checks of the figures, which wait for the device
            return StepProgress(refresh_rate=10 if sys.stdout.isatty() else 50)
        return TQDMProgressBar()

    def _loggers(self, settings: Any) -> list[Logger]:
        folder = self._run_folder(settings)
        if settings.trainer.logger is False:
            return []
        loggers: list[Logger] = []
        if self.subcommand == "fit":
            loggers.append(MetricsFile(folder, append=self.start is not None))
        if settings.wandb is not None:
            loggers.append(WandbLogger(settings.wandb, folder, append=self.start is not None))
        return loggers + [logger for logger in _listed(settings.trainer.logger) if logger is not True]

    def fit(self, **kwargs: Any) -> None:
        """Goes on from `start`, or says that nothing is left to do.

        Raises:
            ValueError: this is not the run that the checkpoint is of.
        """
        settings = self.config_init[self.subcommand]
        config = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))[self.subcommand]
        identity = run_identity(config, self.datamodule, self.trainer)
        settings.checkpoint.identity = identity
        if self.start is not None:
            facts = read_facts(self.start)
            self._check_identity(facts, identity, allow_inexact=settings.allow_inexact_resume)
            if 0 < self.trainer.max_steps <= facts["global_step"]:
                rank_zero_info(
                    f"{self.start} is at step {facts['global_step']} of trainer.max_steps "
                    f"{self.trainer.max_steps}: nothing is left to do. --resume false starts anew."
                )
                return
        self.trainer.fit(**kwargs | {"ckpt_path": self.start, "weights_only": True})

    def _check_identity(
        self, facts: dict[str, Any], identity: dict[str, Any], *, allow_inexact: bool
    ) -> None:
        if not (was := facts.get(RUN)):
            rank_zero_warn(f"{self.start} does not record the settings of its run, so they are not compared.")
            return
        schedule = getattr(self.model, "schedule", None)
        found = differences(was, identity, steps=facts["global_step"], schedule=schedule)
        network = [each for each in found if concerns_network(each, facts.get(DESCRIPTION, {}))]
        if network:
            raise ValueError(
                f"{self.start} holds another network: {listed(network)}. "
                "Use the settings of that run, or start anew with --resume false."
            )
        if found and not allow_inexact:
            raise ValueError(
                f"{self.start} is of a run with other settings or data, so continuing is not exact: "
                f"{listed(found)}. Use those of that run, start anew with --resume false, or accept the "
                "difference with --allow_inexact_resume true."
            )
        if found:
            rank_zero_warn(f"Continuing from {self.start} is not exact: {listed(found)}.")
        if places := moved(was, identity):
            rank_zero_warn(
                f"The data are in another place now; this alone changes nothing: {listed(places)}."
            )

    def predict(self, **kwargs: Any) -> None:
        """Callbacks write what a predict job makes; keeping it in memory too would fill the memory."""
        from vqvae2.jobs.chunk_writer import ChunkWriter  # webdataset, which other verbs start without

        for writer in self.trainer.callbacks:
            if isinstance(writer, ChunkWriter):
                another = "Wait for it or stop it, or give the writer another folder."
                self.held.enter_context(locked(writer.folder_of(self.trainer), "predict", another))
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
    warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint need to be provided.*")
    warnings.filterwarnings("ignore", ".*recommended to use .*sync_dist=True.*")  # figures are of all ranks


if __name__ == "__main__":
    main()
