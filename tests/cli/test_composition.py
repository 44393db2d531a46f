"""Configs as files: keys given once, whatever the bytes; what goes over what."""

from pathlib import Path

import pytest
import yaml

from tests.cli.fake_job import composed, write
from vqvae2.cli.composition import UsageError, check_keys, merge, read_config
from vqvae2.cli.recipes import compose, config_files, expanded

A, B, C = ({"class_path": name} for name in "ABC")

TWICE = [
    ("a: 1\nb: 2\na: 3\n", "line 3: 'a' is given twice, first in line 1. Keep one."),
    ("t:\n  x: {k: 1, l: 2,\n      k: 3}\n", "line 3: 'k' is given twice, first in line 2. Keep one."),
    ("t:\n- x: 1\n- y: 1\n  y: 2\n", "line 4: 'y' is given twice, first in line 3. Keep one."),
    ("1: a\n'1': b\n", "line 2: '1' is given twice, first in line 1. Keep one."),
    ("'1': a\n1: b\n", "line 2: '1' is given twice, first in line 1. Keep one."),
    ("0x10: a\n16: b\n", "line 2: '16' is given twice, first in line 1. Keep one."),
    ("yes: a\ntrue: b\n", "line 2: 'true' is given twice, first in line 1. Keep one."),
    ("~: a\nnull: b\n", "line 2: 'null' is given twice, first in line 1. Keep one."),
    ('"a": 1\na: 2\n', "line 2: 'a' is given twice, first in line 1. Keep one."),
    (
        "p: &p {x: 1}\nq: &q {y: 1}\nr:\n  <<: *p\n  <<: *q\n",
        "line 5: '<<' is given twice, first in line 4. Merge several as <<: [*a, *b].",
    ),
    ("p: &p {x: 1, x: 2}\nr: *p\n", "line 1: 'x' is given twice, first in line 1. Keep one."),
]


@pytest.mark.parametrize(("text", "message"), TWICE)
def test_a_key_given_twice_is_refused_with_file_and_lines(tmp_path, text, message):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as error:
        read_config(file)
    assert str(error.value) == f"{file}, {message}"


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("p: &p {x: 1, y: 1}\nq: &q {<<: *p, x: 2}\nr: {<<: *q, y: 3}\n", {"x": 2, "y": 3}),
        ("p: &p {x: 1}\nq: &q {x: 2, z: 5}\nr: {<<: [*p, *q], y: 3}\n", {"x": 1, "y": 3, "z": 5}),
        ("p: &p {xx: 1}\nq: &q {xx: 2}\nr: {<<: [*p, *q]}\n", {"xx": 1}),  # yaml.org/type/merge.html
        ("p: {x: 1}\nq: {x: 2}\nr: [{x: 1}, {x: 2}]\n", [{"x": 1}, {"x": 2}]),
    ],
)
def test_what_a_merge_key_brings_may_be_given_again(tmp_path, text, content):
    (tmp_path / "a.yaml").write_text(text)
    assert read_config(tmp_path / "a.yaml")["r"] == content


def test_a_key_given_twice_in_a_base_names_the_base(tmp_path):
    (tmp_path / "b.yaml").write_text("trainer:\n  max_steps: 1\n  max_steps: 2\n")
    (tmp_path / "a.yaml").write_text("base: [b.yaml]\n")
    with pytest.raises(UsageError, match=r"b\.yaml, line 3: 'max_steps' is given twice, first in line 2"):
        config_files(["fit", "-c", str(tmp_path / "a.yaml")])


