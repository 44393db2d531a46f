"""What a folder of latent shards says about itself: the spec of its codes and the manifest of its shards.

A folder, usually `runs/NAME/latents`, holds `{train,val}/000000.tar …` and `manifest.json`, which is written
last, so a folder with a manifest is whole. `latent_shards` describes the inside of a shard.

Shape legend: B batch, h w a level's grid.
"""

import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from vqvae2.nn.contracts import Tokenizer
from vqvae2.pixels import ImageSize
from vqvae2.storage.cache import folder_of, hold_folder
from vqvae2.storage.remote import download, is_remote, look
from vqvae2.storage.shards import MANIFEST, Shard, write_json

ORIGIN = ".origin"  # in the local copy of a remote folder: its address
_MAX_MANIFEST = 256 * 2**20  # bytes

FORMAT = "vqvae2 latents"
VERSION = 1
MAX_CODES = 2**16  # codes are stored as uint16


class LatentBatch(NamedTuple):
    """Codes and labels of a batch, as the loaders return them."""

    codes: tuple[Tensor, ...]  # int64 [B, h, w] of each level, top first
    labels: Tensor  # int64 [B], -1 where there is none
    index: Tensor  # int64 [B], position in the split


@dataclass(frozen=True)
class Level:
    """One grid of codes."""

    name: str
    height: int
    width: int
    num_codes: int

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"a level is named '{self.name}', wanted a name like 'top'")
        if self.height < 1 or self.width < 1:
            raise ValueError(f"level '{self.name}' has a grid of {self.height}x{self.width}")
        if not 1 <= self.num_codes <= MAX_CODES:
            raise ValueError(f"level '{self.name}' has {self.num_codes} codes, wanted 1 to {MAX_CODES}")


def levels_of(tokenizer: Tokenizer, size: ImageSize) -> tuple[Level, ...]:
    """The levels of the codes that a tokenizer makes of images of a size, top first.

    Raises:
        ValueError: such images do not divide into its grids.
    """
    levels = zip(tokenizer.level_names, tokenizer.grids(*size), tokenizer.codebook_sizes, strict=True)
    return tuple(Level(name, height, width, codes) for name, (height, width), codes in levels)


@dataclass(frozen=True)
class LatentSpec:
    """What every user of the codes has to know: prior, sampler and decoder are built from it.

    Args:
        levels: top first.
        num_classes: labels are below it; 0 for an unlabelled data set.
        autoencoder: fingerprint of the network that made the codes, and alone can decode them.
    """

    levels: tuple[Level, ...]
    num_classes: int
    autoencoder: str

    def __post_init__(self) -> None:
        names = [level.name for level in self.levels]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"the levels are named {names}, wanted at least one and each name once")
        if self.num_classes < 0:
            raise ValueError(f"num_classes is {self.num_classes}, wanted 0 or more")

    @property
    def summary(self) -> str:
        """For messages."""
        levels = ", ".join(f"{level.name} {level.height}x{level.width}" for level in self.levels)
        return f"{levels} with {self.num_classes} classes"

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON and for checkpoints."""
        return {**asdict(self), "levels": [asdict(level) for level in self.levels]}

    @classmethod
    def from_dict(cls, entry: object) -> "LatentSpec":
        """The reverse of `to_dict`.

        Raises:
            ValueError: a field is missing, of the wrong type or out of range.
        """
        levels = tuple(
            Level(**{name: _field(level, name, kind) for name, kind in Level.__annotations__.items()})
            for level in _field(entry, "levels", list)
        )
        return cls(levels, _field(entry, "num_classes", int), _field(entry, "autoencoder", str))


@dataclass(frozen=True)
class Manifest:
    """The table of contents of a folder.

    Args:
        spec: of the codes.
        classes: the classes' names in label order; empty when not known.
        source: how the codes were made, for people to read (plain types).
        splits: the shards of each split in the order of its samples.
    """

    spec: LatentSpec
    classes: tuple[str, ...]
    source: dict[str, Any]
    splits: dict[str, tuple[Shard, ...]]

    def num_samples(self, split: str) -> int:
        return sum(shard.num_samples for shard in self.splits.get(split, ()))


def encode_command(folder: str | Path) -> str:
    """The command that writes the folder again; a checkpoint stands for the folder of its run."""
    folder = Path(folder).absolute()
    if folder.suffix == ".ckpt":  # runs/NAME/top/best.ckpt
        folder = folder.parents[1] / "latents"
    name = folder.parent.name if folder.name == "latents" else "NAME"
    return f"make encode-latents CONFIG={name} (lightning predict -c configs/{name}_encode.yaml)"


def check_autoencoder(spec: LatentSpec, fingerprint: str, *, codes: str, checkpoint: str | Path) -> None:
    """Refuses an autoencoder that did not make the codes.

    Args:
        spec: of the codes, from a manifest or from a prior's checkpoint.
        fingerprint: of the autoencoder at hand.
        codes: where `spec` comes from, for the message: a folder or a prior's checkpoint.
        checkpoint: where the autoencoder comes from, for the message.

    Raises:
        ValueError: the fingerprints differ.
    """
    if spec.autoencoder != fingerprint:
        raise ValueError(
            f"{codes} belongs to the autoencoder with the fingerprint {spec.autoencoder[:16]}, "
            f"but {checkpoint} holds the autoencoder {fingerprint[:16]}. Name the checkpoint that made the "
            f"codes, or encode again and train the priors on the new codes: {encode_command(codes)}."
        )


def write_manifest(folder: str | Path, manifest: Manifest) -> None:
    """Writes `manifest.json`; call it when all shards are in their places."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "spec": manifest.spec.to_dict(),
        "classes": list(manifest.classes),
        "source": manifest.source,
        "num_samples": {split: manifest.num_samples(split) for split in manifest.splits},
        "splits": {split: [asdict(shard) for shard in shards] for split, shards in manifest.splits.items()},
    }
    write_json(Path(folder, MANIFEST), content)


