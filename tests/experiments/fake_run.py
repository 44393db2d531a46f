"""A run as the jobs left it, but for figures, names and counts: those are made up, so that pages show them.

Everything else, which fields there are and what figures are called, is a real run's.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from tests.experiments.real_run import like, real_accuracy, real_evaluation, real_run

CLASSES = ["zero", "one", "two"]
FIGURES = {  # of the run
    "mse_train": 0.021543,
    "mse_val": 0.0222346,
    "nll_top_val": 2.13728,
    "bits_val": 20170.4,
    "perplexity_top": 57.3342,
}


def legend() -> dict[str, dict[str, Any]]:
    """What the job calls its figures."""
    return real_evaluation()["legend"]


def row(key: str, kind: str, num_images: int, shift: float, **figures: Any) -> dict[str, Any]:
    """A set of images; `shift` makes its figures its own."""
    candidate, _, fraction = key.partition("@")
    rows = real_evaluation()["sets"]
    template = next(found for found in rows if found["kind"] == kind)
    written = {
        "fid_classifier": 0.81234 + shift,
        "fid_star_classifier": 0.61234 + shift,
        "is_classifier": 4.4421 - shift,
        "is_std_classifier": 0.123456 + shift,
        "precision_classifier": 0.7123 + shift / 3,
        "recall_classifier": 0.6171 - shift / 2,
        "class_accuracy": 0.8765 + shift / 4,
        **figures,
    }
    assert written.keys() <= template["figures"].keys() | rows[0]["figures"].keys()
    return like(
        template,
        key=key,
        candidate=candidate if kind == "samples" else None,
        fraction=float(fraction or 1),
        num_images=num_images,
        location="runs/fake/<b>samples</b>" if kind == "samples" else "shards & tars",
        figures=written,
    )


def evaluation() -> dict[str, Any]:
    """The content of a metrics.json."""
    real = real_evaluation()
    sets = [
        row(
            "samples",
            "samples",
            1000,
            0.0,
            class_accuracy_by_class=[0.91, None, 0.7725],
            kid_classifier=0.0123456,
        ),
        row("samples@0.25", "samples", 250, -0.21),
        row("held_out", "held_out", 465, -0.5, kid_classifier=-0.0000123),
        row("reconstructions", "reconstructions", 465, 0.3, kid_classifier=0.0543),
    ]
    reasons = {
        ("samples@0.25", "kid"): "250 images are fewer than <a subset> of 1000",
        ("samples", "fid_infinity"): "1000 images, wanted 50000",
    }
    left_out = [
        like(real["left_out"][0], set=name, metric=metric, reason=reason)
        for (name, metric), reason in reasons.items()
    ]
    shown = {key for found in sets for key in found["figures"]} | FIGURES.keys()
    assert shown <= real["legend"].keys()
    query = like(
        real["neighbours"][0],
        index=17,
        label=2,
        features=[like(real["neighbours"][0]["features"][0], index=4, key="d4", distance=1.23456)],
        pixels=[like(real["neighbours"][0]["pixels"][0], index=9, key="d9", distance=4.56789)],
    )
    return like(
        real,
        sets=sets,
        figures=FIGURES,
        legend={key: entry for key, entry in real["legend"].items() if key in shown},
        left_out=left_out,
        counts=like(real["counts"], samples=1000, real=4535, held_out=465),
        unreadable=like(real["unreadable"], real=17),
        neighbours=[query],
        rejection=None,
        inputs=like(real["inputs"], real="demo:digits", channels=1),
        command="lightning test -c configs/fake_eval.yaml --data.note '<script>alert(1)</script>'",
    )


def accuracy(trained_on: str, top1: float) -> dict[str, Any]:
    """The content of an accuracy.json."""
    real = real_accuracy()
    return like(
        real,
        trained_on=trained_on,
        num_train=1234,
        num_images=465,
        real=like(real["real"], top1=top1, by_class=[0.5123, 0.6234, 0.7345]),
        reconstructed=like(real["reconstructed"], top1=top1 - 0.0111, by_class=[0.4, 0.5, 0.6]),
        classes=CLASSES,
        data="demo:digits",
    )


def make_run(folder: Path, content: dict[str, Any] | None = None) -> Path:
    """A whole run in `folder`: evaluation, pictures, logs, accuracies.

    Args:
        folder: of the data set's runs; its name is the data set's.
        content: of eval/metrics.json; `evaluation()` if None.
    """
    shutil.copytree(real_run(), folder)
    write_json(folder / "eval/metrics.json", content or evaluation())
    for stage, top1 in (("cas", 0.8123), ("classifier", 0.9678)):
        write_json(folder / stage / "accuracy.json", accuracy(f"runs/fake/{stage}", top1))
    return folder


def write_evaluation(folder: Path, content: dict[str, Any]) -> None:
    """An evaluation and its pictures."""
    shutil.copytree(real_run() / "eval", folder)
    write_json(folder / "metrics.json", content)


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
