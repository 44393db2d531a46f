"""Which samples of latents are scored as training data: the plain ones, whatever else lies beside them."""

import numpy as np
import pytest

from vqvae2.data.latent_shards import write_shard
from vqvae2.data.latents import LatentSpec, Level, Manifest, write_manifest
from vqvae2.data.plain_samples import num_plain

SPEC = LatentSpec((Level("top", 2, 2, 7),), 0, "a1" * 32)


def latents(folder, keys, source):
    shards = [
        write_shard(
            folder,
            f"train/{number:06d}.tar",
            SPEC,
            codes=[np.zeros((len(part), 2, 2), int)],
            labels=np.full(len(part), -1),
            keys=part,
            samples_per_record=2,
        )
        for number, part in enumerate([keys[:3], keys[3:]])
    ]
    manifest = Manifest(SPEC, (), source, {"train": tuple(shards), "val": ()})
    write_manifest(folder, manifest)
    return manifest


FOUR = ["a", "b", "c", "d"]


def views(keys, *marks):
    return [key + mark for mark in ("", *marks) for key in keys]


@pytest.mark.parametrize(
    ("keys", "num_views", "plain"),
    [
        (views(FOUR), 1, 4),
        (views(FOUR, "#1", "#2"), 3, 4),
        (views(FOUR, "#1", "#flip", "#1#flip"), 4, 4),
        (views(["a", "a#1", "b"], "#1"), 2, 3),  # a picture that is called as a view of another would be
        (views(["a", "a#1", "b"], "#flip"), 2, 3),
        (["a", "b#1", "b", "c"], 1, 4),
        (views(FOUR, "#1"), None, 4),  # a manifest that does not tell
        (views(FOUR), None, 4),
        (["a", "b#1", "c#flip", "d"], None, 4),  # marks in the names of pictures
        ([*FOUR[:3], *views(FOUR, "#1")[4:]], 2, 3),  # d was mended after the plain views were written
        ([*FOUR[:2], *views(FOUR, "#1")[4:]], 2, 2),  # c and d were: the number of samples is even
    ],
)
def test_plain_samples_are_told_from_views(tmp_path, keys, num_views, plain):
    source = {} if num_views is None else {"num_views": num_views}
    assert num_plain(tmp_path, latents(tmp_path, keys, source)) == plain
