"""The table that the sample job writes beside its shards: a critic's score of every sample.

Its columns are the sample's `index`, its `label`, `critic_log_score` (empty without a critic) and one
`nll_LEVEL` a level, in nats.
"""

import csv
import json
from pathlib import Path

import torch
from torch import Tensor

from vqvae2.data.sources import ImageSource
from vqvae2.storage.job_file import JOB

SCORES = "scores.csv"
LOG_SCORE = "critic_log_score"


def read_scores(source: ImageSource) -> Tensor:
    """The critic's log score of each sample of a source, float64 [N], in the source's order.

    Raises:
        ValueError: the table is not there, holds no scores or something else, or lacks a sample, or knows one
            under another label.
    """
    path = _beside(source, SCORES)
    if not path.is_file():
        raise ValueError(f"{source.location} has no critic's scores: there is no {path}. {_HOW_TO_SCORE}")
    known = _read(path)
    return torch.tensor([_score(source, i, known, path) for i in range(len(source))], dtype=torch.float64)


def read_critic(source: ImageSource) -> str | None:
    """Fingerprint of the critic that gave the scores; None if the samples lie without their `job.json`."""
    path = _beside(source, JOB)
    return json.loads(path.read_text(encoding="utf-8"))["identity"].get("critic") if path.is_file() else None


def _beside(source: ImageSource, name: str) -> Path:
    location = Path(source.location).expanduser()
    return (location if location.is_dir() else location.parent) / name


_HOW_TO_SCORE = (
    "Sample with a critic, lightning predict -c configs/X_sample.yaml --model.critic "
    "runs/X/classifier/last.ckpt, or name one here to score the samples: --model.critic "
    "runs/X/classifier/last.ckpt."
)


def _read(path: Path) -> dict[int, tuple[int, float]]:
    """Label and score by the sample's number."""
    with path.open(encoding="utf-8", newline="") as file:
        table = csv.DictReader(file)
        missing = {"index", "label", LOG_SCORE} - set(table.fieldnames or ())
        if missing:
            raise ValueError(
                f"{path} has no column {', '.join(sorted(missing))}. Sample again, or name a critic that "
                "scores the samples: --model.critic CHECKPOINT."
            )
        known = {}
        for row in table:
            if row[LOG_SCORE] == "":
                raise ValueError(f"{path} has no critic's scores. {_HOW_TO_SCORE}")
            try:
                known[int(row["index"])] = int(row["label"]), float(row[LOG_SCORE])
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{path}, line {table.line_num}, does not hold a sample's numbers. Run the sample job "
                    "once more, which completes it."
                ) from error
    return known


def _score(source: ImageSource, i: int, known: dict[int, tuple[int, float]], path: Path) -> float:
    name = source.key(i).rpartition("/")[2]
    number = int(name) if name.isdecimal() else None
    if number not in known:
        raise ValueError(
            f"{path} has no score of {source.name(i)}. Run the sample job once more, which completes it, or "
            "name a critic that scores the samples: --model.critic CHECKPOINT."
        )
    label, score = known[number]
    if label != source.label(i):
        raise ValueError(
            f"{path} says that {source.name(i)} is of class {label}, its .cls member says {source.label(i)}: "
            "the table belongs to other samples. Sample again."
        )
    return score
