"""The sample job with priors that draw a whole grid at once, alone and beside those that do not."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.checkpoints import latent_spec, save_autoencoder, save_prior, save_prior_of
from tests.fit_runs import QUIET
from tests.killed import survives_rename
from tests.sample_job import files, read, sample
from vqvae2.cli.suite import main as cli
from vqvae2.data.latent_shards import write_shard
from vqvae2.data.latents import Manifest, write_manifest
from vqvae2.jobs.prompts import PromptRequests
from vqvae2.jobs.sample import SampleModule
from vqvae2.nn.sundae import SUNDAE
from vqvae2.pixels import to_uint8
from vqvae2.sampling.draw import Steps
from vqvae2.sampling.sundae import DenoisingSampler

SIZES = {"width": 8, "heads": 2, "head_width": 8, "depth": [1, 1, 1], "dropout": 0.0, "unroll": 2}
FEW = Steps(3, (0.9, 0.5), (1.0, 0.5), "proposed", 2)
FEW_PLAIN = {"steps": 3, "proportion": [0.9, 0.5], "temperature": [1.0, 0.5], "stop": "proposed"}
FEW_PLAIN |= {"min_steps": 2, "guidance": 0.0, "argmax": False}
KINDS = ["sundae, pixelsnail", "pixelsnail, sundae", "sundae, sundae"]


def save_chain(folder: Path, kinds: str = "sundae, pixelsnail", **changes):
    """The autoencoder, its checkpoint and the priors'; beside them a folder of latents."""
    checkpoint, network = save_autoencoder(folder / "autoencoder.ckpt")
    spec = latent_spec(network, 3)
    priors = [
        save_prior_of(SUNDAE, folder / f"{i}.ckpt", spec, i, {**SIZES, **changes}, architecture="sundae")
        if kind == "sundae"
        else save_prior(folder / f"{i}.ckpt", spec, i, architecture="pixelsnail")
        for i, kind in enumerate(kinds.split(", "))
    ]
    draw = np.random.default_rng(1)
    codes = [draw.integers(0, 16, (6, level.height, level.width)) for level in spec.levels]
    facts = {"labels": np.arange(6) % 3, "keys": [str(i) for i in range(6)], "samples_per_record": 4}
    shard = write_shard(folder / "latents", "val/000000.tar", spec, codes=codes, **facts)
    write_manifest(folder / "latents", Manifest(spec, (), {}, {"val": (shard,)}))
    return network, checkpoint, priors, codes


def stored_codes(members: dict[str, bytes]) -> list[np.ndarray]:
    return [np.load(io.BytesIO(members[f"{name}.npy"])) for name in ("top", "bottom")]


@pytest.mark.parametrize("kinds", KINDS)
@torch.no_grad()
def test_chains_of_both_kinds_sample(tmp_path, kinds):
    """Images are the decoded codes; only a prior with a likelihood says one; the request decides an image."""
    network, autoencoder, priors, _ = save_chain(tmp_path, kinds)
    steps = [FEW if kind == "sundae" else None for kind in kinds.split(", ")]
    folder = sample(tmp_path / "s", autoencoder, priors, steps=steps, seed=3)
    found = read(folder)
    assert len({members["bottom.npy"] for members in found.values()}) == 12
    silent = {
        name for name, kind in zip(("top", "bottom"), kinds.split(", "), strict=True) if kind == "sundae"
    }
    for members in found.values():
        codes = [torch.from_numpy(grid.astype(np.int64))[None] for grid in stored_codes(members)]
        image = np.asarray(Image.open(io.BytesIO(members["png"])))
        assert np.array_equal(image, to_uint8(network.decode(codes))[0, 0].numpy())
        assert json.loads(members["json"])["nll_nats"].keys() == {"top", "bottom"} - silent
    with (folder / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all((row[f"nll_{name}"] == "") == (name in silent) for row in rows for name in ("top", "bottom"))
    other = read(sample(tmp_path / "o", autoencoder, priors, steps=steps, seed=3, batch_size=5, per_class=2))
    assert {key: stored_codes(members)[1].tolist() for key, members in other.items()} == {
        key: stored_codes(found[key])[1].tolist() for key in other
    }


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize(("options", "upper"), [({"rows": 0.5}, (2, 4)), ({"levels": ["top"]}, (4, 0))])
def test_completions_keep_what_is_given(tmp_path, kinds, options, upper):
    _, autoencoder, priors, codes = save_chain(tmp_path, kinds)
    request = {"per_prompt": 2, "num_prompts": 4, "batch_size": 5, "chunk_size": 5, **options}
    data = PromptRequests(prompts=str(tmp_path / "latents"), **request)
    found = read(sample(tmp_path / "s", autoencoder, priors, data=data))
    assert len({members["bottom.npy"] for members in found.values()}) == 8
    for members in found.values():
        prompt = json.loads(members["json"])["prompt"]
        for mine, given, rows in zip(stored_codes(members), codes, upper, strict=True):
            assert np.array_equal(mine[:rows], given[prompt][:rows])
            assert rows == len(mine) or not np.array_equal(mine, given[prompt])


def write_job(folder: Path, autoencoder: str, priors: list[str], **model) -> str:
    trainer = {"accelerator": "cpu", "devices": 1, "logger": False, "default_root_dir": str(folder), **QUIET}
    writer = {"class_path": "SampleWriter", "init_args": {"grid_columns": 3, "grid_rows": 2}}
    chain = {"autoencoder": autoencoder, "priors": priors, **model}
    request = {"per_class": 4, "batch_size": 3, "chunk_size": 5}
    job = {
        "trainer": {**trainer, "callbacks": [writer]},
        "model": {"class_path": "SampleModule", "init_args": chain},
        "data": {"class_path": "SampleRequests", "init_args": request},
    }
    folder.with_suffix(".yaml").write_text(yaml.safe_dump(job))
    return str(folder.with_suffix(".yaml"))


def test_steps_from_configs_and_from_the_command_line(tmp_path, one_thread):
    """What an option does not say of a level's steps, the config says."""
    _, autoencoder, priors, _ = save_chain(tmp_path)
    expected = read(sample(tmp_path / "python", autoencoder, priors, steps=[FEW, None]))
    changed = [replace(FEW, steps=1), None]
    changed = read(sample(tmp_path / "changed", autoencoder, priors, steps=changed))
    assert expected != changed
    config = write_job(tmp_path / "yaml", autoencoder, priors, steps=[FEW_PLAIN, None])
    cli(["predict", "-c", config])
    assert read(tmp_path / "yaml") == expected
    config = write_job(tmp_path / "line", autoencoder, priors)
    cli(["predict", "-c", config, "--model.steps", json.dumps([FEW_PLAIN, None])])
    assert read(tmp_path / "line") == expected
    config = write_job(tmp_path / "over", autoencoder, priors, steps=[FEW_PLAIN, None])
    cli(["predict", "-c", config, "--model.steps", "[{steps: 1}, null]"])
    assert read(tmp_path / "over") == changed
    usual = read(sample(tmp_path / "usual", autoencoder, priors))
    config = write_job(tmp_path / "none", autoencoder, priors, steps=[None, None])
    cli(["predict", "-c", config])
    assert read(tmp_path / "none") == usual


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("[{stepz: 3}, null]", "stepz"),
        ("[{steps: 0}, null]", "Level top: steps is 0, wanted at least 1"),
        ("[{steps: many}, null]", "steps"),
        ("[{stop: soon}, null]", "stop"),
        ("[{steps: 3}]", "wanted one for each of the 2 priors"),
        ("[{guidance: 2.0}, null]", "Train one with --model.class_dropout 0.1, or set guidance to 0"),
    ],
)
def test_wrong_steps_are_refused(tmp_path, capsys, steps, message):
    _, autoencoder, priors, _ = save_chain(tmp_path)
    config = write_job(tmp_path / "s", autoencoder, priors)
    with pytest.raises((SystemExit, ValueError)) as error:
        cli(["predict", "-c", config, "--model.steps", steps])
    assert message in capsys.readouterr().err + str(error.value)
    assert not list(tmp_path.glob("s/*.tar"))


