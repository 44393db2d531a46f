"""Errors as the user reads them: one line that says what was found, what was wanted and how to mend it.

jsonargparse reports a mistake as a page that names every type it tried. The exception's causes hold the same
facts one by one, from the outermost key to the value at fault, so the line is made from those.
"""

import difflib
import importlib
import inspect
import re

from lightning.pytorch import Trainer

from vqvae2.callbacks.run_folder import RunCheckpoint
from vqvae2.composition import UsageError, origin

_TOP_LEVEL = ("trainer", "model", "data", "checkpoint", "wandb", "seed_everything", "ckpt_path", "base")
_GROUPS = {"trainer": Trainer, "checkpoint": RunCheckpoint}
_UNION = "Does not validate against any of the Union subtypes"


def check_verb(args: list[str], verbs: list[str]) -> None:
    """
    Raises:
        UsageError: the command line does not start with one of `verbs` (or an option such as --help).
    """
    if not args:
        raise UsageError(
            f"name a command ({', '.join(verbs)}) and a config: lightning fit -c configs/NAME.yaml"
        )
    if args[0] not in verbs and not args[0].startswith("-"):
        raise UsageError(
            f"'{args[0]}' is not a command.{_suggest(args[0], verbs)} Commands are {', '.join(verbs)}."
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
    if match := re.search(r"unrecognized arguments: (\S+)", leaf):
        return _unknown(match[1].removeprefix("--"), None) if match[1].startswith("--") else f"{leaf}."
    if match := re.search(r"ption '(.+)'", leaf):
        path = [*path, *match[1].split(".")]
        message = _unknown(".".join(path), class_path)
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


def _unknown(key: str, class_path: str | None) -> str:
    group, _, name = key.rpartition(".")
    owner = _GROUPS.get(group)
    if class_path is not None:
        module, _, class_name = class_path.rpartition(".")
        owner = getattr(importlib.import_module(module), class_name)
    if owner is None:
        known, name, of = list(_TOP_LEVEL), key.split(".")[0], ""
    else:
        known, of = list(inspect.signature(owner).parameters), f" of {owner.__name__}"
    return f"'{key}' is not an option{of}.{_suggest(name, known)}"


def _missing(path: list[str]) -> str:
    if path[-1].endswith(".model"):
        return "no model: name a config with -c configs/NAME.yaml."
    return f"'{'.'.join(path)}' is missing: it has no default."


def _wanted(causes: list[BaseException], leaf_type: str) -> str:
    union = re.search(r"\nSubtypes: \[(.+)\]\n", str(causes[-2])) if len(causes) > 1 else None
    wanted = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", union[1] if union else leaf_type)
    return wanted.replace("typing.", "").replace(", NoneType", "")


def _suggest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean '{close[0]}'?" if close else ""
