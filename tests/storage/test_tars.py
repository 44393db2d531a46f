"""Nothing in a tar is dropped, added or re-labelled without a word."""

import gzip
import os
import subprocess
import tarfile

import numpy as np
import pytest
from PIL import Image

from tests.data.image_files import facts, png, value_of, write_members
from vqvae2.data.images import ImageDataModule
from vqvae2.data.sources import open_source
from vqvae2.storage.cache import cache_folder
from vqvae2.storage.tars import index_tar


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("VQVAE2_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "system_tmp"))
    (tmp_path / "system_tmp").mkdir()


LINK, HARD = tarfile.SYMTYPE, tarfile.LNKTYPE


def labelled(*numbers):
    """Members of samples: number n has the value n and the label n % 3."""
    return [member for n in numbers for member in ((f"{n}.png", png(n)), (f"{n}.cls", str(n % 3).encode()))]


@pytest.mark.parametrize("packed", [False, True])
def test_tars_joined_by_cat_are_read_to_the_end(tmp_path, packed):
    parts = []
    for i, numbers in enumerate(([1, 5], [3], [], [7])):
        write_members(tmp_path / f"parts/{i}.tar", labelled(*numbers))
        content = (tmp_path / f"parts/{i}.tar").read_bytes()
        parts.append(gzip.compress(content) if packed else content)
    path = tmp_path / ("x.tar.gz" if packed else "x.tar")
    path.write_bytes(b"".join(parts))
    assert facts(open_source(str(path))) == [("x/1", 1, 1), ("x/5", 2, 5), ("x/3", 0, 3), ("x/7", 1, 7)]


def test_joined_tars_without_their_padding(tmp_path):
    """Two empty blocks end a tar; that it is filled up to 10,240 bytes is a habit."""
    path = tmp_path / "x.tar"
    whole = []
    for number in (1, 2):
        write_members(path, labelled(number))
        content = path.read_bytes().rstrip(b"\0")
        whole.append(content + bytes(-len(content) % 512 + 1024))
    path.write_bytes(b"".join(whole))
    assert [key for key, _, _ in facts(open_source(str(path)))] == ["x/1", "x/2"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda first, second: first + second[:-9000], r"no end mark after its readable 1\d,\d{3} bytes"),
        (
            lambda first, second: first + b"no tar" * 99,
            "no tar follows after its readable 10,240 bytes",
        ),
        (lambda first, second: first + second[:700], "damaged or cut short"),
        (lambda first, second: first + first, r"sample 1 has two members of one kind \(1\.png, 1\.png\)"),
    ],
)
def test_a_second_part_that_is_damaged_or_the_same_is_refused(tmp_path, damage, message):
    parts = []
    for number in (1, 2):
        write_members(tmp_path / f"{number}.tar", labelled(number))
        parts.append((tmp_path / f"{number}.tar").read_bytes())
    (tmp_path / "x.tar").write_bytes(damage(*parts))
    with pytest.raises(ValueError, match=message):
        open_source(str(tmp_path / "x.tar"))


def test_labels_count_wherever_they_lie_and_in_any_case(tmp_path):
    members = labelled(5, 4, 3, 1)
    orders = {
        "neighbours": members,
        "behind": members[::2] + members[1::2],
        "before": members[1::2] + members[::2],
        "upper": [(name.upper(), content) for name, content in members],
        "windows": [
            (name, content + b"\r\n" if name.endswith("cls") else content) for name, content in members
        ],
        "marked": [(name, b"\xef\xbb\xbf" * name.endswith("cls") + content) for name, content in members],
    }
    for name, order in orders.items():
        found = facts(open_source(write_members(tmp_path / name / "x.tar", order)))
        assert found == [("x/5", 2, 5), ("x/4", 1, 4), ("x/3", 0, 3), ("x/1", 1, 1)], name


def test_links_are_what_they_lead_to(tmp_path, caplog):
    location = write_members(
        tmp_path / "x.tar",
        [
            ("b/9.png", (LINK, "../a/1.png")),  # before what it leads to
            ("b/9.cls", b"2"),
            ("a/1.png", png(11)),
            ("a/1.cls", b"1"),
            ("a/2.png", (HARD, "./a/1.png")),
            ("a/2.cls", (HARD, "a/1.cls")),
            ("c/3.png", (LINK, "../b/9.png")),  # of a link
            ("c/3.cls", b"0"),
            ("c/4.jpg", (LINK, "../.store/0af3")),
            ("c/4.cls", b"0"),
            (".store/0af3", png(44)),
        ],
    )
    assert facts(open_source(location)) == [
        *(("x/b/9", 2, 11), ("x/a/1", 1, 11), ("x/a/2", 1, 11), ("x/c/3", 0, 11), ("x/c/4", 0, 44)),
    ]
    assert caplog.text == ""


