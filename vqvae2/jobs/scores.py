"""The table that the sample job writes beside its shards: the rejection classifier's score of every sample.

Its columns are the sample's `index`, its `label`, its log score (`critic_log_score`; empty if there is no
rejection classifier) and one `nll_LEVEL` for each level, in nats.
"""

import csv
import json
from pathlib import Path

import torch
from torch import Tensor

from vqvae2.data.sources import ImageSource
from vqvae2.storage.job_file import JOB

SCORES = "scores.csv"
# The names in files since the first samples. They stay, so that old samples can be read and completed.
LOG_SCORE = "critic_log_score"  # in scores.csv, in the samples' facts and in metrics.json
SCORER = "critic"  # the rejection classifier, in job.json, manifest.json and metrics.json


def read_scores(source: ImageSource) -> Tensor:
    """The log score of each sample of a source, float64 [N], in the source's order.

    Raises:
        ValueError: the table is not there, holds no scores or something else, or lacks a sample, or knows one
            under another label.
    """
    path = _beside(source, SCORES)
    if not path.is_file():
        raise ValueError(f"{source.location} has no scores: there is no {path}. {_HOW_TO_SCORE}")
    known = _read(path)
    return torch.tensor([_score(source, i, known, path) for i in range(len(source))], dtype=torch.float64)


def read_scorer(source: ImageSource) -> str | None:
    """Fingerprint of the classifier that gave the scores; None if there is no `job.json` with the samples."""
    path = _beside(source, JOB)
    return json.loads(path.read_text(encoding="utf-8"))["identity"].get(SCORER) if path.is_file() else None


def _beside(source: ImageSource, name: str) -> Path:
    location = Path(source.location).expanduser()
    return (location if location.is_dir() else location.parent) / name


_HOW_TO_SCORE = (
    "Sample with a rejection classifier: lightning predict -c configs/X_sample.yaml "
    "--model.rejection_classifier runs/X/classifier/last.ckpt. Or give it to this job, which then scores the "
    "samples: --model.rejection_classifier runs/X/classifier/last.ckpt."
)


def _read(path: Path) -> dict[int, tuple[int, float]]:
    """Label and score by the sample's number."""
    with path.open(encoding="utf-8", newline="") as file:
        table = csv.DictReader(file)
        missing = {"index", "label", LOG_SCORE} - set(table.fieldnames or ())
        if missing:
            raise ValueError(
                f"{path} has no column {', '.join(sorted(missing))}. Sample again, or give a classifier "
                "that scores the samples: --model.rejection_classifier CHECKPOINT."
            )
        known = {}
        for row in table:
            if row[LOG_SCORE] == "":
                raise ValueError(f"{path} has no scores. {_HOW_TO_SCORE}")
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
            "give a classifier that scores the samples: --model.rejection_classifier CHECKPOINT."
        )
    label, score = known[number]
    if label != source.label(i):
        raise ValueError(
            f"{path} says that {source.name(i)} is of class {label}, its .cls member says {source.label(i)}: "
            "the table belongs to other samples. Sample again."
        )
    return score
