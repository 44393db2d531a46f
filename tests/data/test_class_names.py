"""Held-out images beside training images whose classes are known by number only, as those of samples are."""

import pytest
from PIL import Image
from webdataset import TarWriter

from vqvae2.data.images import ImageDataModule


@pytest.fixture
def folder(tmp_path):
    return tmp_path


def tar(path, labels):
    with TarWriter(str(path)) as out:
        for number, label in enumerate(labels):
            out.write({"__key__": f"{number}", "png": Image.new("L", (4, 4)), "cls": label})
    return str(path)


def class_folders(root, names):
    for name in names:
        (root / name).mkdir(parents=True)
        Image.new("L", (4, 4)).save(root / name / "x.png")
    return str(root)


def held_out(train, location, **options):
    data = ImageDataModule(train=train, val=location, image_size=4, channels=1, batch_size=1, **options)
    split = data.splits["val"]
    return data, {split.key(i).partition("/")[0]: split.label(i) for i in range(len(split))}


def test_sorted_folders_are_the_classes_of_numbered_tars_and_name_them(folder):
    train = tar(folder / "samples.tar", [2, 0, 1])
    data, labels = held_out(train, class_folders(folder / "val", ["n10", "n02", "n1"]))
    assert labels == {"n02": 0, "n1": 1, "n10": 2}
    assert data.classes == ("n02", "n1", "n10")
    padded, labels = held_out(train, class_folders(folder / "padded", ["08", "09", "10"]))
    assert labels == {"08": 0, "09": 1, "10": 2}
    assert padded.classes == ("08", "09", "10")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["a", "b"],
            r"val has 2 class folders \(a, b, …\), but .*samples.tar has 3 classes, known by number",
        ),
        (["0", "1"], "has 2 class folders"),  # which two of the three?
        (["a", "b", "c", "d"], "has 4 class folders"),
        (["1", "2", "10"], r"class folders 1, 10, 2, …: sorted by name .* leading zeros"),
    ],
)
def test_folders_that_are_not_the_numbered_classes(folder, names, message):
    with pytest.raises(ValueError, match=message):
        held_out(tar(folder / "samples.tar", [2, 0, 1]), class_folders(folder / "val", names))


def test_missing_classes_of_tars_can_be_stated(folder):
    val = class_folders(folder / "val", "abc")
    with pytest.raises(ValueError, match=r"has 2 classes, .*set num_classes"):
        held_out(tar(folder / "samples.tar", [1, 0]), val)
    data, labels = held_out(str(folder / "samples.tar"), val, num_classes=3)
    assert (data.classes, labels) == (("a", "b", "c"), {"a": 0, "b": 1, "c": 2})


def test_named_training_classes_still_decide(folder):
    train = class_folders(folder / "train", ["0", "1", "10", "2"])
    _, labels = held_out(train, class_folders(folder / "val", ["10", "2"]))
    assert labels == {"10": 2, "2": 3}
    with pytest.raises(ValueError, match="1 of 1 class folders"):
        held_out(train, class_folders(folder / "other", ["3"]))


def test_other_locations_and_ignored_labels_stay_as_they_were(folder):
    train = tar(folder / "samples.tar", [2, 0, 1])
    assert held_out(train, tar(folder / "val.tar", [2, 1]))[1] == {"val": 1}
    with pytest.raises(ValueError, match="has the label 3, outside the 3 classes"):
        held_out(train, tar(folder / "more.tar", [3]))
    data, labels = held_out(train, class_folders(folder / "folders", "ab"), num_classes=0)
    assert (data.classes, set(labels.values())) == ((), {-1})


def test_a_held_out_part_of_other_images_needs_its_size(folder):
    train = tar(folder / "samples.tar", [0])
    with pytest.raises(ValueError, match="holdout_of is demo:digits, but holdout is 0"):
        ImageDataModule(train=train, holdout_of="demo:digits", image_size=4, batch_size=1)
    with pytest.raises(ValueError, match="wanted one of the two"):
        ImageDataModule(
            train=train, val="x", holdout=0.1, holdout_of="demo:digits", image_size=4, batch_size=1
        )
