"""Prompted sampling: given codes stay, the rest is sampled after them."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.checkpoints import save_chain
from tests.killed import survives_rename
from tests.sample_job import files, read, sample
from vqvae2.data.latent_shards import write_shard
from vqvae2.data.latents import Manifest, write_manifest
from vqvae2.jobs.prompts import PromptRequests
from vqvae2.jobs.sample import SampleModule
from vqvae2.pixels import to_uint8
from vqvae2.storage.checkpoint import load_network

NUM_LATENTS = 9


@pytest.fixture
def chain(tmp_path):
    """The autoencoder, its checkpoint and the priors'; beside them a folder of latents."""
    network, autoencoder, priors = save_chain(tmp_path)
    spec = SampleModule(autoencoder=autoencoder, priors=priors, temperatures=[1.0, 1.0]).spec
    codes = all_codes(spec)
    shard = write_shard(
        tmp_path / "latents",
        "val/000000.tar",
        spec,
        codes=codes,
        labels=np.arange(NUM_LATENTS) % 3,
        keys=[str(i) for i in range(NUM_LATENTS)],
        samples_per_record=4,
    )
    write_manifest(tmp_path / "latents", Manifest(spec, (), {}, {"val": (shard,)}))
    return network, autoencoder, priors, codes


def all_codes(spec):
    draw = np.random.default_rng(1)
    return [draw.integers(0, 16, (NUM_LATENTS, level.height, level.width)) for level in spec.levels]


def prompts(folder, **options):
    options = {"per_prompt": 3, "num_prompts": 4, "batch_size": 5, "chunk_size": 5, **options}
    return PromptRequests(prompts=str(folder), **options)


def stored_codes(members):
    return [np.load(io.BytesIO(members[f"{name}.npy"])) for name in ("top", "bottom")]


@torch.no_grad()
@pytest.mark.parametrize(("options", "upper"), [({"rows": 0.5}, (2, 4)), ({"levels": ["top"]}, (4, 0))])
def test_given_codes_stay_and_the_rest_follows_from_them(chain, tmp_path, options, upper):
    _, autoencoder, priors, codes = chain
    folder = sample(tmp_path / "s", autoencoder, priors, data=prompts(tmp_path / "latents", **options))
    found = read(folder)
    assert len(found) == 12
    seen = set()
    for number, members in enumerate(found.values()):
        facts = json.loads(members["json"])
        prompt = facts["prompt"]
        seen.add((number // 3, prompt))
        assert int(members["cls"]) == prompt % 3
        mine = stored_codes(members)
        for level in range(2):
            assert np.array_equal(mine[level][: upper[level]], codes[level][prompt][: upper[level]])
            assert upper[level] == 4 + 4 * level or not np.array_equal(mine[level], codes[level][prompt])
            prior = load_network(priors[level], "prior").network
            grids = [torch.tensor(grid.astype(np.int64))[None] for grid in mine]
            logits = prior(grids[level], grids[:level], torch.tensor([prompt % 3]))
            nll = torch.nn.functional.cross_entropy(logits, grids[level], reduction="sum")
            assert facts["nll_nats"][("top", "bottom")[level]] == pytest.approx(nll.item(), rel=1e-5)
    assert len(seen) == 4  # four prompts, each with three images
    assert len({members["bottom.npy"] for members in found.values()}) == 12


@pytest.mark.parametrize("levels", [[], ["top"]])
def test_samples_can_be_prompts(chain, tmp_path, levels):
    _, autoencoder, priors, _ = chain
    first = sample(tmp_path / "first", autoencoder, priors)
    data = prompts(first, levels=levels, rows=0.5)
    second = read(sample(tmp_path / "second", autoencoder, priors, data=data, seed=1))
    given = list(read(first).values())
    for members in second.values():
        prompt = given[json.loads(members["json"])["prompt"]]
        assert members["cls"] == prompt["cls"]
        top, bottom = zip(stored_codes(members), stored_codes(prompt), strict=True)
        assert np.array_equal(bottom[0][:4], bottom[1][:4])
        assert np.array_equal(top[0][: 4 if levels else 2], top[1][: 4 if levels else 2])


def test_prompts_of_another_autoencoder_or_unfinished_are_refused(chain, tmp_path):
    _, autoencoder, priors, _ = chain
    (tmp_path / "other").mkdir()
    _, other, others = save_chain(tmp_path / "other", residual=6)
    strange = sample(tmp_path / "strange", other, others)
    with pytest.raises(ValueError, match="belongs to the autoencoder with the fingerprint"):
        sample(tmp_path / "s", autoencoder, priors, data=prompts(strange, rows=0.5))
    assert not survives_rename(4, lambda: sample(tmp_path / "killed", autoencoder, priors))
    with pytest.raises(ValueError, match=r"The samples in .*killed are not finished"):
        sample(tmp_path / "s", autoencoder, priors, data=prompts(tmp_path / "killed", rows=0.5))
    assert not (tmp_path / "s").exists()


def test_a_damaged_prompt_is_named(chain, tmp_path):
    _, autoencoder, priors, _ = chain
    first = sample(tmp_path / "first", autoencoder, priors)
    (first / "000002.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"000002\.tar holds no codes of sample 000000"):
        sample(tmp_path / "s", autoencoder, priors, data=prompts(first, rows=0.5, num_prompts=12))


def test_a_killed_completion_is_completed_and_more_prompts_are_added(chain, tmp_path, one_thread):
    _, autoencoder, priors, _ = chain

    def job(folder, **options):
        data = prompts(tmp_path / "latents", rows=0.5, **options)
        return files(sample(tmp_path / folder, autoencoder, priors, data=data))

    wanted = job("whole", num_prompts=7)
    assert not survives_rename(3, lambda: job("killed"))
    job("killed")
    assert job("killed", num_prompts=7) == wanted


def tiles(path, columns, rows):
    """Row by row the images of a grid."""
    picture = np.asarray(Image.open(path).convert("L"))
    assert picture.shape == (rows * 17 + 1, columns * 17 + 1)
    return [
        [picture[1 + 17 * r : 17 * (r + 1), 1 + 17 * c : 17 * (c + 1)] for c in range(columns)]
        for r in range(rows)
    ]


@torch.no_grad()
@pytest.mark.parametrize("levels", [[], ["top"]])
def test_the_picture_shows_prompt_kept_part_and_completions(chain, tmp_path, levels):
    network, autoencoder, priors, codes = chain
    data = prompts(tmp_path / "latents", levels=levels, rows=0.25, num_prompts=5)
    writer = {"grid_columns": 4, "grid_rows": 3}
    folder = sample(tmp_path / "s", autoencoder, priors, data=data, writer=writer)
    found = list(read(folder).values())
    for row, shown in enumerate(tiles(folder / "grid.png", columns=4, rows=3)):
        prompt = json.loads(found[3 * row]["json"])["prompt"]
        grids = [torch.tensor(level[prompt])[None] for level in codes]
        own = to_uint8(network.decode(grids))[0, 0].numpy()
        hidden = to_uint8(network.decode(grids, 1))[0, 0].numpy() if levels else np.full((16, 16), 128)
        assert np.array_equal(shown[0], own)
        assert np.array_equal(shown[1], np.concatenate([own[:4], hidden[4:]]))
        for i in range(2):
            completion = np.asarray(Image.open(io.BytesIO(found[3 * row + i]["png"])))
            assert np.array_equal(shown[2 + i], completion)
