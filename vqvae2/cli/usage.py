"""Errors as the user reads them: one line that says what was found, what was wanted and how to mend it.

jsonargparse reports a mistake as a page that names every type it tried. The exception's causes hold the same
facts one by one, from the outermost key to the value at fault, so the line is made from those.
"""

import dataclasses
import difflib
import importlib
import os
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import get_type_hints

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Trainer

from vqvae2.cli.classes import class_paths
from vqvae2.cli.composition import UsageError
from vqvae2.cli.help import verbs_of
from vqvae2.cli.recipes import origin
from vqvae2.runs.run_folder import RunCheckpoint
from vqvae2.storage.checkpoint import read_description
from vqvae2.training.base import NetworkModule

_TOP_LEVEL = (
    *("trainer", "model", "data", "checkpoint", "wandb", "seed_everything", "ckpt_path", "base"),
    *("resume", "allow_inexact_resume", "run", "like", "parts", "jobs"),
)
_GROUPS = {"trainer": Trainer, "checkpoint": RunCheckpoint}
_FEW_PROCESSES = 4  # that any machine may run, to try things out
_LAUNCHERS = {"MASTER_ADDR", "SLURM_NTASKS", "LSB_JOBID", "OMPI_COMM_WORLD_SIZE", "PMI_RANK"}
_UNION = "Does not validate against any of the Union subtypes"
_RENAMED = {
    "critic": "rejection_classifier",
    "VerdictPictures": "EvaluationPictures",
}  # names of earlier versions


def check_verb(args: list[str], verbs: list[str]) -> None:
    """
    Raises:
        UsageError: the command line does not start with one of `verbs` (or asks for help).
    """
    if not args or (args[0].startswith("-") and args[0] not in ("-h", "--help")):
        raise UsageError(
            f"name a command ({', '.join(verbs)}) and a config: lightning fit -c configs/NAME.yaml"
        )
    if args[0] not in [*verbs, "-h", "--help"]:
        raise UsageError(
            f"'{args[0]}' is not a command.{_suggest(args[0], verbs)} Commands are {', '.join(verbs)}."
        )


def check_job(verb: str, config: Namespace) -> None:
    """Finds what the parser lets through although no job can run with it.

    Raises:
        UsageError: options are no mapping, or the model does not do what `verb` asks.
    """
    for group in ("trainer", "data"):
        if not isinstance(config[group], Namespace):
            raise UsageError(f"'{group}' wants a mapping of options, found {config[group]!r}.")
    if config.trainer.val_check_interval == 0:
        raise UsageError(
            "'trainer.val_check_interval' is 0, wanted steps (at least 1) or a fraction of an epoch."
        )
    for group in ("model", "data"):
        _check_groups(group, _load(config[group].class_path), config[group].get("init_args") or Namespace())
    model = _load(config.model.class_path)
    verbs = verbs_of(model)
    if verb not in verbs:
        raise UsageError(
            f"{model.__name__} cannot {verb}, this config is for: lightning {' or '.join(verbs)}."
        )


def check_devices(trainer: Namespace, environment: Mapping[str, str]) -> None:
    """Finds settings that would start too many processes, or wait for processes that nothing starts.

    Raises:
        UsageError: fewer devices are here than are asked for, or nothing starts the other nodes.
    """
    if trainer.num_nodes > 1 and not _LAUNCHERS & set(environment):
        raise UsageError(
            f"'trainer.num_nodes' is {trainer.num_nodes}, but nothing starts the other nodes: this command "
            "would wait for them. Start it on each node with torchrun or srun; see the README."
        )
    accelerator, num_gpus = trainer.accelerator, torch.cuda.device_count()
    if not re.fullmatch(r"\d+", wanted := str(trainer.devices)):
        return  # auto, or devices by their numbers, which Lightning checks
    if accelerator in ("gpu", "cuda") or (accelerator == "auto" and num_gpus):
        if int(wanted) > num_gpus and not torch.backends.mps.is_available():
            mend = f"--trainer.devices {num_gpus}" if num_gpus else "--trainer.accelerator cpu"
            raise UsageError(f"'trainer.devices' is {wanted}, but this machine has {num_gpus} GPUs: {mend}.")
        return
    if {"LOCAL_RANK", "SLURM_PROCID"} & set(environment):
        return  # this process is one of them already
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if int(wanted) > max(cores, _FEW_PROCESSES) and accelerator in ("cpu", "auto"):
        raise UsageError(
            f"'trainer.devices' is {wanted}, but this machine has {num_gpus} GPUs and {cores} cores: set "
            f"--trainer.devices {cores} or fewer."
        )


def needs_weights(verb: str, config: Namespace) -> bool:
    """Whether a job needs a network that a fit with the same config has trained."""
    model = _load(config.model.class_path)
    return verb != "fit" and issubclass(model, NetworkModule) and verb in verbs_of(model)


def _check_groups(path: str, owner: type, values: Namespace) -> None:
    hints = {
        name: hint for base in reversed(owner.__mro__) for name, hint in get_type_hints(base.__init__).items()
    }
    for name, value in vars(values).items():
        if dataclasses.is_dataclass(hints.get(name)) and not isinstance(value, Namespace):
            raise UsageError(f"'{path}.{name}' wants a mapping of options, found {value!r}.")


