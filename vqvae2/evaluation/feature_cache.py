"""Records of reference images, kept on the disk under what they are of, so that none is taken for another."""

import hashlib
import json
import logging
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vqvae2.metrics.feature_statistics import Record
from vqvae2.metrics.frechet import Moments

log = logging.getLogger(__name__)

_FORMAT = "vqvae2-record-1"


class Kept(NamedTuple):
    """A record with figures that were found in the same pass."""

    record: Record
    figures: dict[str, float]


class RecordStore:
    """A folder of records.

    Args:
        folder: made when the first one is written; None keeps nothing.
    """

    def __init__(self, folder: str | None) -> None:
        self.folder = None if folder is None else Path(folder)

    def read(self, identity: dict[str, Any]) -> Kept | None:
        """The record of this identity; None if there is none, or none that can be read."""
        if self.folder is None or not (path := self._path(identity)).is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: torch.from_numpy(file[name]) for name in file.files if name != "identity"}
                found = file["identity"].item()
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            log.warning("%s cannot be read (%s), so its features are computed again.", path, error)
            return None
        return _unpacked(arrays) if found == _text(identity) else None

    def write(self, identity: dict[str, Any], kept: Kept) -> None:
        """Writes aside, then renames."""
        if self.folder is None:
            return
        path = self._path(identity)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        with part.open("wb") as file:
            np.savez(file, identity=np.array(_text(identity)), **_packed(kept))
        part.replace(path)

    def _path(self, identity: dict[str, Any]) -> Path:
        digest = hashlib.sha256(_text(identity).encode()).hexdigest()
        return self.folder / f"{identity['set']}-{digest[:24]}.npz"


def _text(identity: dict[str, Any]) -> str:
    return json.dumps({"format": _FORMAT, **identity}, sort_keys=True)


def _packed(kept: Kept) -> dict[str, np.ndarray]:
    record = kept.record
    arrays: dict[str, Any] = record._asdict()
    moments = arrays.pop("moments")
    if moments is not None:
        arrays |= {f"moments.{name}": tensor for name, tensor in moments._asdict().items()}
    arrays |= {f"figures.{name}": value for name, value in kept.figures.items()}
    return {
        name: value.cpu().numpy() if isinstance(value, Tensor) else np.array(value)
        for name, value in arrays.items()
        if value is not None
    }


def _unpacked(arrays: dict[str, Tensor]) -> Kept:
    fields = {name: value for name, value in arrays.items() if "." not in name}
    moments = [arrays.get(f"moments.{name}") for name in Moments._fields]
    optional = {"logits": None, "squared_radii": None}
    record = Record(
        **{**optional, **fields, "count": int(fields["count"])},
        moments=None if moments[0] is None else Moments(*moments),
    )
    prefix = "figures."
    figures = {name.removeprefix(prefix): v.item() for name, v in arrays.items() if name.startswith(prefix)}
    return Kept(record, figures)
