"""data/mnist.py on made-up files."""

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.data.idx_files import idx, write_mnist
from vqvae2.data.sources import open_source

SCRIPTS = Path(__file__).parents[2] / "data"
sys.path.insert(0, str(SCRIPTS))
import mnist  # noqa: E402

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


def run(*arguments: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPTS / "mnist.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_tars_hold_the_images_and_labels_of_the_files(tmp_path):
    splits = write_mnist(tmp_path / "idx", train=25, test=11)
    done = run(tmp_path / "idx", tmp_path / "tars")
    assert (done.returncode, done.stdout.split("\n")[0]) == (0, "train-0000.tar: 25 images")
    assert sorted(path.name for path in (tmp_path / "tars").iterdir()) == ["test-0000.tar", "train-0000.tar"]
    for tar, name in (("train-0000", "train"), ("test-0000", "t10k")):
        images, labels = splits[name]
        source = open_source(str(tmp_path / "tars" / f"{tar}.tar"))
        assert [source.label(i) for i in range(len(source))] == labels.tolist()
        for i, image in enumerate(images):
            picture = source.read(i)
            assert picture.mode == "L"
            assert np.array_equal(np.asarray(picture), image)


def test_large_sets_are_split_and_numbered_in_their_order(tmp_path, monkeypatch):
    splits = write_mnist(tmp_path / "idx", train=25, test=3, compressed=False)
    monkeypatch.setattr(mnist, "SHARD", 10)
    monkeypatch.setattr(sys, "argv", ["mnist.py", str(tmp_path / "idx"), str(tmp_path / "tars")])
    mnist.main()
    source = open_source(str(tmp_path / "tars" / "train-{0000..0002}.tar"))
    images, labels = splits["train"]
    assert [source.label(i) for i in range(len(source))] == labels.tolist()
    assert np.array_equal(np.asarray(source.read(24)), images[24])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (TRAIN_LABELS, None, "has neither train-labels-idx1-ubyte.gz nor train-labels-idx1-ubyte"),
        (TRAIN_IMAGES, idx(np.zeros(25)), "begins with the number 2049, wanted 2051"),
        (TRAIN_LABELS, idx(np.zeros((25, 28, 28))), "begins with the number 2051, wanted 2049"),
        (TRAIN_IMAGES, b"<html>not here</html>", "begins with the number 1013478509, wanted 2051"),
        (TRAIN_IMAGES, b"", "begins with the number 0, wanted 2051"),
        (
            TRAIN_IMAGES,
            idx(np.zeros((25, 28, 28)))[:-1],
            "says 25 x 28 x 28, and has 19599 bytes for them: damaged or cut short",
        ),
        (TRAIN_IMAGES, idx(np.zeros((25, 28, 28))) + b"x", "says 25 x 28 x 28, and has 19601 bytes"),
        (TRAIN_IMAGES, idx(np.zeros((25, 28, 28)))[:10], "has no sizes: damaged or cut short"),
        (TRAIN_IMAGES, gzip.compress(idx(np.zeros((25, 28, 28))))[:-9], "damaged or cut short"),
        (TRAIN_IMAGES, idx(np.zeros((25, 32, 32))), "has images of 32x32, wanted 28x28"),
        (TRAIN_IMAGES, idx(np.zeros((24, 28, 28))), r"has 24 images, and .* has 25 labels"),
        (TRAIN_LABELS, idx(np.array([*range(10), 10, *[0] * 14])), "label 10 is 10, wanted 0 to 9"),
    ],
)
def test_what_is_not_mnist_is_refused(tmp_path, name, content, message):
    write_mnist(tmp_path / "idx", train=25, test=3)
    (tmp_path / "idx" / name).unlink()
    if content is not None:
        (tmp_path / "idx" / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as refused:
        mnist.read_split(tmp_path / "idx", "train")
    assert name.removesuffix(".gz") in str(refused.value)


def test_an_error_is_one_line_and_leaves_no_folder(tmp_path):
    write_mnist(tmp_path / "idx", train=25, test=3)
    (tmp_path / "idx" / "t10k-labels-idx1-ubyte.gz").unlink()
    refused = run(tmp_path / "idx", tmp_path / "tars")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: ")
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "tars").exists()
