"""Classification accuracy score: trained on samples, tested on real images and their reconstructions."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies import DDPStrategy
from webdataset import TarWriter

from tests.checkpoints import save_autoencoder
from tests.ranks import run_ranks
from tests.training.training_run import trainer
from vqvae2.cli import suite as cli
from vqvae2.data.images import ImageDataModule, held_out
from vqvae2.data.sources import open_source
from vqvae2.metrics.accuracy import Tally
from vqvae2.nn.weights import fingerprint
from vqvae2.pixels import png_bytes
from vqvae2.storage.checkpoint import load_network
from vqvae2.training.classification_report import FORMAT, load_reconstructor
from vqvae2.training.classifier import ClassifierModule
from vqvae2.training.schedules import Cosine

SIZE, CLASSES, STEPS = 16, 7, 12
NAMES = [f"n{90 - label}" for label in reversed(range(CLASSES))]  # sorted, and not by number
HELD_OUT = 5 * CLASSES - 2  # class 6 has only three
NETWORK = {"widths": [8], "blocks": 1}


def pictures(seed, count):
    """Noise on a grey level of the class's own, uint8 [count, 1, SIZE, SIZE], and labels in turn."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    noise = torch.randint(0, 100, (count, 1, SIZE, SIZE), generator=draw)
    return (20 * labels[:, None, None, None] + noise).to(torch.uint8), labels


def write_samples(folder, autoencoder):
    """A folder as the sample job writes it: labels by number only."""
    folder.mkdir()
    with TarWriter(str(folder / "000000.tar"), encoder=False) as tar:
        for number, (image, label) in enumerate(zip(*pictures(0, 8 * CLASSES), strict=True)):
            tar.write(
                {"__key__": f"{number:08d}", "png": png_bytes(image), "cls": str(label.item()).encode()}
            )
    (folder / "manifest.json").write_text(
        json.dumps({"format": "vqvae2 samples", "autoencoder": autoencoder})
    )


