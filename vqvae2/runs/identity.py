"""What a run is, as far as its result depends on it, and whether another start is the same run."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import lightning as L
import numpy as np

from vqvae2.storage.job_file import CONTENTS
from vqvae2.training.schedules import Schedule

RUN = "run"  # the checkpoint's entry

_NOT_THE_RESULT = {"model.checkpoint_layers", "data.encode_views", "data.encode_flips"}
_LOCATIONS = {
    "data.train",
    "data.val",
    "data.holdout_of",
    "data.latents",
}  # what is there is compared instead
_TRAINER = (
    *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm"),
    *("limit_train_batches", "overfit_batches"),
)
_DRAWS = ("dropout", "revive_below")  # options, by the end of their names, whose draws differ by process
_EFFECTS = {  # by the beginning of the name; the first that fits
    "data.batch_size": "some samples of this epoch would come twice or not at all",
    "data.seed": "the order of the samples would change",
    "data.": "it would continue with other data",
    "model.": "it would continue with another model, loss or schedule",
    "seed_everything": "the random numbers would change",
    "trainer.precision": "its rounding would change",
    "trainer.": "its steps would change",
    "processes": "each process draws its own dropout, dropped levels and revived codes",
    "max_steps": "the learning rates so far were those of a run of another length",
}


class Difference(NamedTuple):
    """Of a setting: its value in the checkpoint's run and in this one."""

    name: str
    was: Any
    now: Any

    def __str__(self) -> str:
        effect = next(text for prefix, text in _EFFECTS.items() if self.name.startswith(prefix))
        return f"{self.name} was {self.was!r}, is {self.now!r} ({effect})"


def run_identity(
    config: Mapping[str, Any], data: L.LightningDataModule, trainer: L.Trainer
) -> dict[str, Any]:
    """Every setting that a fit's result depends on, by its dotted name; plain types.

    Not among them: devices, loader processes, what is validated, logged and saved when, and where the data
    lie: there, what lies there counts.

    Args:
        config: the composed config, as mappings.
        data: opened if it is not yet.
        trainer: not yet running.

    Raises:
        ValueError: the data cannot be opened.
    """
    found = {**_flat("model", config["model"]), **_data_identity(config["data"], data)}
    found |= {f"trainer.{name}": config["trainer"].get(name) for name in _TRAINER}
    found |= {
        "trainer.precision": trainer.precision,
        "seed_everything": config["seed_everything"],
        "processes": trainer.num_devices * trainer.num_nodes,
        "max_steps": trainer.max_steps,
    }
    kept = {name: value for name, value in found.items() if name not in _NOT_THE_RESULT}
    return json.loads(json.dumps(kept, default=str))


def differences(
    was: Mapping[str, Any], now: Mapping[str, Any], *, steps: int, schedule: Schedule | None
) -> list[Difference]:
    """What keeps a run from going on exactly: differing settings, less those that make no difference.

    Args:
        was: `run_identity` in the checkpoint.
        now: of this run.
        steps: that the checkpoint's run has done.
        schedule: of this run; another `max_steps` is exact if it gives those steps the same rates.
    """
    was, now = _by_class(was), _by_class(now)
    unknown = {name for name in {*now} - {*was} if name.startswith(f"data.{CONTENTS}.")}
    found = [
        Difference(name, was.get(name), now.get(name))
        for name in sorted({*was, *now} - unknown - _LOCATIONS)
        if was.get(name) != now.get(name)
    ]
    exact = set()
    if not any(value for name, value in now.items() if name.endswith(_DRAWS)):
        exact.add("processes")
    ends = (was.get("max_steps"), now.get("max_steps"))
    if schedule is None or _rates(schedule, steps, ends[0]) == _rates(schedule, steps, ends[1]):
        exact.add("max_steps")
    return [difference for difference in found if difference.name not in exact]


def _by_class(identity: Mapping[str, Any]) -> dict[str, Any]:
    """With the names of classes: where a class lies, and so what its import path is, may change."""
    is_path = {name for name, value in identity.items() if name.endswith("class_path") and value is not None}
    return {name: value.rpartition(".")[2] if name in is_path else value for name, value in identity.items()}


def moved(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The locations from which the same data are read as before, which were others then."""
    return [
        f"{now[name]} (before: {was[name]})"
        for name in sorted(_LOCATIONS & {*was} & {*now})
        if was[name] != now[name]
    ]


def concerns_network(difference: Difference, description: Mapping[str, Any]) -> bool:
    """Whether a setting belongs to what the checkpoint's weights are: those fit no other network."""
    option = difference.name.rpartition(".")[2]
    return difference.name.startswith("model.") and option in {
        **description,
        **description.get("network", {}),
    }


def listed(found: Iterable[object]) -> str:
    """The first few of them for a message."""
    found = [str(each) for each in found]
    more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    return "; ".join(found[:3]) + more


def _data_identity(config: Mapping[str, Any], data: L.LightningDataModule) -> dict[str, Any]:
    options = config.get("init_args") or {}
    if hasattr(data, "identity"):
        facts = data.identity()
    elif hasattr(data, "manifest"):
        manifest = data.manifest
        shards = {name: [asdict(shard) for shard in split] for name, split in manifest.splits.items()}
        content = json.dumps([manifest.spec.to_dict(), shards], sort_keys=True)
        facts = {"latents": str(data.latents), "shards": hashlib.sha256(content.encode()).hexdigest()[:16]}
    else:
        return _flat("data", config)
    own = {name: options[name] for name in ("batch_size", "seed") if name in options}
    return _flat("data", {"class_path": config["class_path"], **facts, **own})


def _flat(name: str, value: Any) -> dict[str, Any]:
    """Nested mappings as one, by dotted names as the command line has them."""
    if not isinstance(value, Mapping):
        return {name: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(name if key == "init_args" else f"{name}.{key}", inner)
    return flat


def _rates(schedule: Schedule, steps: int, total_steps: int | None) -> list[float]:
    """The schedule at some of the steps that are done, for a run of `total_steps`; -1 is without end."""
    total = float("inf") if total_steps in (None, -1) else total_steps
    if total == float("inf") and steps:
        try:
            schedule.rate(1, width=1, total_steps=total)
        except ValueError:  # a schedule that needs an end
            return []
    some = np.unique(np.linspace(1, steps, 16, dtype=int)) if steps else []
    return [schedule.rate(int(step), width=1, total_steps=total) for step in some]
