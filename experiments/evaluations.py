"""What the tables of evaluations share: finding and reading a `metrics.json`, and printing rows."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FORMAT = "vqvae2-verdict-2"  # as vqvae2.evaluation.results writes it; importing that takes seconds
NONE = "-"  # stands where there is no figure


def read_evaluation(path: Path) -> dict[str, Any]:
    """The evaluation at `path`: its `metrics.json`, that file's folder, or the folder of a data set's runs.

    Raises:
        ValueError: there is none, or it is of an older format.
    """
    places = [path, path / "metrics.json", path / "eval" / "metrics.json"]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise ValueError(
            f"{path} holds no metrics.json. Evaluate the run first: make eval-fid CONFIG={path.name}"
        )
    return read_json(file, FORMAT, "make eval-fid")


def read_json(path: Path, wanted: str, command: str) -> dict[str, Any] | None:
    """The content of a file of the wanted format; None where there is no file.

    Args:
        path: of the file.
        wanted: format.
        command: that makes the file, for messages.

    Raises:
        ValueError: it cannot be read, or is of another format.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}). Make it again: {command}") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != wanted:
        raise ValueError(f"{path} has the format {found}, wanted {wanted}. Make it again: {command}")
    return content


def print_table(rows: Sequence[Sequence[str]], *, markdown: bool = False) -> None:
    """Prints rows, the header first, in columns: the first flush left, the others flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        [cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(pairs)]
        for pairs in (zip(row, widths, strict=True) for row in rows)
    ]
    if markdown:
        rule = [
            "-" * max(width, 3) if i == 0 else "-" * max(width - 1, 2) + ":" for i, width in enumerate(widths)
        ]
        print("\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]]))
    else:
        print("\n".join("  ".join(line).rstrip() for line in lines))
