"""Nothing in a folder is dropped, added or re-labelled without a word."""

import logging
import os
import unicodedata
from collections import Counter

import pytest

from tests.data.image_files import facts, png, write, write_tar
from tests.ranks import run_ranks
from vqvae2.data.images import ImageDataModule
from vqvae2.data.sources import open_source
from vqvae2.storage.passed_over import files_of_endings


def spelled(form, *names):
    return [unicodedata.normalize(form, name) for name in names]


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", "@eaDir", "__MACOSX", "lost+found", "deep/.thumbs"])
def test_hidden_folders_are_skipped_at_any_depth(tmp_path, caplog, hidden):
    names = ["cat/0.png", f"cat/{hidden}/1.png", f"{hidden.replace('deep/', '')}/2.png", "dog/3.png"]
    source = open_source(write(tmp_path, names))
    assert facts(source) == [("cat/0", 0, 0), ("dog/3", 1, 3)]
    assert caplog.text == ""


def test_linked_pictures_and_folders_are_read_as_if_they_lay_there(tmp_path, caplog):
    write(tmp_path / "store", ["more/5.png", "6.png", "more/deep/7.png"])
    root = tmp_path / "data"
    write(root, ["cat/0.png", "dog/1.png"])
    os.symlink(tmp_path / "store/more", root / "cat/linked")
    os.symlink("../../store/6.png", root / "dog/6.png")
    os.symlink(tmp_path / "store", root / "owl")
    assert [key for key, _, _ in facts(open_source(str(root)))] == [
        *("cat/0", "cat/linked/5", "cat/linked/deep/7"),
        *("dog/1", "dog/6"),
        *("owl/6", "owl/more/5", "owl/more/deep/7"),
    ]
    assert caplog.text == ""


def test_links_in_a_circle_end_and_are_named(tmp_path, caplog):
    write(tmp_path, ["cat/0.png", "dog/in/1.png"])
    os.symlink("..", tmp_path / "dog/in/up")
    os.symlink("../..", tmp_path / "dog/in/top")
    os.symlink("../dog", tmp_path / "cat/dog")
    assert [key for key, _, _ in facts(open_source(str(tmp_path)))] == ["cat/0", "cat/dog/in/1", "dog/in/1"]
    assert "4 links back to a folder around, not followed: cat/dog/in/top, cat/dog/in/up, " in caplog.text


def test_broken_links_are_named_at_once_and_pictures_among_them_count_as_unreadable(tmp_path, caplog):
    write(tmp_path, ["cat/0.png", "dog/1.png"])
    for name, target in (("cat/2.png", "gone.png"), ("cat/more", "/gone"), ("dog/loop", "loop")):
        os.symlink(target, tmp_path / name)
    data = ImageDataModule(train=str(tmp_path), image_size=4, batch_size=1)
    data.setup("fit")
    assert f"{tmp_path}: 3 links leading nowhere: cat/2.png, cat/more, dog/loop" in caplog.text
    assert sorted(i for batch in data.predict_dataloader()[0] for i in batch.index.tolist()) == [0, 2]
    data.teardown()
    assert "skipped 1 of 3 train images, unreadable: cat/2.png" in caplog.text
    strict = ImageDataModule(train=str(tmp_path), image_size=4, batch_size=1, strict=True)
    with pytest.raises(ValueError, match=r"cat/2\.png cannot be read"):
        list(strict.predict_dataloader()[0])


def test_a_flat_folder_keeps_its_broken_links_too(tmp_path, caplog):
    write(tmp_path, ["0.png"])
    os.symlink("gone.png", tmp_path / "1.png")
    assert len(open_source(str(tmp_path))) == 2
    assert "1 link leading nowhere: 1.png" in caplog.text


def test_other_files_are_counted_by_ending_and_said_once(tmp_path, caplog):
    write(tmp_path, ["cat/0.png", "dog/1.png", *(f"cat/{i}.txt" for i in range(11)), "dog/x.HEIC", "README"])
    os.mkfifo(tmp_path / "dog/pipe.png")  # to open it would wait for ever
    for _ in range(2):
        assert len(open_source(str(tmp_path))) == 2
    said = [record.getMessage() for record in caplog.records]
    listed = ".txt (11), .heic (1), .png (1), without an ending (1)"
    assert len(said) == 1
    assert set(said[0].partition("pictures: ")[2].split(", ")) == set(listed.split(", "))
    assert said[0].startswith(f"{tmp_path}: passed over 14 files other than pictures: .txt (11), ")


def test_more_endings_than_five_are_cut_short():
    (text,) = files_of_endings(Counter({f".{i}": 9 - i for i in range(7)}))
    assert text == "passed over 42 files other than pictures: .0 (9), .1 (8), .2 (7), .3 (6), .4 (5), …"
    assert files_of_endings(Counter()) == []


def said_by_ranks(location):
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("vqvae2").addHandler(handler)
    open_source(location)
    return messages


def test_one_rank_says_it(tmp_path):
    location = write(tmp_path, ["0.png", "a.txt"])
    first, second = run_ranks(said_by_ranks, 2, location)
    assert first == [f"{location}: passed over 1 file other than pictures: .txt (1)"]
    assert second == []


PARTS = [
    ["train", "test"],
    ["Train", "VAL"],
    ["train", "valid", "test"],
    ["training", "validation"],
    ["training_set", "test_set"],
    ["train2017", "val2017"],
    ["seg_train", "seg_test"],
    ["images_train", "images-dev"],
    ["trainA", "trainB", "testA", "testB"],
    ["train", "Eval Images", "bus"],
    ["test", "hold-out"],
    ["training"],
    ["test"],
]


