"""The folders of stages in a run, and in which settings the stages of several runs differ."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from report_parts import NONE
from run_results import STAGES

CHECKPOINTS = ("last.ckpt", "best.ckpt")
LEFT = ("config.yaml", "metrics.csv", "metrics.json", "accuracy.json", "manifest.json", *CHECKPOINTS)
OWN = "RUN"  # stands for a run's own folder in its settings


def stages_of(*folders: Path) -> list[str]:
    """Folders of these runs in which a stage has left something, in the order of the stages."""
    found = {path.parent.name for folder in folders for file in LEFT for path in folder.glob(f"*/{file}")}
    known = [*STAGES, "eval"]
    return sorted(found, key=lambda stage: (known.index(stage) if stage in known else len(known), stage))


def differing_settings(folders: Sequence[Path]) -> list[list[str]]:
    """Rows of a setting and its value in each run; only runs that have the stage are compared.

    Raises:
        ValueError: a config.yaml cannot be read.
    """
    stages: dict[tuple[str, tuple[str, ...]], list[str]] = {}  # by the setting and its values
    for stage in stages_of(*folders):
        found = [settings_of(folder, stage) for folder in folders]
        for key in dict.fromkeys(key for own in found if own for key in own):
            cells = tuple(NONE if own is None else own.get(key, "null") for own in found)
            if len({*cells} - {NONE}) > 1:
                stages.setdefault((key, cells), []).append(stage)
    return [[f"{', '.join(where)}: {key}", *cells] for (key, cells), where in stages.items()]


def settings_of(folder: Path, stage: str) -> dict[str, str] | None:
    """The values in a stage's config.yaml by their dotted names; the run's own folder is `RUN` in them."""
    path = folder / stage / "config.yaml"
    if not path.is_file():
        return None
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no settings by name. Take it from the run again.")
    home = (config.get("trainer") or {}).get("default_root_dir") or ""
    written = str(config.pop("run", None) or home.removesuffix(f"/{stage}")).rstrip("/")
    own = [place for place in (written, str(folder), str(folder.resolve())) if place]
    return {key: in_run(value, own) for key, value in flat("", config)}


def flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Dotted names without `init_args`; an object goes by its class, as classes move between versions."""
    if (
        isinstance(value, list)
        and value
        and all(isinstance(item, dict) and "class_path" in item for item in value)
    ):
        classes = [class_of(item) for item in value]
        yield name, classes
        for i, item in enumerate(value):
            again = f"-{classes[: i + 1].count(classes[i])}" if classes[:i].count(classes[i]) else ""
            yield from flat(f"{name}.{classes[i]}{again}", item.get("init_args") or {})
    elif isinstance(value, dict):
        if is_object(value):
            yield name, class_of(value)
            value = value.get("init_args") or {}
        for key, item in value.items():
            yield from flat(f"{name}.{key}" if name else key, item)
    else:
        yield name, value


def is_object(value: Any) -> bool:
    return isinstance(value, dict) and "class_path" in value


def class_of(value: Mapping[str, Any]) -> str:
    return value["class_path"].rpartition(".")[2]


def in_run(value: Any, own: Sequence[str]) -> str:
    """As text, with `RUN` for the run's own folder where a path begins with it."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    for folder in own:
        text = re.sub(rf'(^|"){re.escape(folder)}(?=/|"|$)', rf"\1{OWN}", text)
    return text
