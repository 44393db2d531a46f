"""Labels in a field of each sample's .json."""

import json

import pytest

from tests.data.image_files import png, write, write_members
from vqvae2.data.images import ImageDataModule
from vqvae2.data.sources import open_source


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VQVAE2_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("vqvae2.storage.tars.WORTH_KEEPING", 1)


def tar(path, values, *, field="class", **others):
    """Sample n has the n-th value in its field, and a misleading .cls."""
    members = []
    for number, value in enumerate(values):
        content = json.dumps({**others, field: value}).encode()
        members += [(f"{number}.png", png(number)), (f"{number}.JSON", content), (f"{number}.cls", b"7")]
    return write_members(path, members)


def test_numbers_are_class_indices(tmp_path):
    location = tar(tmp_path / "x.tar", [2, "0", 1], caption="a word")
    assert open_source(location, label_field="class").labels.tolist() == [2, 0, 1]
    assert open_source(location, label_field="class").classes == ("0", "1", "2")
    assert open_source(location).labels.tolist() == [
        7,
        7,
        7,
    ]  # the .cls; the index kept is not that of the field
    assert open_source(location, label_field="class", num_classes=0).labels.tolist() == [-1, -1, -1]


def test_names_are_classes_in_sorted_order(tmp_path):
    location = tar(tmp_path / "x.tar", ["zoo", "ant", "cafe\u0301", "caf\u00e9", "zoo"])
    for _ in range(2):  # the second time from the kept index
        source = open_source(location, label_field="class")
        assert source.classes == ("ant", "caf\u00e9", "zoo")
        assert source.labels.tolist() == [2, 0, 1, 1, 2]


@pytest.mark.parametrize("held_out_as", ["folders", "names", "numbers"])
def test_held_out_images_have_the_training_images_classes(tmp_path, held_out_as):
    train = tar(tmp_path / "train.tar", ["zoo", "ant", "bee"])
    if held_out_as == "folders":
        val = write(tmp_path / "val", ["bee/0.png", "zoo/1.png"])
    else:
        val = tar(tmp_path / "val.tar", ["bee", "zoo"] if held_out_as == "names" else [1, 2])
    data = ImageDataModule(train=train, val=val, image_size=8, batch_size=1, label_field="class")
    assert data.classes == ("ant", "bee", "zoo")
    assert [data.splits["val"].label(i) for i in range(2)] == [1, 2]


def test_strangers_among_held_out_names_are_refused(tmp_path):
    train = tar(tmp_path / "train.tar", ["zoo", "ant"])
    val = tar(tmp_path / "val.tar", ["ant", "bee"])
    data = ImageDataModule(train=train, val=val, image_size=8, batch_size=1, label_field="class")
    with pytest.raises(ValueError, match=r"val\.tar: 1 of 2 'class' of \.json members \(bee\) are not among"):
        data.setup("fit")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, True], "sample 1 has 'class' 'True', wanted a class's number or name"),
        ([0, 1.0], "sample 1 has 'class' '1.0'"),
        ([0, None], "sample 1 has 'class' 'None'"),
        ([0, [1]], r"sample 1 has 'class' '\[1\]'"),
        ([0, ""], "sample 1 has 'class' ''"),
        ([0, 10**20], "sample 1 has 'class' '1000"),
        ([0, "ant"], "'class' is a class's number in some samples and a name in others"),
        ([0, 99999999999], r"x/1\.png has the label 99999999999, which would mean 100,000,000,000 classes"),
        ([0, -2], r"x/1\.png has the label -2"),
    ],
)
def test_fields_that_are_no_class_are_named(tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        open_source(tar(tmp_path / "x.tar", values), label_field="class")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            [("0.json", b'{"label": 1, "text": ""}')],
            "sample 0: its .json has no field 'class', but label, text",
        ),
        ([("0.json", b"{}")], "no field 'class', but nothing"),
        ([("0.json", b"[1]")], "no field 'class', but list"),
        ([("0.json", b"{class: 1}")], r"sample 0: its \.json cannot be read"),
        ([("0.json", b"\xff\xfe1")], r"sample 0: its \.json cannot be read"),
        (
            [("0.json", b'{"class": 0}'), ("1.png", png(1))],
            r"1 of 2 samples have no \.json member, first x/1\.png",
        ),
    ],
)
def test_json_that_says_no_class_is_named(tmp_path, members, message):
    with pytest.raises(ValueError, match=message):
        open_source(write_members(tmp_path / "x.tar", [("0.png", png(0)), *members]), label_field="class")


def test_the_option_is_refused_where_there_are_no_tars(tmp_path):
    location = write(tmp_path / "x", ["a/0.png", "b/1.png"])
    data = ImageDataModule(train=location, image_size=8, batch_size=1, label_field="class")
    with pytest.raises(ValueError, match=r"label_field is class, but .* is not tars"):
        data.setup("fit")