def check_weights(config: Namespace, checkpoint: str | Path) -> None:
    """
    Raises:
        ValueError: `checkpoint` holds another kind of network than the config's.
    """
    model = _load(config.model.class_path)
    if not issubclass(model, NetworkModule):
        return
    if (found := read_description(checkpoint)["kind"]) != model.kind:
        raise ValueError(
            f"{checkpoint} holds a network of kind '{found}', wanted '{model.kind}'. "
            "Name a checkpoint of this job's own run folder as ckpt_path."
        )


def underlying(error: Exception) -> BaseException:
    """What a class raised while it was built; jsonargparse reports it as a value of the wrong type."""
    inner: BaseException = error
    while str(inner).startswith(_UNION) and inner.__cause__ is not None:
        inner = inner.__cause__
    return inner


def one_line(error: BaseException) -> str:
    """The message on one line; of an error from a loader worker, which holds a traceback, the last line."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and "DataLoader worker" in lines[0]:
        return lines[-1].partition(": ")[2]
    return " ".join(lines) or type(error).__name__


def usage_line(error: Exception, args: list[str]) -> str:
    """What is wrong with an expanded command line, and in which of its configs.

    Args:
        error: what the parser raised.
        args: the command line that it parsed.
    """
    if isinstance(error, UsageError):
        return one_line(error)
    causes = _causes(error)
    path, class_path = _path(causes), _class_path(causes)
    leaf = str(causes[-1]).splitlines()[0]
    if match := re.search(r"argument (\S+): expected one argument", leaf):
        return f"{_without_value(match[1], args)} wants a value."
    if match := re.search(r"unrecognized arguments: (\S+)", leaf):
        if not match[1].startswith("--"):
            return f"{leaf}."
        key = match[1].removeprefix("--").partition("=")[0].split(".")
        path = [*path, *key]
        message = _unknown(path, class_path, within=key[:-1])
    elif match := re.search(r"^Group '(.+)' does not accept option '(.+)'", leaf):
        path = [*path, *match[1].split("."), *match[2].split(".")]
        message = _unknown(path, class_path, within=match[1].split("."))
    elif match := re.search(r"ption '(.+)'", leaf):
        path = [*path, *match[1].split(".")]
        message = _unknown(path, class_path)
    elif match := re.search(
        r"(?:import path string: |module 'vqvae2[\w.]*' has no attribute ')(\w+)'?$", leaf
    ):
        message = f"'{'.'.join(path)}': there is no class '{match[1]}'.{_suggest(match[1], [*class_paths()])}"
    elif match := re.search(r"required: (.+)", leaf):
        message = _missing([*path, match[1]])
    elif match := re.search(r"Expected a (.+)\. Got value: (.*)", leaf):
        message = f"'{'.'.join(path)}' wants {_wanted(causes, match[1])}, found {match[2]!r}."
    else:
        message = f"'{'.'.join(path)}': {leaf}" if path else leaf
    source = origin(path, args)
    return f"{source}: {message}" if source else message


def _causes(error: BaseException) -> list[BaseException]:
    causes = [error]
    while (inner := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(inner)
    return causes


def _path(causes: list[BaseException]) -> list[str]:
    """The keys from the outermost to the one at fault; causes in a row report the same key."""
    found = [match[1] for cause in causes if (match := re.match(r'Parser key "(.+)":', str(cause)))]
    keys = [key for key, before in zip(found, [None, *found], strict=False) if key != before]
    return [part for key in keys for part in key.split(".")]


def _class_path(causes: list[BaseException]) -> str | None:
    matches = [re.match(r"Problem with given class_path '(.+)'", str(cause)) for cause in causes]
    return next((match[1] for match in reversed(matches) if match), None)


def _unknown(path: list[str], class_path: str | None, within: Sequence[str] = ()) -> str:
    """Of a key that nothing takes; `within` are the groups between it and the class at `class_path`."""
    owner = _GROUPS.get(".".join(path[:-1]))
    if class_path is not None:
        owner = _load(class_path)
        for group in within:
            owner = get_type_hints(owner.__init__).get(group, owner)
    if owner is None:
        known, name, of = list(_TOP_LEVEL), path[0], ""
    else:
        # Unlike a signature, the parser sees what ** hands on to other classes.
        known, name = ArgumentParser(exit_on_error=False).add_class_arguments(owner), path[-1]
        of = f" of {owner.__name__}"
    return f"'{'.'.join(path)}' is not an option{of}.{_suggest(name, known)}"


def _load(class_path: str) -> type:
    module, _, name = class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _without_value(flag: str, args: list[str]) -> str:
    """Which option of a command line, as it stands there, lacks its value; `flag` is its group."""
    names = flag.split("/")
    for arg, following in pairwise([*args, "--"]):
        if arg.partition(".")[0] in names and following.startswith("--"):
            return arg
    return flag


def _missing(path: list[str]) -> str:
    if path[-1].endswith(".model"):
        return "no model: name a config with -c configs/NAME.yaml."
    return f"'{'.'.join(path)}' is missing: it has no default."


def _wanted(causes: list[BaseException], leaf_type: str) -> str:
    union = re.search(r"\nSubtypes: \[(.+)\]\n", str(causes[-2])) if len(causes) > 1 else None
    wanted = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", union[1] if union else leaf_type)
    return wanted.replace("typing.", "").replace(", NoneType", "")


def _suggest(word: str, known: list[str]) -> str:
    renamed = _RENAMED.get(word)
    close = [renamed] if renamed in known else difflib.get_close_matches(word, known, n=1)
    return f" Did you mean '{close[0]}'?" if close else ""