@pytest.mark.parametrize(
    ("base", "child", "message"),
    [
        ({}, {"trainer.x": 1, "trainer": {"x": 2}}, "a.yaml: 'trainer.x' is given twice, once with dots and"),
        (
            {},
            {"model.x": 1, "model.init_args.x": 2},
            "a.yaml: 'model.init_args.x' is given twice, once with dots and",
        ),
        (
            {},
            {"model.x": 1, "model": {"init_args": {"x": 2}}},
            "a.yaml: 'model.x' is given twice, once with dots",
        ),
        ({"trainer.x": 1}, {"trainer": {"x": 2}}, "a.yaml: sets 'trainer.x', which a base sets with dots"),
    ],
)
def test_a_key_with_dots_and_nested(tmp_path, base, child, message):
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(base))
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"base": ["b.yaml"], **child}))
    with pytest.raises(UsageError) as error:
        compose(tmp_path / "a.yaml")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.yaml: is empty, wanted a mapping such as 'trainer: \xe2\x80\xa6'."),
        (b"# nothing\n", "a.yaml: is empty, wanted a mapping such as 'trainer: \xe2\x80\xa6'."),
        (b"- 1\n", "a.yaml: wanted a mapping such as 'trainer: \xe2\x80\xa6', found list."),
        (b"a: 1\nb: caf\xe9\n", "a.yaml, line 2: not UTF-8 (byte 0xe9). Save it as UTF-8."),
        (b"a: 1\nb: \x07\n", "a.yaml, line 2: not YAML: character 0x7."),
        (b"a:\n\tb: 1\n", "a.yaml, line 2: not YAML: found character '\\t' that cannot start any token."),
        (b"a: 1\n---\nb: 1\n", "a.yaml, line 2: not YAML: but found another document."),
        (b"a: &x {b: *x}\n", "a.yaml, line 1: holds itself."),
        (b"a: 2020-13-01\n", "a.yaml: not YAML: month must be in 1..12."),
        (b"? [1, 2]\n: 3\n", "a.yaml, line 1: not YAML: found unhashable key."),
    ],
)
def test_a_file_that_is_no_config(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(UsageError) as error:
        config_files(["fit", "-c", "a.yaml"])
    wanted = message.encode("latin-1").decode() if "\xe2" in message else message
    assert str(error.value).startswith(wanted)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path, encoding):
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    (tmp_path / "a.yaml").write_bytes(f"{mark}trainer: {{x: café}}\n".encode(encoding))
    assert read_config(tmp_path / "a.yaml") == {"trainer": {"x": "café"}}


def test_a_folder_in_place_of_a_config(tmp_path):
    with pytest.raises(UsageError, match=r"cannot be read as a config: Is a directory\.$"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("layers", "merged"),
    [
        ([{"k+": [A]}, {"k": [B]}], {"k": [B]}),
        ([{"k": [A]}, {"k+": [B]}], {"k": [A, B]}),
        ([{"k+": [A]}, {"k+": [B]}], {"k+": [A, B]}),
        ([{"k+": [A]}, {"k": [B]}, {"k+": [C]}], {"k": [B, C]}),
        ([{"k": [A]}, {"k+": [B]}, {"k": [C]}], {"k": [C]}),
        ([{"k+": [A]}, {"k": None}], {"k": None}),
        ([{"k": None}, {"k+": [A]}], {"k": [A]}),
        ([{"k": A}, {"k+": B}], {"k": [A, B]}),  # one where a list may be
        ([{"k+": [A]}, {"k+": B}], {"k+": [A, B]}),
        ([{"k+": [A], "k": [B]}], {"k": [B, A]}),  # of one file: the list, and what is appended
        ([{"k": [A]}, {"k+": [C], "k": [B]}], {"k": [B, C]}),
        ([{"k": [1.0]}, {"k+": 0.5}], {"k": [1.0, 0.5]}),
        ([{"k": "x", "k+": "y"}], {"k": "x", "k+": "y"}),  # names of sets of samples, with a path each
        ([{"k+": "y"}, {"k": "x"}], {"k": "x", "k+": "y"}),
        ([{1: "x"}, {2: "y"}], {1: "x", 2: "y"}),
    ],
)
@pytest.mark.parametrize("place", [(), ("trainer",), ("model", "init_args")])
def test_what_is_appended_and_what_replaces(layers, merged, place):
    def nested(content):
        for name in reversed(place):
            content = {name: content}
        return content

    found = {}
    for layer in layers:
        found = merge(found, nested(layer))
    assert found == nested(merged)


def test_another_class_takes_nothing_of_the_one_before():
    under = {"class_path": "X", "init_args": {"k": [1], "l+": [2]}}
    over = {"class_path": "Y", "init_args": {"k+": [3], "l": [4]}}
    assert merge(under, over) == {"class_path": "Y", "init_args": {"k+": [3], "l": [4]}}


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        (
            ["fit", "--x", "1", "-c", "a", "--y=2", "--config=b"],
            ["fit", "-c", "a", "-c", "b", "--x", "1", "--y=2"],
        ),
        (["fit", "-ca", "--x", "1", "-c=b"], ["fit", "-c", "a", "-c", "b", "--x", "1"]),
        (["fit", "--x", "1", "-c"], ["fit", "--x", "1", "-c"]),  # the parser says what is missing
        (["fit", "-c", "--x", "1"], ["fit", "-c", "--x", "1"]),
        (["--help"], ["--help"]),
    ],
)
def test_configs_come_before_options(tmp_path, monkeypatch, args, wanted):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        Path(name).write_text("{x: 1}")
    assert expanded(args)[0] == wanted


