"""What job a folder of shards belongs to, so that a rerun completes it and another job is refused.

`job.json` is there before the first shard. Shards are renamed into their places whole, so all that a folder
with this job's `job.json` holds is of this job and whole, whatever ended an earlier run.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vqvae2.storage.shards import MANIFEST, Shard, write_json

JOB = "job.json"
SAMPLES_FORMAT = "vqvae2 samples"  # what a folder of samples says that it is
CONTENTS = "contents"  # an entry of an identity; earlier versions did not write it, then it is not compared


@dataclass(frozen=True)
class Job:
    """What a folder is filled with.

    Args:
        identity: decides what each sample is (plain types): of two jobs with the same one, the larger
            continues the smaller. Without what changes rounding alone, such as devices and batch sizes.
        num_samples: asked for, of each split.
    """

    identity: dict[str, Any]
    num_samples: dict[str, int]


def write_job(folder: Path, job: Job) -> None:
    """Writes `job.json` aside and moves it to its place."""
    write_json(folder / JOB, asdict(job))


def check_continues(folder: Path, job: Job) -> dict[str, int]:
    """Refuses to go on with another job's folder.

    Returns:
        How many samples of each split the folder's job asked for so far.

    Raises:
        ValueError: the folder does not say what job it is of, another one, or a larger one.
    """
    path = folder / JOB
    try:
        found = json.loads(path.read_bytes())
        identity, counts = found["identity"], found["num_samples"]
    except FileNotFoundError:
        raise ValueError(f"{folder} holds shards, but no {JOB} that names their job. {_mend()}") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} cannot be read. {_mend()}") from None
    known = {name: value for name, value in job.identity.items() if name in identity or name != CONTENTS}
    if difference := _difference(identity, json.loads(json.dumps(known))):
        name, theirs, ours = difference
        raise ValueError(
            f"{folder} belongs to another job: its {name} is {theirs}, this job's is {ours}. {_mend()}"
        )
    for split, count in job.num_samples.items():
        if counts.get(split, 0) > count:
            raise ValueError(
                f"{folder} belongs to a job of {counts[split]} {split}, this one asks for {count}. Files "
                f"are never removed automatically. Ask for as many. {_mend()}"
            )
    return counts


def written_by(folder: Path) -> str | None:
    """What kind of job a folder is of, which each identity says under "job"; None where it does not say."""
    try:
        return json.loads((folder / JOB).read_bytes())["identity"]["job"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _mend() -> str:
    return "Name another folder, or set the writer's overwrite to true, which replaces what is there."


def _difference(found: Any, wanted: Any, name: str = "") -> tuple[str, str, str] | None:
    """The first entry that differs: its name and both values, shortened."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in {**wanted, **found}:
            below = f"{name}.{key}" if name else key
            if difference := _difference(found.get(key), wanted.get(key), below):
                return difference
        return None
    return None if found == wanted else (name, _short(found), _short(wanted))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def listed_shards(folder: Path) -> dict[str, Shard]:
    """The shards of a folder's manifest by their file; none without a readable manifest."""
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
        splits = content["splits"].values() if "splits" in content else [content["shards"]]
        return {shard["file"]: Shard(**shard) for shards in splits for shard in shards}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
