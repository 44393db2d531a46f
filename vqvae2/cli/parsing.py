"""The parser of the command line: configs with their bases, no key twice, `~` as the home."""

import os
import re
from pathlib import Path
from typing import Any, ClassVar

import yaml
from jsonargparse import Namespace, get_loader, set_loader
from lightning.pytorch.cli import LightningArgumentParser

from vqvae2.cli.composition import UsageError, check_keys
from vqvae2.cli.recipes import compose
from vqvae2.surroundings import at_home

_NO_PATHS = {"config", "wandb"}  # the configs that were read; names, labels
_load_yaml = get_loader("yaml")


class SuiteParser(LightningArgumentParser):
    """Reads a config together with those that it builds on."""

    composed: ClassVar[dict[str, dict]] = {}  # what configs say, where that is known already

    def parse_path(self, path: str | os.PathLike, **kwargs: Any) -> Any:
        # Sorted, because the parser wants class_path before init_args.
        content = self.composed.get(str(path)) or compose(Path(path))
        return self.parse_string(yaml.safe_dump(content, sort_keys=True), **kwargs)


def refuse_keys_given_twice() -> None:
    """In mappings on the command line too, from now on, such as --data.samples '{a: x, a: y}'."""
    set_loader("yaml", _load_strictly, exceptions=(yaml.YAMLError,))


def _load_strictly(text: str) -> Any:
    if re.search("[\ud800-\udfff]", text):
        return text  # bytes of a file's name that are no text: YAML has them only escaped
    if "{" in text or "\n" in text:
        check_keys(text)
    # The parser's own reader, which is in C, refuses them escaped too.
    return yaml.safe_load(text) if re.search(r"\\u[dD][89a-fA-F]", text) else _load_yaml(text)


def expand_homes(config: Namespace) -> None:
    """Makes every `~` that begins an option, or a part of one, the home: all paths of a job pass here.

    Raises:
        UsageError: there is no such home.
    """
    for name in vars(config).keys() - _NO_PATHS:
        config[name] = _expanded(config[name], name)


def _expanded(value: Any, name: str) -> Any:
    if isinstance(value, str | Path):
        try:
            found = at_home(str(value))
        except ValueError as error:
            raise UsageError(f"'{name}': {error}") from None
        return found if isinstance(value, str) else Path(found)
    if isinstance(value, list | tuple):
        return type(value)(_expanded(each, name) for each in value)
    if isinstance(value, Namespace | dict):
        for key, each in dict(vars(value) if isinstance(value, Namespace) else value).items():
            value[key] = _expanded(each, f"{name}.{key}".replace(".init_args", ""))
    return value