def latent_folder(location: str) -> Path:
    """The folder of a location on this machine; of an address, its place in the cache, with the manifest.

    The shards of an address come later, with `latent_shards.check_files`. Another manifest has another place.

    Raises:
        ValueError: there is no manifest at the address, or it cannot be downloaded.
    """
    if not is_remote(location):
        return Path(location)
    file = look(f"{location.rstrip('/')}/{MANIFEST}")
    if file.size > _MAX_MANIFEST:
        raise ValueError(f"{file.url} has {file.size:,} bytes, which is not the manifest of latents.")
    content = io.BytesIO()
    download(file, content)
    folder = folder_of(location.rstrip("/"), hashlib.sha256(content.getvalue()).hexdigest())
    hold_folder(folder)
    for name, text in ((ORIGIN, location.rstrip("/").encode()), (MANIFEST, content.getvalue())):
        part = folder / f"{name}.{os.getpid()}"  # several ranks write the same
        part.write_bytes(text)
        os.replace(part, folder / name)
    return folder


def read_manifest(folder: str | Path) -> Manifest:
    """Reads and checks `manifest.json` (not the shards that it lists).

    Raises:
        ValueError: there is none, or a field is missing, of the wrong type or does not fit the others.
    """
    path = Path(folder, MANIFEST)
    if not path.is_file():
        found = "the job that writes them was not finished" if path.parent.is_dir() else "no such folder"
        raise ValueError(f"{folder} holds no latents ({found}). Write them: {encode_command(folder)}.")
    try:
        return _parse_manifest(json.loads(path.read_bytes()))
    except ValueError as error:  # of the JSON or of the fields
        raise ValueError(f"{path}: {error}. Encode again: {encode_command(folder)}.") from error


def _parse_manifest(entry: object) -> Manifest:
    kind, version = _field(entry, "format", str), _field(entry, "version", int)
    if (kind, version) != (FORMAT, VERSION):
        raise ValueError(f"it is of format '{kind}' version {version}, wanted '{FORMAT}' version {VERSION}")
    manifest = Manifest(
        spec=LatentSpec.from_dict(_field(entry, "spec", dict)),
        classes=tuple(_strings(_field(entry, "classes", list), "classes")),
        source=_field(entry, "source", dict),
        splits={
            split: tuple(_parse_shard(shard, split) for shard in _of_type(shards, list, split))
            for split, shards in _field(entry, "splits", dict).items()
        },
    )
    num_classes = manifest.spec.num_classes
    if manifest.classes and len(manifest.classes) != num_classes:
        raise ValueError(f"it names {len(manifest.classes)} classes, but num_classes is {num_classes}")
    counted = {split: manifest.num_samples(split) for split in manifest.splits}
    if _field(entry, "num_samples", dict) != counted:
        raise ValueError(f"num_samples is {entry['num_samples']}, but its shards hold {counted}")
    return manifest


def _parse_shard(entry: object, split: str) -> Shard:
    shard = Shard(**{name: _field(entry, name, kind) for name, kind in Shard.__annotations__.items()})
    if Path(shard.file).parts[:-1] != (split,) or not shard.file.endswith(".tar"):
        raise ValueError(f"split '{split}' lists the file '{shard.file}', wanted {split}/*.tar")
    if shard.num_samples < 1 or shard.bytes < 1:
        raise ValueError(f"{shard.file} is said to have {shard.num_samples} samples, {shard.bytes} bytes")
    return shard


def _field(entry: object, name: str, kind: type) -> Any:
    if not isinstance(entry, dict) or name not in entry:
        raise ValueError(f"there is no field '{name}'")
    return _of_type(entry[name], kind, name)


def _of_type(value: object, kind: type, name: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"'{name}' is {value!r:.60}, wanted {kind.__name__}")
    return value


def _strings(values: Sequence[object], name: str) -> list[str]:
    return [_of_type(value, str, name) for value in values]
