"""Which samples of latents are of plain images, and which of augmented views."""

from collections.abc import Collection
from pathlib import Path

from vqvae2.data.latent_shards import shard_keys
from vqvae2.data.latents import Manifest


def num_plain(folder: Path, manifest: Manifest) -> int:
    """How many of the training samples are of plain images: these are the first, other views of them follow.

    Unreadable images are missing. Where they are missing in all views, the manifest's number of views tells;
    where some were mended while the job was interrupted, the first key does that is a view of an earlier one.
    """
    num_samples, views = manifest.num_samples("train"), manifest.source.get("num_views")
    if views == 1:
        return num_samples
    even = num_samples // views if isinstance(views, int) and views > 1 else 0
    shards = manifest.splits.get("train", ())
    first, seen, found = "", set(), num_samples
    for number, key in enumerate(key for shard in shards for key in shard_keys(folder / shard.file)):
        first = first or key
        if number and number == even and key.startswith(f"{first}#"):
            return even
        if found == num_samples and _is_view(key, seen):
            found = number
        seen.add(key)
    return found


def _is_view(key: str, seen: Collection[str]) -> bool:
    """Whether the key is one of those before it with what was done to the image behind a '#'."""
    return any(key[:i] in seen for i, letter in enumerate(key) if letter == "#")
