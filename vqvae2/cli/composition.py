"""Configs that build on other configs: a YAML names its bases in a top-level list `base:`.

    base: [parts/fit.yaml, parts/demo_images.yaml]   # relative to the file that says so

What a config says itself goes over what its bases say, and a later base over an earlier one. Mappings merge
deeply, `callbacks+:` appends to a list instead of replacing it, and another `class_path` replaces the class
with all its arguments.
"""

import difflib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import yaml

from vqvae2.cli.classes import with_class_paths

BASE = "base"
_FLAGS = ("-c", "--config")


class UsageError(ValueError):
    """The command line or a config asks for something that does not exist."""


def config_files(args: list[str]) -> list[Path]:
    """All configs that a command line names, each after its bases.

    Raises:
        UsageError: a config or one of its bases does not exist, is not a YAML mapping, or builds on itself.
    """
    named = [value for flag, value in pairwise(_split_equals(args)) if flag in _FLAGS]
    return [path for value in named for path in _with_bases(Path(value))]


def compose(path: Path) -> dict:
    """A config merged with all that it builds on.

    Raises:
        UsageError: as `config_files`.
    """
    composed: dict = {}
    for file in _with_bases(path):
        composed = merge(composed, read_config(file))
    return with_class_paths({key: value for key, value in composed.items() if key != BASE})


def merge(under: dict, over: dict) -> dict:
    """`over` laid on `under`, neither changed; see the top of this file."""
    classes = [mapping.get("class_path") for mapping in (under, over)]
    if all(classes) and classes[0] != classes[1]:
        return over
    merged = dict(under)
    for key, value in over.items():
        plain = key.removesuffix("+")
        if key != plain and isinstance(listed := merged.get(plain, merged.get(key)), list):
            merged[plain if plain in merged else key] = listed + value
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def read_config(path: Path) -> dict:
    """The mapping in a YAML file.

    Raises:
        UsageError: there is no such file, or it is not a YAML mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such config.{_did_you_mean(path)}") from None
    except yaml.MarkedYAMLError as error:
        raise UsageError(f"{path}, line {error.problem_mark.line + 1}: not YAML: {error.problem}.") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: cannot be read as a config: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: wanted a mapping such as 'trainer: …', found {type(content).__name__}.")
    return content


def origin(key: list[str], args: list[str]) -> Path | None:
    """Which config of a command line sets the dotted `key` last.

    None when the command line itself sets it, or no config does.
    """
    options = {arg.partition("=")[0].removeprefix("--").replace("init_args.", "") for arg in args}
    if ".".join(key) in options:
        return None
    return next((path for path in reversed(config_files(args)) if _sets(read_config(path), key)), None)


def _split_equals(args: list[str]) -> Iterator[str]:
    for arg in args:
        flag, equals, value = arg.partition("=")
        yield from (flag, value) if equals and flag in _FLAGS else (arg,)


def _with_bases(path: Path, chain: tuple[Path, ...] = ()) -> list[Path]:
    """The bases of a config, theirs before them, and the config; a base shared by several comes once."""
    if path.resolve() in chain:
        raise UsageError(f"{path}: builds on itself; take it out of its own '{BASE}'.")
    bases = read_config(path).get(BASE, [])
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UsageError(f"{path}: '{BASE}' wants a list of files, found {bases!r}.")
    files: dict[Path, None] = {}
    for base in (path.parent / base for base in bases):
        if not base.is_file():
            raise UsageError(f"{path}: its base {base} does not exist.{_did_you_mean(base)}")
        files |= dict.fromkeys(_with_bases(base, (*chain, path.resolve())))
    return [*files, path]


def _did_you_mean(path: Path) -> str:
    neighbours = [str(other) for other in path.parent.glob("*.yaml")]
    close = difflib.get_close_matches(str(path), neighbours, n=1)
    return f" Did you mean {close[0]}?" if close else ""


def _sets(node: object, key: list[str]) -> bool:
    for name in key:
        if isinstance(node, dict) and name not in node:
            node = node.get("init_args", node)
        if not isinstance(node, dict):
            return isinstance(node, list)  # such as trainer.callbacks: what is inside has no name
        if name not in node and f"{name}+" not in node:
            return False
        node = node.get(name, node.get(f"{name}+"))
    return bool(key)
