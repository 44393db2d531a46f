"""A small folder of latents whose samples are known, for the tests of the shards and of their loader."""

import numpy as np

from vqvae2.data.latent_module import LatentDataModule
from vqvae2.data.latent_shards import write_shard
from vqvae2.data.latents import LatentSpec, Level, Manifest, write_manifest

SPEC = LatentSpec(
    (Level("top", 2, 3, 70), Level("bottom", 4, 6, 65536)), num_classes=5, autoencoder="a1" * 32
)
NUM_TRAIN, NUM_VAL = 47, 9


def arrays(num_samples, seed):
    draw = np.random.default_rng(seed)
    codes = [
        draw.integers(0, level.num_codes, (num_samples, level.height, level.width)) for level in SPEC.levels
    ]
    codes[1][0, 0, :2] = 0, 65535  # both ends of uint16
    return codes, draw.integers(-1, SPEC.num_classes, num_samples)


TRUTH = {"train": arrays(NUM_TRAIN, 0), "val": arrays(NUM_VAL, 1)}


def write_folder(folder, *, spec=SPEC, samples_per_shard=20):
    splits = {}
    for split, (codes, labels) in TRUTH.items():
        shards = []
        for number, start in enumerate(range(0, len(labels), samples_per_shard)):
            rows = slice(start, start + samples_per_shard)
            shards.append(
                write_shard(
                    folder,
                    f"{split}/{number:06d}.tar",
                    spec,
                    codes=[level[rows] for level in codes],
                    labels=labels[rows],
                    keys=[f"image{i}" for i in range(len(labels))[rows]],
                    samples_per_record=8,
                )
            )
        splits[split] = tuple(shards)
    write_manifest(folder, Manifest(spec, ("a", "b", "c", "d", "e"), {"image_size": 12}, splits))
    return folder


def module(folder, **options):
    data = LatentDataModule(latents=str(folder), **{"batch_size": 10, "seed": 3, **options})
    data.prepare_data()
    data.setup("fit")
    return data


def epoch_of(loader, epoch):
    loader.batch_sampler.set_epoch(epoch)
    return list(loader)
