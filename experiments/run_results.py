"""The results of a run's stages: evaluations, tested classifiers, pictures; and the stages' commands."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from evaluations import FORMAT, read_json
from report_evaluation import Evaluation

ACCURACY = "vqvae2-accuracy-1"  # as vqvae2.training.classification_report writes it
STAGES = {  # folders of a run, and the commands that fill them
    "vqvae": "lightning fit -c configs/{0}_vqvae.yaml",
    "latents": "lightning predict -c configs/{0}_encode.yaml",
    "top": "lightning fit -c configs/{0}_top.yaml",
    "path": "lightning fit -c configs/{0}_path.yaml",
    "mid": "lightning fit -c configs/{0}_mid.yaml",
    "bottom": "lightning fit -c configs/{0}_bottom.yaml",
    "classifier": "lightning fit -c configs/{0}_classifier.yaml; "
    "lightning test -c configs/{0}_classifier.yaml",
    "samples": "lightning predict -c configs/{0}_sample.yaml",
    "complete": "lightning predict -c configs/{0}_complete.yaml",
    "cas": "lightning fit -c configs/{0}_cas.yaml; lightning test -c configs/{0}_cas.yaml",
}


class Run(NamedTuple):
    """What the jobs of a data set have left."""

    folder: Path
    evaluations: list[Evaluation]
    cas: dict[str, Any] | None  # of a classifier trained on the samples
    ceiling: dict[str, Any] | None  # of one trained on real images

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def figures(self) -> dict[str, Any]:
        """Of the run, from all evaluations; the first that has one counts."""
        return {
            key: value
            for evaluation in reversed(self.evaluations)
            for key, value in evaluation.figures.items()
        }

    def of(self, evaluation: Evaluation, name: str) -> str:
        """A name that says of which evaluation it is, where there are several."""
        return name if len(self.evaluations) == 1 else f"{evaluation.folder.name}: {name}"

    def classes(self) -> list[str] | None:
        sources = [self.cas, self.ceiling, *(evaluation.content for evaluation in self.evaluations)]
        return next((found["classes"] for found in sources if found and found.get("classes")), None)

    def images(self, name: str) -> list[tuple[str, Path]]:
        """The latest pictures of that name, each with the candidate or the evaluation that it shows."""
        found: dict[tuple[Path, str], Path] = {}
        for evaluation in self.evaluations:
            for path in sorted((evaluation.folder / "images").glob(f"{name}*.png")):
                if match := re.fullmatch(rf"{name}(?:-(.+))?-\d+", path.stem):
                    found[evaluation.folder, match[1] or evaluation.folder.name] = path
        return [(of, path) for (_, of), path in found.items()]


def read_run(folder: Path, evals: list[str]) -> Run:
    """
    Raises:
        ValueError: an evaluation is missing, or a file is of another format; says how to make it.
    """
    evaluations = []
    for name in evals:
        where = folder / name if (folder / name).is_dir() or name == "eval" else Path(name)
        evaluation = read_evaluation(where, folder)
        if evaluation is None:
            raise ValueError(
                f"{where / 'metrics.json'} does not exist. "
                f"Evaluate the samples first: {evaluation_command(folder)}"
            )
        evaluations.append(evaluation)
    return Run(folder, evaluations, *read_accuracies(folder))


def read_evaluation(where: Path, run: Path) -> Evaluation | None:
    """The evaluation in a folder, of a run; None where there is none.

    Raises:
        ValueError: it is of another format.
    """
    content = read_json(where / "metrics.json", FORMAT, evaluation_command(run))
    return Evaluation(where, content) if content else None


def evaluation_command(run: Path) -> str:
    """The command that makes it."""
    return f"make eval-fid CONFIG={run.resolve().name}"


def read_accuracies(run: Path) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Of the classifiers trained on samples and on real images; None where one was not tested.

    Raises:
        ValueError: a file is of another format.
    """
    test = f"lightning test -c configs/{run.resolve().name}"
    cas, ceiling = (
        read_json(run / stage / "accuracy.json", ACCURACY, f"{test}_{stage}.yaml")
        for stage in ("cas", "classifier")
    )
    return cas, ceiling
