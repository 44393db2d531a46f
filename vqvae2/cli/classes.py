"""The suite's classes by their names, which configs and the command line give in place of import paths.

`class_path: AutoencoderModule` stands for its import path, and so does an import path from before the class
moved: the `config.yaml` of an older run still names its classes.
"""

import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parents[1]
_CLASS = re.compile(r"^class ([A-Za-z]\w*)", re.MULTILINE)


@cache
def class_paths() -> dict[str, str]:
    """The import path of every public class of the suite whose name no other has. Imports nothing."""
    found: list[tuple[str, str]] = []
    for file in sorted(_PACKAGE.rglob("*.py")):
        module = ".".join((_PACKAGE.name, *file.relative_to(_PACKAGE).with_suffix("").parts))
        found += [(name, f"{module}.{name}") for name in _CLASS.findall(file.read_text(encoding="utf-8"))]
    times = Counter(name for name, _ in found)
    return {name: path for name, path in found if times[name] == 1}


def class_path(name: str) -> str:
    """The import path of a class that is given by its name or by a path, which may be an older one."""
    own, _, last = name.rpartition(".")
    return class_paths().get(last, name) if not own or name.startswith(f"{_PACKAGE.name}.") else name


def with_class_paths(config: Any) -> Any:
    """A config with the import path of each class that it names."""
    if isinstance(config, dict):
        filled = {key: with_class_paths(value) for key, value in config.items()}
        if isinstance(name := config.get("class_path"), str):
            filled["class_path"] = class_path(name)
        return filled
    return [with_class_paths(value) for value in config] if isinstance(config, list) else config
