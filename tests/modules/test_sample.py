"""The sample job: labels → codes → images → shards."""

import io
import json
import os
import tarfile

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from tests.checkpoints import latent_spec, save_autoencoder, save_chain, save_prior
from tests.ranks import run_ranks
from vqvae2.callbacks.samples import SampleWriter
from vqvae2.data.requests import SampleRequests
from vqvae2.data.sources import open_source
from vqvae2.modules.checkpoint import load_network
from vqvae2.modules.sample import SampleModule
from vqvae2.pixels import to_uint8


def sample(folder, autoencoder, priors, *, per_class=4, batch_size=3, chunk_size=5, classes=None, **options):
    ranks = {"strategy": "ddp", "devices": 2} if torch.distributed.is_initialized() else {}
    options = {"temperatures": [1.0] * len(priors), **options}
    module = SampleModule(autoencoder=autoencoder, priors=priors, **options)
    data = SampleRequests(per_class=per_class, batch_size=batch_size, chunk_size=chunk_size, classes=classes)
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
        callbacks=[SampleWriter(str(folder), grid_columns=3, grid_rows=2)],
        **ranks,
    )
    trainer.predict(module, data, return_predictions=False)
    return folder


def read(folder):
    """{key: {extension: bytes}} of all shards, in order."""
    samples = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                samples.setdefault(key, {})[extension] = tar.extractfile(member).read()
    return samples


def without_rounding(samples):
    """Without the likelihoods, whose last digits depend on how many images a product is computed for."""
    return {
        key: {name: members[name] for name in members if name != "json"} for key, members in samples.items()
    }


@torch.no_grad()
def test_samples_are_the_decoded_codes_of_the_classes_asked_for(tmp_path):
    network, autoencoder, priors = save_chain(tmp_path)
    samples = read(sample(tmp_path / "samples", autoencoder, priors, seed=3))
    assert list(samples) == [f"{i:08d}" for i in range(12)]
    for i, members in enumerate(samples.values()):
        arrays = [np.load(io.BytesIO(members[f"{name}.npy"])) for name in ("top", "bottom")]
        codes = [torch.from_numpy(array.astype(np.int64)) for array in arrays]
        image = np.asarray(Image.open(io.BytesIO(members["png"])))
        assert np.array_equal(image, to_uint8(network.decode([level[None] for level in codes]))[0, 0].numpy())
        assert int(members["cls"]) == i % 3
        facts = json.loads(members["json"])
        assert (facts["seed"], facts["image"]) == (3, i)
        for level, checkpoint in enumerate(priors):
            prior = load_network(checkpoint, "prior").network
            logits = prior(codes[level][None], [c[None] for c in codes[:level]], torch.tensor([i % 3]))
            nll = torch.nn.functional.cross_entropy(logits, codes[level][None], reduction="sum")
            assert facts["nll_nats"][("top", "bottom")[level]] == pytest.approx(nll.item(), rel=1e-5)


def test_the_folder_describes_itself_and_can_be_judged(tmp_path):
    network, autoencoder, priors = save_chain(tmp_path)
    folder = sample(tmp_path / "samples", autoencoder, priors)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["num_samples"] == 12
    assert [shard["num_samples"] for shard in manifest["shards"]] == [5, 5, 2]
    assert manifest["autoencoder"] == latent_spec(network, 3).autoencoder
    source = open_source(str(folder))
    assert len(source) == 12
    assert [source.label(i) for i in range(3)] == [0, 1, 2]
    assert Image.open(folder / "grid.png").size == (3 * 17 + 1, 2 * 17 + 1)


def test_an_image_does_not_depend_on_batches_files_or_classes_beside_it(tmp_path):
    _, autoencoder, priors = save_chain(tmp_path)
    all_of_them = without_rounding(read(sample(tmp_path / "a", autoencoder, priors)))
    in_one = read(sample(tmp_path / "b", autoencoder, priors, batch_size=12, chunk_size=100))
    assert without_rounding(in_one) == all_of_them
    fewer = without_rounding(read(sample(tmp_path / "c", autoencoder, priors, per_class=2)))
    assert fewer == {key: all_of_them[key] for key in fewer}


def test_two_ranks_write_what_one_writes(tmp_path):
    _, autoencoder, priors = save_chain(tmp_path)

    def work():
        os.environ["LOCAL_RANK"] = str(torch.distributed.get_rank())  # Lightning then starts no processes
        sample(tmp_path / "two", autoencoder, priors)

    run_ranks(work)
    alone = sample(tmp_path / "one", autoencoder, priors)
    assert without_rounding(read(tmp_path / "two")) == without_rounding(read(alone))
    assert (tmp_path / "two" / "grid.png").read_bytes() == (alone / "grid.png").read_bytes()


def test_a_model_without_classes_samples_images_without_labels(tmp_path):
    _, autoencoder, priors = save_chain(tmp_path, num_classes=0)
    samples = read(sample(tmp_path / "samples", autoencoder, priors, per_class=4))
    assert len(samples) == 4
    assert all("cls" not in members for members in samples.values())


def test_impossible_requests_are_refused(tmp_path):
    _, autoencoder, priors = save_chain(tmp_path)
    with pytest.raises(ValueError, match="no class 3: the priors know 0 to 2"):
        sample(tmp_path / "samples", autoencoder, priors, classes=[1, 3])
    with pytest.raises(ValueError, match="classes is empty"):
        sample(tmp_path / "samples", autoencoder, priors, classes=[])
    with pytest.raises(ValueError, match="one above 0"):
        sample(tmp_path / "samples", autoencoder, priors, temperatures=[1.0, 0.0])
    with pytest.raises(ValueError, match=r"levels bottom, top; .* needs top, bottom"):
        sample(tmp_path / "samples", autoencoder, priors[::-1])
    with pytest.raises(ValueError, match=r"0\.ckpt holds a network of kind 'prior', wanted 'autoencoder'"):
        sample(tmp_path / "samples", priors[0], priors)
    assert not (tmp_path / "samples").exists()


def test_priors_of_different_latents_are_refused(tmp_path):
    network, autoencoder, priors = save_chain(tmp_path)
    unlabelled = save_prior(tmp_path / "unlabelled.ckpt", latent_spec(network, 0), 1)
    with pytest.raises(ValueError, match=r"with 3 classes, .*unlabelled.ckpt learned .* with 0 classes"):
        sample(tmp_path / "samples", autoencoder, [priors[0], unlabelled])


def test_an_older_run_is_replaced_and_strangers_are_left_alone(tmp_path):
    _, autoencoder, priors = save_chain(tmp_path)
    folder = sample(tmp_path / "samples", autoencoder, priors)
    strangers = [folder / "mine.tar", folder / "deeper" / "000009.tar"]
    for path in strangers:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    sample(folder, autoencoder, priors, per_class=1)
    assert all(path.exists() for path in strangers)
    assert sorted(path.name for path in folder.glob("0*.tar")) == ["000000.tar"]


def test_priors_of_another_autoencoder_are_refused_with_both_fingerprints(tmp_path):
    network, autoencoder, priors = save_chain(tmp_path)
    _, other = save_autoencoder(tmp_path / "other.ckpt", seed=1)
    strange = save_prior(tmp_path / "strange.ckpt", latent_spec(other, 3), 1)
    with pytest.raises(ValueError, match="make encode-latents") as error:
        sample(tmp_path / "samples", autoencoder, [priors[0], strange])
    for each in (network, other):
        assert latent_spec(each, 3).autoencoder[:16] in str(error.value)
