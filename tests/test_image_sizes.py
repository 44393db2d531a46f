"""Images that are not square go through every job: 16 high, 32 wide."""

import io
import json
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.checkpoints import PRIOR
from tests.command_jobs import CONSTANT, STACK, lightning, named
from tests.training.training_run import NETWORK
from vqvae2.cli.suite import main as cli
from vqvae2.data.latents import read_manifest
from vqvae2.jobs.encode import EncodeModule
from vqvae2.jobs.latent_writer import LatentWriter
from vqvae2.jobs.prompts import PromptRequests
from vqvae2.jobs.rejection_classifier import load_rejection_classifier
from vqvae2.jobs.sampled_codes import SampledCodes
from vqvae2.storage.checkpoint import DESCRIPTION, load_network
from vqvae2.training.tokenizer import load_tokenizer

SIZE = [16, 32]
TRAIN, VAL = 16, 6  # images
FITS = {"schedule": CONSTANT, "polyak": 0.5}


def write_images(folder: Path) -> None:
    """Noise of 24x40, in two classes: covering 16x32 takes a fit to 19x32, of which 16 rows stay."""
    pixels = np.random.default_rng(0).integers(0, 256, (TRAIN + VAL, 24, 40, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        path = folder / ("train" if i < TRAIN else "val") / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def failure(capsys, verb: str, config: Path, *args: str) -> str:
    """The one line that a command ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        cli([verb, "-c", str(config), *args])
    assert exit_info.value.code
    _, _, message = capsys.readouterr().err.rstrip().partition("error: ")
    assert message
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Every job of the suite's own family, once."""
    folder = tmp_path_factory.mktemp("sizes")
    write_images(folder)
    where = {"train": str(folder / "train"), "val": str(folder / "val")}
    images = {**where, "image_size": SIZE, "batch_size": 4, "cache": True}
    data, latents = named("ImageDataModule", **images), str(folder / "latents")
    vqvae, classifier, *priors = (
        str(folder / name / "last.ckpt") for name in ("vqvae", "classifier", "top", "bottom")
    )
    autoencoder = named("AutoencoderModule", beta=0.25, **FITS, **NETWORK)
    lightning("fit", folder, "vqvae", autoencoder, data, named("ReconstructionGrid"))
    small = named("ClassifierModule", widths=[4, 8], blocks=1, **FITS)
    lightning("fit", folder, "classifier", small, data)
    lightning(
        "predict", folder, "latents", named("EncodeModule", checkpoint=vqvae), data, named("LatentWriter")
    )
    codes, preview = (
        named("LatentDataModule", latents=latents, batch_size=4),
        named("SampleGrid", autoencoder=vqvae),
    )
    top = named("TopPriorModule", output_layers=0, **FITS, **PRIOR)
    lightning("fit", folder, "top", top, codes, preview)
    bottom = named("ConditionalPriorModule", level="bottom", **FITS, **PRIOR, **STACK)
    lightning("fit", folder, "bottom", bottom, codes, preview)
    chain = {"autoencoder": vqvae, "priors": priors}
    sample, writer = named("SampleModule", rejection_classifier=classifier, **chain), named("SampleWriter")
    lightning(
        "predict", folder, "samples", sample, named("SampleRequests", per_class=4, batch_size=4), writer
    )
    lightning("predict", folder, "complete", sample, prompts(folder), writer)
    evaluated = named("EvaluationDataModule", samples=str(folder / "samples"), latents=latents, **images)
    features = {"features": "classifier", "weights": classifier, "splits": 2, "queries": 2, "nearest": 2}
    lightning("test", folder, "eval", named("EvaluationModule", **features, **chain), evaluated)
    with_autoencoder = named("ClassifierModule", autoencoder=vqvae, **small["init_args"])
    lightning("test", folder, "classifier", with_autoencoder, data)
    return folder


def prompts(folder: Path) -> dict:
    asked = {"num_prompts": 2, "per_prompt": 2, "rows": 0.5, "batch_size": 4}
    return named("PromptRequests", prompts=str(folder / "latents"), **asked)


def pictures(folder: Path) -> list[Image.Image]:
    found = []
    for path in sorted(folder.rglob("*.tar")):
        with tarfile.open(path) as tar:
            members = [member for member in tar if member.name.endswith(".png")]
            found += [Image.open(io.BytesIO(tar.extractfile(member).read())) for member in members]
    return found


def test_files_say_height_and_width(run):
    manifest = read_manifest(run / "latents")
    assert [(level.height, level.width) for level in manifest.spec.levels] == [(4, 8), (8, 16)]
    assert manifest.source["image_size"] == SIZE
    for name, kind in (("vqvae", "autoencoder"), ("classifier", "classifier")):
        assert load_network(run / name / "last.ckpt", kind).facts["image_size"] == SIZE
    assert json.loads((run / "classifier/accuracy.json").read_text())["image_size"] == SIZE
    assert json.loads((run / "eval/metrics.json").read_text())["inputs"]["image_size"] == SIZE


@pytest.mark.parametrize(("name", "count"), [("samples", 8), ("complete", 4)])
def test_samples_are_as_high_and_wide_as_the_images(run, name, count):
    assert [image.size for image in pictures(run / name)] == [(32, 16)] * count


def test_the_upper_rows_of_prompts_are_kept_and_shown(run):
    requests = PromptRequests(**prompts(run)["init_args"])
    wanted = [level.repeat_interleave(2, 0) for level in requests.codes(range(2))]
    found = SampledCodes(run / "complete").__getitems__([(0, i) for i in range(4)]).codes
    for now, own, rows in zip(found, wanted, (2, 4), strict=True):
        assert torch.equal(now[:, :rows], own[:, :rows])
        assert not torch.equal(now[:, rows:], own[:, rows:])
    grid = np.asarray(Image.open(run / "complete/grid.png"))
    assert grid.shape == (2 * 17 + 1, 4 * 33 + 1, 3)  # own, kept, two completions; a pixel between
    own, kept = grid[1:17, 1:33], grid[1:17, 34:66]
    assert np.array_equal(own[:8], kept[:8])
    assert (kept[8:] == 128).all()


def test_figures_count_the_pixels_that_there_are(run):
    evaluation = json.loads((run / "eval/metrics.json").read_text())
    figures, sets = evaluation["figures"], {found["key"]: found["figures"] for found in evaluation["sets"]}
    bits_stored = 4 * (4 * 8 + 8 * 16)  # 16 codes
    assert figures["compression_stored"] == pytest.approx(24 * 16 * 32 / bits_stored)
    assert figures["bpp_val"] == pytest.approx(figures["bits_val"] / (16 * 32))
    assert figures["compression_val"] == pytest.approx(24 * 16 * 32 / figures["bits_val"])
    assert all("fid_classifier" in sets[key] for key in ("samples", "held_out", "reconstructions"))


def test_reconstructions_are_of_the_images_cropped_to_that_size(run):
    """The error of the held-out images, which Pillow fits here in two plain steps."""
    files = sorted((run / "val").rglob("*.png"))
    fitted = [
        Image.open(path).resize((32, 19), Image.Resampling.BICUBIC).crop((0, 1, 32, 17)) for path in files
    ]
    images = torch.tensor(np.stack(fitted)).movedim(-1, 1) / 127.5 - 1
    network = load_network(run / "vqvae/last.ckpt", "autoencoder").network
    with torch.no_grad():
        wanted = (network(images).images - images).double().square().mean().item()
    figures = json.loads((run / "eval/metrics.json").read_text())["figures"]
    assert figures["mse_val"] == pytest.approx(wanted, rel=1e-5)


def test_networks_and_samples_of_another_size_are_refused_with_both_sizes(run, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"image_size \[16, 32\].*but the data has image_size \[32, 16\]"):
        load_rejection_classifier(
            str(run / "classifier/last.ckpt"), num_classes=2, channels=3, image_size=[32, 16]
        )
    place = ("--trainer.default_root_dir", str(tmp_path / "run"))
    message = failure(capsys, "test", run / "eval.yaml", "--data.image_size", "[32, 16]", *place)
    assert "is 32x16 RGB, but the real images are 16x32 RGB" in message  # width x height
    assert "set image_size to [16, 32]" in message


def test_a_run_goes_on_with_its_size_only(run, tmp_path, capsys):
    shutil.copytree(run / "vqvae", tmp_path / "vqvae")
    more = ("--trainer.max_steps", "15", "--trainer.default_root_dir", str(tmp_path / "vqvae"))
    message = failure(capsys, "fit", run / "vqvae.yaml", "--data.image_size", "[32, 16]", *more)
    assert "data.image_size was [16, 32], is [32, 16]" in message
    cli(["fit", "-c", str(run / "vqvae.yaml"), "--data.image_size", "[16, 32]", *more])
    assert torch.load(tmp_path / "vqvae/last.ckpt", weights_only=True)["global_step"] == 15


def test_a_size_that_does_not_divide_names_both_sides(run, tmp_path, capsys):
    place = ("--trainer.default_root_dir", str(tmp_path / "run"))
    message = failure(capsys, "fit", run / "vqvae.yaml", "--data.image_size", "[18, 32]", *place)
    assert "Images of 18x32 do not divide" in message
    assert "multiples of 4" in message
    message = failure(capsys, "predict", run / "latents.yaml", "--data.image_size", "[16, 30]", *place)
    assert "Images of 16x30 do not divide" in message
    with pytest.raises(ValueError, match="Images of 16x30 do not divide"):
        load_tokenizer(str(run / "vqvae/last.ckpt"), SimpleNamespace(channels=3, image_size=[16, 30]))


def test_the_space_of_latents_is_known_beforehand(run):
    """16 bits for each of 4 x 8 and 8 x 16 codes, 64 for the label."""
    trainer = SimpleNamespace(datamodule=SimpleNamespace(image_size=SIZE))
    module = EncodeModule(str(run / "vqvae/last.ckpt"))
    assert LatentWriter().sample_bytes(trainer, module) == 2 * (4 * 8 + 8 * 16) + 8


@pytest.mark.parametrize("value", ["[1]", "[0, 8]", "[8, 8, 8]", "x", "[8, x]", "0", "1.5", "true"])
def test_what_is_no_size_is_one_line_on_the_command_line(run, tmp_path, capsys, value):
    place = ("--trainer.default_root_dir", str(tmp_path / "run"))
    message = failure(capsys, "fit", run / "vqvae.yaml", "--data.image_size", value, *place)
    assert "image_size" in message
    assert value.strip("[]").split(",")[0].lower() in message.lower()


def test_squares_are_written_by_their_side_however_they_are_given(run, tmp_path):
    """As they were before other images could be read, so that files of then and now compare equal."""
    for name, size in (("side", "8"), ("both", "[8, 8]")):
        place = ("--trainer.default_root_dir", str(tmp_path / name), "--trainer.max_steps", "1")
        cli(["fit", "-c", str(run / "vqvae.yaml"), "--data.image_size", size, *place])
    side, both = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("side", "both"))
    assert side["run"]["data.image_size"] == 8
    assert both["run"] == side["run"]
    assert both[DESCRIPTION] == side[DESCRIPTION]
    assert side[DESCRIPTION]["image_size"] == 8