def test_configs_and_bases_below_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home/parts").mkdir(parents=True)
    (tmp_path / "home/parts/b.yaml").write_text("trainer: {x: 1}\n")
    (tmp_path / "home/a.yaml").write_text("base: [~/parts/b.yaml]\n")
    home = tmp_path / "home"
    for args in (["-c", "~/a.yaml"], ["--config=~/a.yaml"], ["-c~/a.yaml"]):
        assert config_files(["fit", *args]) == [home / "parts/b.yaml", home / "a.yaml"]
        assert expanded(["fit", *args])[0] == ["fit", "-c", f"{home}/a.yaml"]
    assert compose(home / "a.yaml") == {"trainer": {"x": 1}}


def test_keys_of_an_option():
    check_keys("{a: 1, b: {a: 2}}")
    with pytest.raises(UsageError, match="line 1: 'a' is given twice"):
        check_keys("{a: 1, b: 2, a: 3}")


def test_bases_come_first_and_a_shared_one_once(tmp_path):
    a, b, c = tmp_path / "a.yaml", tmp_path / "parts/b.yaml", tmp_path / "parts/c.yaml"
    write(c, {})
    write(b, {"base": ["c.yaml"]})
    write(a, {"base": ["parts/b.yaml", "parts/c.yaml"]})
    found = config_files(["fit", f"--config={a}", "--x", "1"])
    assert [path.name for path in found] == ["c.yaml", "b.yaml", "a.yaml"]


def test_merging():
    under = {"a": {"x": 1, "y": [1]}, "k": 1, "model": {"class_path": "A", "init_args": {"p": 1}}}
    over = {"a": {"x": 2, "y+": [2]}, "l+": [3], "model": {"init_args": {"q": 2}}}
    merged = merge(under, over)
    assert merged["a"] == {"x": 2, "y": [1, 2]}
    assert merged["model"] == {"class_path": "A", "init_args": {"p": 1, "q": 2}}
    assert merge(merged, {"l+": [4]})["l+"] == [3, 4]
    assert merge(merged, {"model": {"class_path": "B"}})["model"] == {"class_path": "B"}
    assert merge({"model": {"init_args": {"p": 1}}}, {"model": {"class_path": "B"}})["model"] == {
        "class_path": "B",
        "init_args": {"p": 1},
    }
    assert under["a"] == {"x": 1, "y": [1]}


def test_a_config_that_builds_on_itself(tmp_path):
    write(tmp_path / "a.yaml", {"base": ["b.yaml"]})
    write(tmp_path / "b.yaml", {"base": ["a.yaml"]})
    with pytest.raises(UsageError, match=r"a\.yaml: builds on itself"):
        config_files(["fit", "-c", str(tmp_path / "a.yaml")])


def test_a_missing_base_names_both_files(tmp_path):
    write(tmp_path / "parts/fit.yaml", {})
    write(tmp_path / "a.yaml", {"base": ["parts/fti.yaml"]})
    with pytest.raises(
        UsageError, match=r"a.yaml: its base .*parts/fti.yaml does not exist. Did you mean .*fit.yaml"
    ):
        config_files(["fit", "-c", str(tmp_path / "a.yaml")])


def test_layers_merge_deeply_and_the_later_wins(folder, capsys):
    write(
        folder / "child.yaml",
        {
            "base": ["job.yaml"],
            "model": {"class_path": "tests.fake_jobs.FakeModule", "init_args": {"learning_rate": "1e-2"}},
            "data": {"init_args": {"batch_size": 2}},
        },
    )
    write(folder / "overlay.yaml", {"model": {"init_args": {"mode": "fancy"}}, "trainer": {"max_steps": 7}})
    config = composed(capsys, "-c", "child.yaml", "-c", "overlay.yaml", "--model.hidden", "5")
    assert config["model"]["init_args"] == {"hidden": 5, "learning_rate": 0.01, "mode": "fancy"}
    assert config["data"]["init_args"] == {"size": 16, "batch_size": 2, "augment": None}
    assert config["trainer"]["max_steps"] == 7
    assert config["trainer"]["default_root_dir"] == "run"
    assert config["trainer"]["use_distributed_sampler"] is False
    assert "base" not in config


def test_callbacks_are_appended_over_all_layers(folder, capsys):
    def callback(name: str) -> dict:
        return {"trainer": {"callbacks+": [{"class_path": f"lightning.pytorch.callbacks.{name}"}]}}

    write(folder / "part.yaml", callback("LearningRateMonitor"))
    write(folder / "child.yaml", {"base": ["job.yaml", "part.yaml"]} | callback("DeviceStatsMonitor"))
    write(folder / "overlay.yaml", callback("LearningRateFinder"))
    config = composed(capsys, "-c", "child.yaml", "-c", "overlay.yaml")
    names = [callback["class_path"].rpartition(".")[2] for callback in config["trainer"]["callbacks"]]
    assert names == ["LearningRateMonitor", "DeviceStatsMonitor", "LearningRateFinder"]
