"""Prompts: which codes are kept, of which images, and what cannot be kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vqvae2.data.latent_shards import write_shard
from vqvae2.data.latents import LatentSpec, Level, Manifest, write_manifest
from vqvae2.jobs.prompts import PromptRequests

SPEC = LatentSpec(
    (Level("top", 4, 3, 70), Level("mid", 8, 6, 300), Level("bottom", 16, 12, 500)), 5, "a1" * 32
)
NUM_PROMPTS = 23


def stored(labels=None):
    """All codes and labels of the held-out split."""
    draw = np.random.default_rng(0)
    codes = [
        draw.integers(0, level.num_codes, (NUM_PROMPTS, level.height, level.width)) for level in SPEC.levels
    ]
    return codes, np.arange(NUM_PROMPTS) % SPEC.num_classes if labels is None else labels


@pytest.fixture
def latents(tmp_path):
    return write_latents(tmp_path / "latents")


def write_latents(folder, *, spec=SPEC, labels=None):
    codes, labels = stored(labels)
    shards = [
        write_shard(
            folder,
            f"val/{number:06d}.tar",
            spec,
            codes=[level[start : start + 8] for level in codes],
            labels=labels[start : start + 8],
            keys=[f"image{i}" for i in range(NUM_PROMPTS)][start : start + 8],
            samples_per_record=3,
        )
        for number, start in enumerate(range(0, NUM_PROMPTS, 8))
    ]
    write_manifest(folder, Manifest(spec, (), {}, {"train": (), "val": tuple(shards)}))
    return folder


def requests(folder, **options):
    options = {"per_prompt": 3, "num_prompts": 4, "batch_size": 5, "rows": 0.5, **options}
    return PromptRequests(prompts=str(folder), **options)


def checked(folder, spec=SPEC, **options):
    data = requests(folder, **options)
    data.prepare_data()
    data.check(spec, "autoencoder.ckpt")
    return data


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"rows": 0.25}, (1, 2, 4)),
        ({"rows": 0.75}, (3, 6, 12)),
        ({"levels": ["top"], "rows": 0.0}, (4, 0, 0)),
        ({"levels": ["mid", "top"], "rows": 0.0625}, (4, 8, 1)),
        ({"levels": ["top"], "rows": 0.125}, (4, 1, 2)),
    ],
)
def test_what_is_kept_is_the_prompts_and_the_rest_is_open(latents, options, rows):
    batch = checked(latents, **options).request(torch.arange(12))
    codes, labels = stored()
    places = batch.prompts.numpy()
    assert np.array_equal(batch.labels, labels[places])
    for kept, code, upper in zip(batch.kept, codes, rows, strict=True):
        assert np.array_equal(kept[:, :upper], code[places][:, :upper])
        assert (kept[:, upper:] == -1).all()


def test_every_prompt_is_completed_and_more_of_them_only_add_images(latents):
    few = checked(latents).request(torch.arange(12))
    many = checked(latents, num_prompts=23).request(torch.arange(69))
    assert torch.equal(few.labels, many.labels[:12])
    assert torch.equal(few.prompts, many.prompts[:12])
    assert all(torch.equal(one, other[:12]) for one, other in zip(few.kept, many.kept, strict=True))
    assert sorted(many.prompts.tolist()) == sorted([*range(NUM_PROMPTS)] * 3)
    assert (many.prompts.view(-1, 3) == many.prompts[::3, None]).all()
    assert many.prompts[::3].tolist() != sorted(many.prompts[::3].tolist())  # not the first class only
    batches = checked(latents, num_prompts=2).predict_datasets()["samples"]
    assert torch.equal(batches.__getitems__([(0, 4), (0, 5)]).kept[1], few.kept[1][4:6])


def test_the_job_is_another_with_other_codes_or_other_parts_of_them(latents, tmp_path):
    one = requests(latents).identity()
    assert one == requests(latents, num_prompts=9).identity()
    labels = np.zeros(NUM_PROMPTS, int)
    others = [
        requests(latents, per_prompt=4),
        requests(latents, rows=0.25),
        requests(latents, levels=["top"]),
        requests(write_latents(tmp_path / "other", labels=labels)),
    ]
    assert all(other.identity() != one for other in others)


IMPOSSIBLE = [
    ({"rows": 0.0}, "Nothing is kept"),
    ({"rows": 1.0}, "rows is 1.0, wanted a fraction"),
    ({"per_prompt": 0}, "per_prompt is 0"),
    ({"num_prompts": 24}, "num_prompts is 24, but .* holds only 23"),
    ({"split": "test"}, "has no split 'test', wanted one of val"),
    ({"split": "train"}, "has no split 'train', wanted one of val"),
    ({"levels": ["top", "base"]}, "no level base to keep, wanted some of top, mid, bottom"),
    ({"levels": ["top", "mid", "bottom"]}, "All levels are kept"),
    ({"levels": ["mid"]}, "levels keeps mid, .* Keep the uppermost, such as top"),
    ({"rows": 0.3}, r"rows is 0.3, .* grids of \[4, 8, 16\] rows. The nearest that are: 0.25, 0.5"),
    ({"rows": 0.3, "levels": ["top"]}, r"grids of \[8, 16\] rows. The nearest that are: 0.25, 0.375"),
]


@pytest.mark.parametrize(("options", "message"), IMPOSSIBLE)
def test_what_cannot_be_kept_is_refused(latents, options, message):
    with pytest.raises(ValueError, match=message):
        checked(latents, **options)


def test_the_nearest_rows_can_be_kept(latents):
    for options in ({"rows": 0.25}, {"rows": 0.5}, {"rows": 0.375, "levels": ["top"]}):
        checked(latents, **options)


def test_prompts_of_other_codes_are_refused(latents, tmp_path):
    with pytest.raises(ValueError, match=r"a1a1a1a1.*but autoencoder\.ckpt holds the autoencoder b2b2b2b2"):
        checked(latents, replace(SPEC, autoencoder="b2" * 32))
    wider = replace(SPEC, levels=(Level("top", 4, 4, 70), *SPEC.levels[1:]))
    with pytest.raises(ValueError, match=r"are top 4x3, .* the priors learned top 4x4"):
        checked(latents, wider)
    with pytest.raises(ValueError, match=r"with 5 classes, the priors learned .* with 0 classes"):
        checked(latents, replace(SPEC, num_classes=0))
    with pytest.raises(ValueError, match="holds no latents"):
        checked(tmp_path / "nothing")


def test_prompts_without_a_label(tmp_path):
    labels = np.full(NUM_PROMPTS, -1)
    with pytest.raises(ValueError, match="have no label, but the priors need one of 5 classes"):
        checked(write_latents(tmp_path / "a", labels=labels))
    unlabelled = replace(SPEC, num_classes=0)
    data = checked(write_latents(tmp_path / "b", labels=labels, spec=unlabelled), unlabelled)
    assert (data.request(torch.arange(12)).labels == -1).all()