def test_the_identity_and_the_manifest_hold_the_steps_in_plain_types(tmp_path):
    _, autoencoder, priors, _ = save_chain(tmp_path)
    module = SampleModule(autoencoder=autoencoder, priors=priors, steps=[FEW, None])
    identity = json.loads(json.dumps(module.identity()))
    plain = {"temperature": 1.0, "top_k": None, "top_p": None}
    assert identity["draws"] == {"top": {**plain, "steps": FEW_PLAIN}, "bottom": plain}
    folder = sample(tmp_path / "s", autoencoder, priors, steps=[FEW, None])
    manifest, job = (json.loads((folder / name).read_text()) for name in ("manifest.json", "job.json"))
    assert manifest["draws"] == job["identity"]["draws"] == identity["draws"]
    assert not manifest["approximate"]


def test_steps_are_no_approximation_and_temperatures_are(tmp_path):
    _, autoencoder, priors, _ = save_chain(tmp_path)
    module = SampleModule(
        autoencoder=autoencoder, priors=priors, steps=[FEW, None], temperatures=[0.5, 1.0], top_p=[None, 0.9]
    )
    assert module.approximations == ["temperature 0.5 on top", "top_p 0.9 on bottom"]


@pytest.mark.parametrize("steps", [None, [FEW, None]])
def test_a_killed_job_is_completed_to_the_same_bytes(tmp_path, one_thread, steps):
    """Without steps the folder says nothing of them, as folders from before there were any."""
    _, autoencoder, priors, _ = save_chain(tmp_path)
    whole = files(sample(tmp_path / "whole", autoencoder, priors, steps=steps))
    assert ("steps" in whole["job.json"].decode()) == (steps is not None)
    assert not survives_rename(3, lambda: sample(tmp_path / "killed", autoencoder, priors, steps=steps))
    assert files(sample(tmp_path / "killed", autoencoder, priors, steps=steps)) == whole


def test_a_folder_of_other_steps_is_refused(tmp_path):
    _, autoencoder, priors, _ = save_chain(tmp_path)
    sample(tmp_path / "s", autoencoder, priors, steps=[FEW, None])
    for steps in ([Steps(4), None], None):
        with pytest.raises(ValueError, match=r"another job: its draws\.top\.steps"):
            sample(tmp_path / "s", autoencoder, priors, steps=steps)


@pytest.mark.parametrize("steps", [Steps(2, guidance=1.0), Steps(2, argmax=True)])
def test_half_precision_and_options_reach_the_sampler(tmp_path, monkeypatch, steps):
    _, autoencoder, priors, _ = save_chain(tmp_path, "sundae, sundae", class_dropout=0.1)
    seen, init = [], DenoisingSampler.__init__

    def spy(self, prior, how):
        seen.append((next(prior.parameters()).dtype, how.steps))
        init(self, prior, how)

    monkeypatch.setattr(DenoisingSampler, "__init__", spy)
    for precision, dtype in (("32-true", torch.float32), ("bf16-true", torch.bfloat16)):
        sample(tmp_path / precision, autoencoder, priors, steps=[steps, None], precision=precision)
        assert seen == [(dtype, steps), (dtype, None)]
        seen.clear()