def test_what_lacks_an_image_is_counted_named_and_refused_where_strict(tmp_path, caplog):
    location = write_members(
        tmp_path / "x.tar",
        [
            *labelled(1, 2),
            ("3.cls", b"0"),
            ("4.png", (LINK, "gone.png")),
            ("4.cls", b"0"),
            ("5.png", (LINK, "5.png")),
            ("6.heic", b"?"),
            ("6.cls", b"1"),
            ("README", b"?"),
            ("1.txt", b"a caption belongs to its sample"),
            ("folder/", (tarfile.DIRTYPE, "")),
        ],
    )
    data = ImageDataModule(train=location, image_size=8, batch_size=1)
    data.setup("fit")
    assert len(data.splits["train"]) == 2
    assert f"{location}: 4 samples without image or label: x/3.cls, x/4.png, x/6.cls, …; " in caplog.text
    assert "passed over 2 files other than pictures: .heic (1), without an ending (1)" in caplog.text
    strict = ImageDataModule(train=location, image_size=8, batch_size=1, strict=True)
    with pytest.raises(ValueError, match=r"x\.tar: 4 samples lack their image or label, first x/3\.cls"):
        strict.setup("fit")


def test_a_label_that_links_to_nothing_is_named(tmp_path, caplog):
    open_source(write_members(tmp_path / "x.tar", [("1.png", png(1)), ("1.cls", (HARD, "0.cls"))]))
    assert "1 sample without image or label: x/1.cls" in caplog.text