def write_real(folder):
    """Class folders with names; the last class has fewer."""
    images, labels = pictures(1, HELD_OUT)
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        path = folder / NAMES[label] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_bytes(image))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with `samples`, the `real` held-out images and `vqvae.ckpt`."""
    root = tmp_path_factory.mktemp("cas")
    _, autoencoder = save_autoencoder(root / "vqvae.ckpt")
    write_samples(root / "samples", fingerprint(autoencoder))
    write_real(root / "real")
    return root


def data_of(files, **changes):
    where = {"train": str(files / "samples"), "val": str(files / "real")}
    return ImageDataModule(**{**where, "image_size": SIZE, "channels": 1, "batch_size": 8, **changes})


def module_of(files, **changes):
    torch.manual_seed(0)
    options = {"schedule": Cosine(0.01, warmup=2), "polyak": 0.9, "autoencoder": str(files / "vqvae.ckpt")}
    return ClassifierModule(**{**options, **NETWORK, **changes})


@pytest.fixture(scope="module")
def trained(files, tmp_path_factory):
    """The checkpoint of a run whose autoencoder does not exist while it trains."""
    path = tmp_path_factory.mktemp("run") / "last.ckpt"
    run = trainer(STEPS, num_sanity_val_steps=0)
    run.fit(module_of(files, autoencoder="nowhere.ckpt"), data_of(files))
    run.save_checkpoint(path)
    return path


def measure(module, data, folder, **options):
    """What a test writes to its run folder."""
    run = trainer(0, default_root_dir=folder, **options.pop("trainer", {}))
    run.logger = options.pop("logger", None)
    run.test(module, data, verbose=False, **options)
    return json.loads((Path(folder) / "accuracy.json").read_text())


@pytest.fixture(scope="module")
def report(files, trained, tmp_path_factory):
    return measure(module_of(files), data_of(files), tmp_path_factory.mktemp("test"), ckpt_path=trained)


def counted(network, images, labels):
    """Accuracies image by image: top-1, top-5 and top-1 by class."""
    first, among = [], []
    for image, label in zip(images, labels.tolist(), strict=True):
        order = network(image[None])[0].argsort(descending=True).tolist()
        first.append(order.index(label) < 1)
        among.append(order.index(label) < 5)
    by_class = [
        np.mean([hit for hit, k in zip(first, labels, strict=True) if k == label]) for label in range(CLASSES)
    ]
    return {"top1": np.mean(first), "top5": np.mean(among), "by_class": by_class}


def test_accuracies_are_those_counted_one_by_one(files, trained, report):
    network, _ = load_network(trained, "classifier")
    autoencoder, _ = load_network(files / "vqvae.ckpt", "autoencoder")
    pixels, labels = pictures(1, HELD_OUT)
    images = pixels.float() / 127.5 - 1
    decoded = np.round((autoencoder(images).images.numpy() + 1) * 127.5).clip(
        0, 255
    )  # eight bits, as samples
    for name, view in {"real": images, "reconstructed": torch.from_numpy(decoded) / 127.5 - 1}.items():
        expected = counted(network, view, labels)
        assert report[name]["top1"] == pytest.approx(expected["top1"], abs=1e-12), name
        assert report[name]["top5"] == pytest.approx(expected["top5"], abs=1e-12), name
        assert report[name]["by_class"] == pytest.approx(expected["by_class"], abs=1e-12), name
    assert report["real"] != report["reconstructed"]
    assert 0 < report["real"]["top1"] < report["real"]["top5"] < 1


def test_reconstructions_are_pictures_of_eight_bits(files):
    autoencoder, _ = load_network(files / "vqvae.ckpt", "autoencoder")
    images = pictures(1, 3)[0].float() / 127.5 - 1
    seen = load_reconstructor(str(files / "vqvae.ckpt"), data_of(files), torch.device("cpu"))(images)
    decoded = np.round((autoencoder(images).images.numpy() + 1) * 127.5).clip(0, 255)
    torch.testing.assert_close(seen, torch.from_numpy(decoded) / 127.5 - 1, rtol=0, atol=1e-6)


def test_the_report_says_what_was_measured(files, trained, report):
    expected = {
        "format": FORMAT,
        "trained_on": str(files / "samples"),
        "num_train": 8 * CLASSES,
        "num_images": HELD_OUT,
        "unreadable": 0,
        "classes": NAMES,
        "data": str(files / "real"),
        "checkpoint": str(trained),
        "step": STEPS,
        "autoencoder": str(files / "vqvae.ckpt"),
    }
    assert {key: report[key] for key in expected} == expected


def _test_on_rank(files, trained, folder):
    os.environ["LOCAL_RANK"] = str(torch.distributed.get_rank())
    strategy = DDPStrategy(process_group_backend="gloo")
    logged = Logged()
    options = {"trainer": {"strategy": strategy, "devices": 2}, "logger": logged}
    measure(module_of(files), data_of(files), folder, ckpt_path=trained, **options)
    return logged.seen


class Logged(DummyLogger):
    def __init__(self):
        super().__init__()
        self.seen = {}

    def log_metrics(self, metrics, step=None):
        self.seen |= {(name, step): value for name, value in metrics.items()}


def test_two_ranks_with_uneven_shares_equal_one(files, trained, report, tmp_path):
    """33 images in batches of 8: the last two hold 5 and 4, of which rank 0 gets 3 and 2."""
    seen, _ = run_ranks(_test_on_rank, 2, files, trained, tmp_path)
    together = json.loads((tmp_path / "accuracy.json").read_text())
    assert {key: value for key, value in together.items() if key != "command"} == {
        key: value for key, value in report.items() if key != "command"
    }
    for view, suffix in (("real", ""), ("reconstructed", "_reconstructed")):
        assert seen[f"test/accuracy{suffix}", STEPS] == report[view]["top1"]
        assert seen[f"test/accuracy_top5{suffix}", STEPS] == report[view]["top5"]
        assert f"test/loss{suffix}" in {name for name, _ in seen}


def test_the_autoencoder_is_no_part_of_the_classifier(files, trained, tmp_path):
    module = module_of(files)
    measure(module, data_of(files), tmp_path, ckpt_path=trained)
    saved = torch.load(trained, weights_only=True)["state_dict"]
    assert module.state_dict().keys() == saved.keys()
    wanted = {name.partition(".")[0] for name, _ in module.named_parameters()}
    assert wanted == {"network", "average"}


def test_without_an_autoencoder_and_with_few_classes(tmp_path, capsys):
    tally = Tally(5, torch.device("cpu"))
    tally.update(torch.eye(5)[[0, 1, 1, 2]], torch.tensor([0, 1, 2, 2]))
    assert tally.accuracy() == (0.75, None, [1.0, 1.0, 0.5, None, None])
    assert set(tally.figures("test")) == {"test/loss", "test/accuracy"}


def test_unreadable_images_are_left_out_and_counted(files, trained, report, tmp_path):
    write_real(tmp_path / "real")
    (tmp_path / "real" / NAMES[2] / "02.png").write_bytes(b"")
    found = measure(module_of(files), data_of(files, val=str(tmp_path / "real")), tmp_path, ckpt_path=trained)
    assert (found["num_images"], found["unreadable"]) == (HELD_OUT - 1, 1)
    assert found["real"]["by_class"][:2] == report["real"]["by_class"][:2]


def test_a_part_of_the_real_images_is_held_out_as_when_training_on_them(files, trained, tmp_path):
    part = {"val": None, "holdout": 0.5, "holdout_seed": 3}
    ceiling = data_of(files, train=str(files / "real"), **part)
    cas = data_of(files, holdout_of=str(files / "real"), **part)
    keys = [[split.key(i) for i in range(len(split))] for split in (d.splits["val"] for d in (ceiling, cas))]
    assert keys[0] == keys[1]
    source = open_source(str(files / "real"))
    assert keys[0] == [source.key(i) for i in np.flatnonzero(held_out(source, 0.5, seed=3))]
    assert len(cas.splits["train"]) == 8 * CLASSES
    found = measure(module_of(files), cas, tmp_path, ckpt_path=trained)
    assert found["num_images"] == len(keys[0]) < HELD_OUT
    assert found["data"] == f"{files / 'real'} (holdout 0.5, seed 3)" == ceiling.held_out_from


def unreadable(folder):
    write_real(folder)
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    return str(folder)


@pytest.mark.parametrize(
    ("autoencoder", "changes", "message"),
    [
        (
            {"channels": 3},
            {},
            "ae.ckpt was trained on images of 3 channels, the data has 1. Set .*channels to 3",
        ),
        ({"factor": 16}, {}, r"16x16 do not divide .* multiples of 32"),
        ({"seed": 1}, {}, "holds samples of the autoencoder with the fingerprint .* but .*ae.ckpt holds"),
        (None, {}, "There is no checkpoint .*ae.ckpt. Train it first"),
        ({}, {"val": None}, "samples has no held-out images to test on"),
        ({}, {"val": unreadable}, f"none of the {HELD_OUT} images of .* can be read"),
    ],
)
def test_what_cannot_be_measured(files, trained, tmp_path, autoencoder, changes, message):
    if autoencoder is not None:
        save_autoencoder(tmp_path / "ae.ckpt", **autoencoder)
    changes = {key: value and value(tmp_path / "real") for key, value in changes.items()}
    module = module_of(files, autoencoder=str(tmp_path / "ae.ckpt"))
    with pytest.raises(ValueError, match=message):
        measure(module, data_of(files, **changes), tmp_path, ckpt_path=trained)
    assert not (tmp_path / "accuracy.json").exists()


def test_the_command_tests_its_own_last_checkpoint(files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    model = {
        "schedule": {"class_path": "vqvae2.training.schedules.Cosine", "init_args": {"learning_rate": 0.01}}
    }
    config = {
        "trainer": {"default_root_dir": "run", "max_steps": 3, "accelerator": "cpu", **quiet},
        "model": {
            "class_path": "vqvae2.training.classifier.ClassifierModule",
            "init_args": {**model, "polyak": 0.9, "autoencoder": str(files / "vqvae.ckpt"), **NETWORK},
        },
        "data": {
            "class_path": "vqvae2.data.images.ImageDataModule",
            "init_args": {
                "train": str(files / "samples"),
                "val": str(files / "real"),
                "image_size": SIZE,
                "channels": 1,
                "batch_size": 8,
            },
        },
    }
    Path("x_cas.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit):
        cli.main(["test", "-c", "x_cas.yaml"])
    assert "error: There is no checkpoint run/last.ckpt" in capsys.readouterr().err
    cli.main(["fit", "-c", "x_cas.yaml"])
    capsys.readouterr()
    cli.main(["test", "-c", "x_cas.yaml"])
    found = json.loads(Path("run/accuracy.json").read_text())
    assert (found["checkpoint"], found["step"]) == ("run/last.ckpt", 3)
    printed = capsys.readouterr().out
    for name in ("real", "reconstructed"):
        line = next(line for line in printed.splitlines() if line.startswith(f"{name} "))
        assert line.split()[1:] == [f"{found[name]['top1']:.2%}", f"{found[name]['top5']:.2%}"]
