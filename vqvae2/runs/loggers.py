"""Where metrics go: a CSV file in the run folder, always; Weights & Biases, if wanted and possible."""

import csv
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch.loggers
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import Tensor


class MetricsFile(Logger):
    """One row a call in `metrics.csv` of the run folder; its columns grow with what is logged.

    Args:
        folder: the run folder.
        append: goes on with the rows there are, up to where the first row logged stood, which a killed run
            may have got beyond; otherwise the file starts anew.
    """

    def __init__(self, folder: str | Path, *, append: bool = False) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self._append = append
        self._columns: list[str] = []

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """The run folder's `config.yaml` has them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Tensor | float], step: int | None = None) -> None:
        row = {"step": step} | {name: float(value) for name, value in metrics.items()}
        if not self._columns:
            self._rewrite(self._rows_before(row) if self._append else [], list(row))
        elif new := [name for name in row if name not in self._columns]:
            self._rewrite(self._rows(), new)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    def _rows(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def _rows_before(self, row: dict[str, Any]) -> list[dict[str, str]]:
        """The rows of earlier steps, and those of the same step that were logged before one like `row`."""
        kept = []
        for other in self._rows():
            shared = {name for name, value in other.items() if value} & set(row) - {"step", "epoch"}
            if not other["step"].isdecimal() or (int(other["step"]), bool(shared)) >= (row["step"], True):
                break
            kept.append(other)
        return kept

    def _rewrite(self, rows: list[dict[str, str]], new_columns: list[str]) -> None:
        names = [name for row in rows[:1] for name in row] + self._columns + new_columns
        self._columns = list(dict.fromkeys(names))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_suffix(".csv.tmp")
        with aside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)
        aside.replace(self.path)


@dataclass
class WandbSettings:
    """Weights & Biases; any of these options turns it on.

    Args:
        project: the W&B project.
        name: the run's name; the run folder's path when not given.
        group: runs of a group are shown together.
        tags: labels to filter by.
        mode: online, offline or disabled; if not given, WANDB_MODE, and online if that is not set.
    """

    project: str = "vqvae2"
    name: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    mode: Literal["online", "offline", "disabled"] | None = None


class WandbLogger(lightning.pytorch.loggers.WandbLogger):
    """W&B in the run folder. Without a key or an answer it warns and logs offline; it never ends a run.

    Args:
        settings: of the user.
        folder: the run folder, which also keeps the W&B run's id.
        append: goes on with that W&B run, as the job goes on with an earlier one of its own.

    Raises:
        ValueError: W&B knows no such setting, such as WANDB_MODE or the project's name.
    """

    def __init__(self, settings: WandbSettings, folder: str | Path, *, append: bool = False) -> None:
        mode = settings.mode or os.environ.get("WANDB_MODE") or "online"
        name = settings.name or str(folder).removeprefix("runs/")
        _mend_credentials()
        if mode != "disabled":
            _check_settings(settings.project)
        if mode in ("online", "run") and (reason := why_offline()):
            rank_zero_warn(
                f"W&B {reason}, so this run is logged offline; "
                f"send it later with: wandb sync {folder}/wandb/offline-run-*"
            )
            mode = "offline"
        super().__init__(project=settings.project, name=name, save_dir=str(folder))
        self._run: Any = None
        self._options = {"project": settings.project, "name": name, "dir": str(folder), "mode": mode}
        self._options |= {"group": settings.group, "tags": settings.tags, "resume": "allow"}
        self._id_file = Path(folder) / "wandb-run-id"
        if append and self._id_file.is_file():
            self._options["id"] = self._id_file.read_text(encoding="utf-8").strip()

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, which begins when it is first asked for. Lightning's would keep no offline one."""
        if self._run is None:
            self._run = self._begin()
        return self._run

    def _begin(self) -> Any:
        import wandb

        try:
            run = wandb.init(**self._options)
        except wandb.Error as error:
            rank_zero_warn(f"W&B did not start ({error}), so this run is logged offline.")
            run = wandb.init(**self._options | {"mode": "offline"})
        run.define_metric("trainer/global_step")  # which Lightning logs beside every figure
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        if self._options["mode"] != "disabled":
            self._id_file.parent.mkdir(parents=True, exist_ok=True)
            self._id_file.write_text(run.id, encoding="utf-8")
        return run


def _mend_credentials() -> None:
    """W&B starts not even offline with a line break after its key, or without the file of its token."""
    if key := os.environ.get("WANDB_API_KEY"):
        os.environ["WANDB_API_KEY"] = key.strip()
    token = os.environ.get("WANDB_IDENTITY_TOKEN_FILE")
    if token and not Path(token).is_file():
        rank_zero_warn(f"W&B's token is left out: WANDB_IDENTITY_TOKEN_FILE is {token}, which is no file.")
        del os.environ["WANDB_IDENTITY_TOKEN_FILE"]


def _check_settings(project: str) -> None:
    import wandb

    try:
        wandb.Settings(project=project)
        wandb.setup()  # reads the environment and W&B's own files
    except (wandb.Error, ValueError) as error:
        reason = ": ".join(line.strip() for line in str(error).splitlines()[-3:-1]) or str(error)
        raise ValueError(f"W&B cannot be set up: {reason}. Mend it (WANDB_…), or leave W&B out.") from error


def why_offline() -> str | None:
    """What keeps W&B from logging online; None if it has a key, which its server may yet refuse."""
    import wandb

    try:
        found = wandb.login(prompt=False, verify=False)
    except wandb.Error as error:
        return f"does not accept the key ({error})"
    return None if found else "has no key (WANDB_API_KEY or `wandb login`)"