def test_what_a_kept_index_leaves_out_is_said_by_the_next_process_too(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("vqvae2.storage.tars.WORTH_KEEPING", 1)
    location = write_members(tmp_path / "x.tar", [*labelled(1), ("é\udcff.cls", b"0"), ("z.txt", b"")])
    first = open_source(location)
    monkeypatch.setattr("vqvae2.storage.tars.index_tar", lambda *_: pytest.fail("indexed again"))
    monkeypatch.setattr("vqvae2.storage.passed_over._once", lambda text: caplog.records.append(text))
    again = open_source(location)
    assert again.missing == first.missing == ("x/é\udcff.cls",)
    assert "passed over 1 file other than pictures: .txt (1)" in caplog.records[-1]
    assert facts(again) == facts(first)


def test_an_index_of_an_earlier_format_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr("vqvae2.storage.tars.WORTH_KEEPING", 1)
    location = write_members(tmp_path / "x.tar", labelled(1, 2))
    open_source(location)
    (index,) = (cache_folder() / "indices").iterdir()
    with np.load(index) as file:
        columns = dict(file)
    columns |= {"key": columns["key"][:1], "suffix": columns["suffix"][:1], "label": np.array([9])}
    columns |= {"offset": columns["offset"][:1], "size": columns["size"][:1]}
    np.savez(index, **columns)
    assert open_source(location).labels.tolist() == [9]  # it is the index that is read
    facts_of_tar = os.stat(location)
    for end in ("", " "):  # formats had no numbers
        version = f"{facts_of_tar.st_size} {facts_of_tar.st_mtime_ns}{end}"
        assert version in str(columns["version"])
        np.savez(index, **columns | {"version": np.array(version)})
        assert open_source(location).labels.tolist() == [1, 2]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("written", ["./{}", "././{}", ".//{}", "{}"])
def test_names_have_one_form(tmp_path, form, written):
    members = [("a/1.png", png(1)), ("a/1.cls", b"1"), ("v1.0/2.x.png", png(2)), ("v1.0/2.cls", b"0")]
    location = write_members(
        tmp_path / "x.tar",
        [("./", (tarfile.DIRTYPE, "")), *((written.format(name), content) for name, content in members)],
        form,
    )
    source = open_source(location)
    assert [source.name(i) for i in range(2)] == ["x/a/1.png", "x/v1.0/2.x.png"]
    assert facts(source) == [("x/a/1", 1, 1), ("x/v1.0/2", 0, 2)]


def test_one_name_in_two_forms_is_refused(tmp_path):
    for kind in ("png", "cls"):
        members = [*labelled(1), (f"./1.{kind}", png(2))]
        with pytest.raises(ValueError, match=rf"sample 1 has two members .* \(1\.{kind}, 1\.{kind}\)"):
            open_source(write_members(tmp_path / "x.tar", members))


def test_backslashes_of_windows_are_folders(tmp_path):
    members = [("v1.0\\cat\\1.png", png(1)), ("v1.0\\cat\\1.cls", b"0"), ("v1.0\\cat\\2.png", png(2))]
    members += [("v1.0\\cat\\2.cls", b"1")]
    location = write_members(tmp_path / "x.tar", members)
    assert facts(open_source(location)) == [("x/v1.0/cat/1", 0, 1), ("x/v1.0/cat/2", 1, 2)]


def test_hidden_members_are_skipped_as_hidden_files_are(tmp_path, caplog):
    members = [*labelled(1), ("./._1.png", b"?"), ("cat/.ipynb_checkpoints/1-checkpoint.png", png(9))]
    members += [("__MACOSX/._1.png", b"?"), (".hidden.cls", b"0"), ("../2.png", png(2)), ("../2.cls", b"0")]
    location = write_members(tmp_path / "x.tar", members)
    assert [value for _, _, value in facts(open_source(location))] == [1, 2]
    assert caplog.text == ""


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_names_longer_than_a_header(tmp_path, form):
    name = "d" * 150 + "/" + "n" * 140
    location = write_members(tmp_path / "x.tar", [(f"{name}.png", png(3)), (f"{name}.cls", b"1")], form)
    assert facts(open_source(location)) == [(f"x/{name}", 1, 3)]


@pytest.mark.parametrize("form", ["gnu", "posix"])
def test_pictures_stored_with_holes_are_refused_and_other_such_files_do_no_harm(tmp_path, form):
    """Their bytes do not lie in one piece; GNU tar alone writes such files."""
    pixels = np.zeros((200, 200, 3), np.uint8)
    pixels[0], pixels[-1] = 9, 9
    Image.fromarray(pixels).save(tmp_path / "1.bmp")
    content = (tmp_path / "1.bmp").read_bytes()
    for name in ("1.bmp", "1.npy"):
        with (tmp_path / name).open("wb") as file:
            file.write(content[:4096])
            file.seek(len(content) - 1024)
            file.write(content[-1024:])
    (tmp_path / "2.png").write_bytes(png(2))

    def packed(*names):
        command = ["tar", "-S", f"--format={form}", "-C", tmp_path, "-cf", tmp_path / "x.tar", *names]
        subprocess.run(command, check=True)
        assert (tmp_path / "x.tar").stat().st_size < 40_000
        return str(tmp_path / "x.tar")

    with pytest.raises(ValueError, match=r"x\.tar: 1\.bmp is not stored as a file in one piece.*--sparse"):
        open_source(packed("2.png", "1.bmp"))
    assert facts(open_source(packed("2.png", "1.npy"))) == [("x/2", -1, 2)]
    assert facts(open_source(packed("1.npy", "2.png"))) == [("x/2", -1, 2)]


@pytest.mark.parametrize("name", ["{a,b}", "{0..1}", "{a", "a}", "[ab]", "a*b", "what?", "a\\b", "$x", "é"])
def test_a_path_that_exists_is_no_pattern(tmp_path, name):
    write_members(tmp_path / name / "x-0.tar", labelled(1))
    write_members(tmp_path / name / "x-1.tar", labelled(2))
    write_members(tmp_path / f"{name}.tar", labelled(4))
    np.savez(tmp_path / f"{name}.npz", np.full((1, 4, 4, 3), 7, np.uint8))
    for location, values in (
        (f"{tmp_path}/{name}", [1, 2]),
        (f"{tmp_path}/{name}/x-1.tar", [2]),
        (f"{tmp_path}/{name}/x-{{0..1}}.tar", [1, 2]),
        (f"{tmp_path}/{name}.tar", [4]),
        (f"{tmp_path}/{name}.npz", [7]),
    ):
        source = open_source(location)
        assert [value_of(source, i) for i in range(len(source))] == values, location


def test_patterns_of_relative_paths_and_of_folders(tmp_path, monkeypatch):
    for folder, number in (("a", 1), ("b", 2)):
        write_members(tmp_path / f"{folder}/x.tar", labelled(number))
    monkeypatch.chdir(tmp_path)
    assert [value for _, _, value in facts(open_source("{b,a}/x.tar"))] == [2, 1]
    with pytest.raises(ValueError, match=r"1 of 2 tars are not there, first c/x\.tar"):
        open_source("{a,c}/x.tar")
    longer_than_a_name = "x-{" + ",".join(map(str, range(100))) + "}.tar"
    with pytest.raises(ValueError, match="100 of 100 tars are not there"):
        open_source(longer_than_a_name)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (b"99999999999", r"x/2\.png has the label 99999999999, which would mean 100,000,000,000 classes"),
        (b"1000000", "which would mean 1,000,001 classes; wanted at most 1,000,000"),
        (b"-99999999999", r"x/2\.png has the label -99999999999, wanted a class index from 0 on"),
        (b"9" * 30, "sample 2 has the label b'999999999999999999999999999999', wanted a class index"),
    ],
)
def test_labels_that_are_no_numbers_of_classes_are_named(tmp_path, label, message):
    location = write_members(tmp_path / "x.tar", [*labelled(1), ("2.png", png(2)), ("2.cls", label)])
    with pytest.raises(ValueError, match=message):
        open_source(location)
    if len(label) < 30:
        assert open_source(location, num_classes=0).labels.tolist() == [-1, -1]


def test_as_many_classes_as_there_can_be(tmp_path):
    location = write_members(tmp_path / "x.tar", [("1.png", png(1)), ("1.cls", b"999999")])
    assert len(open_source(location).classes) == 1_000_000
    with pytest.raises(ValueError, match="num_classes is 100,000,000,000, wanted at most 1,000,000"):
        open_source(location, num_classes=10**11)


def test_the_order_is_that_of_the_images(tmp_path):
    path = tmp_path / "x.tar"
    write_members(path, [("9.cls", b"1"), ("1.png", png(1)), ("9.png", png(9)), ("1.cls", b"0")])
    assert [sample.key for sample in index_tar(path, "x").samples] == ["1", "9"]