@pytest.mark.parametrize("names", PARTS, ids=str)
def test_parts_of_a_data_set_are_no_classes(tmp_path, names):
    location = write(tmp_path, [f"{name}/cat/{i}.png" for i, name in enumerate(names)])
    with pytest.raises(ValueError, match=r"named like parts of a data set.*one by one as train and val") as e:
        open_source(location)
    named = str(e.value).partition("such as ")[2].partition(",")[0]
    assert os.path.dirname(named) == location
    assert os.path.basename(named) in names
    assert open_source(named).classes == ("cat",)


CLASSES = [
    ["bus", "train"],  # a vehicle, as in CIFAR-100 and COCO
    ["test tube", "train station"],
    ["testament", "valley"],
    ["device", "trainer"],
]


@pytest.mark.parametrize("names", CLASSES, ids=str)
def test_classes_that_are_called_like_parts_stay_classes(tmp_path, names):
    assert open_source(write(tmp_path, [f"{name}/0.png" for name in names])).classes == tuple(names)


def test_one_part_may_be_a_class_of_the_training_images_or_without_labels(tmp_path):
    location = write(tmp_path, ["train/0.png"])
    assert open_source(location, classes=("bus", "train")).labels.tolist() == [1]
    assert open_source(location, num_classes=0).labels.tolist() == [-1]
    with pytest.raises(ValueError, match="parts of a data set"):  # held-out images among the others
        open_source(write(tmp_path, ["test/0.png"]), num_classes=0)


def test_tars_of_several_parts_in_one_folder(tmp_path):
    for name in ("train-0000", "train-0001", "val-0000"):
        write_tar(tmp_path / f"{name}.tar", ["0"])
    with pytest.raises(ValueError, match=r"holds train-0000\.tar, val-0000\.tar, named like parts"):
        open_source(str(tmp_path))
    assert len(open_source(f"{tmp_path}/train-{{0000..0001}}.tar")) == 2


def test_tars_among_pictures_are_refused_whichever_are_more(tmp_path):
    write(tmp_path, [f"{i}.png" for i in range(20)])
    write_tar(tmp_path / "old.tar", ["0"])
    with pytest.raises(
        ValueError, match=r"mixes 1 tars \(old\.tar, …\) with pictures \(0\.png, …\)\. Name"
    ) as e:
        open_source(str(tmp_path))
    assert str(tmp_path / "old.tar") in str(e.value)
    assert len(open_source(str(tmp_path / "old.tar"))) == 1


def test_a_tar_beside_class_folders_is_refused_and_beside_other_folders_said(tmp_path, caplog):
    write(tmp_path / "a", ["cat/deep/0.png"])
    write_tar(tmp_path / "a/cat.tar", ["0"])
    with pytest.raises(ValueError, match=r"mixes 1 tars \(cat\.tar, …\) with pictures \(those in cat, …\)"):
        open_source(str(tmp_path / "a"))
    (tmp_path / "b/logs").mkdir(parents=True)
    (tmp_path / "b/more.tar.zst").write_bytes(b"")
    write_tar(tmp_path / "b/x.tar", ["0"])
    assert len(open_source(str(tmp_path / "b"))) == 1
    assert f"{tmp_path}/b: passed over 1 file other than tars: .zst (1)" in caplog.text


def test_a_folder_of_samples_holds_tars_beside_what_their_job_writes(tmp_path, caplog):
    write(tmp_path, ["grid.png", "another.png"])
    (tmp_path / "job.json").write_text('{"identity": {"job": "vqvae2 samples"}, "num_samples": {}}')
    (tmp_path / "scores.csv").write_text("")
    write_tar(tmp_path / "000000.tar", ["0", "1"])
    assert len(open_source(str(tmp_path))) == 2
    assert caplog.text == ""


def test_the_companions_of_macs_beside_tars_are_skipped(tmp_path):
    write_tar(tmp_path / "train-0000.tar", ["0"])
    (tmp_path / "._train-0000.tar").write_bytes(b"\0\5\x16\7\0\2\0\0" + bytes(4000))
    assert len(open_source(str(tmp_path))) == 1


def test_one_name_in_two_forms_of_unicode_is_one_class(tmp_path):
    train, val = (
        open_source(
            write(tmp_path / form, [f"{name}/0.png" for name in spelled(form, "über", "zoo", "café")])
        )
        for form in ("NFC", "NFD")
    )
    # Sorted as Linux has them: ü comes after z. A Mac's disk must not change the labels.
    assert train.classes == val.classes == tuple(spelled("NFC", "café", "zoo", "über"))
    assert val.labels.tolist() == train.labels.tolist() == [0, 1, 2]
    beside = open_source(
        str(tmp_path / "NFD"), classes=(*spelled("NFD", "über"), "zoo", *spelled("NFD", "café"))
    )
    assert {key[:2]: label for key, label, _ in facts(beside)} == {"ca": 2, "zo": 1, "u\u0308": 0}


def test_both_forms_of_one_name_in_one_folder_are_named(tmp_path):
    location = write(tmp_path, [f"{name}/0.png" for form in ("NFC", "NFD") for name in spelled(form, "café")])
    with pytest.raises(ValueError, match=r"café is there twice, as 'caf.*as 'caf.*two forms of Unicode"):
        open_source(location)


@pytest.mark.parametrize(
    "name", ["[ab]", "a*", "what?", "{a,b}", "{0..2}", "{", "back\\slash", "$HOME", "% s"]
)
def test_folders_of_any_name_are_read(tmp_path, name):
    location = write(tmp_path / name, [f"{name}/0.png", f"b/{name}.png"])
    assert len(open_source(location)) == 2
    (tmp_path / name / "b" / f"{name}.png").write_bytes(png(9))
    assert {value for _, _, value in facts(open_source(location))} == {0, 9}
