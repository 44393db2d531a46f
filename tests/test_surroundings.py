"""Homes there are and are not; outputs that cannot show a name."""

import io
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.fake_job import JOB, write
from vqvae2.surroundings import at_home, home_path, show_any_name


@pytest.fixture
def home(monkeypatch):
    monkeypatch.setenv("HOME", "/the/home")


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("~", "/the/home"),
        ("~/a b/{0..3}.tar", "/the/home/a b/{0..3}.tar"),
        ("a/~/b", "a/~/b"),
        ("./~/b", "./~/b"),
        ("s3://bucket/~/b", "s3://bucket/~/b"),
        ("https://x/~user/b", "https://x/~user/b"),
        ("", ""),
        ("~5k images", "~5k images"),  # no path
    ],
)
def test_a_tilde_that_begins_a_path_is_the_home(home, path, found):
    assert at_home(path) == found
    assert home_path(path) == Path(found)


def test_the_home_of_another_user(home):
    root = pwd.getpwuid(0)
    assert at_home(f"~{root.pw_name}/x") == f"{root.pw_dir}/x"


@pytest.mark.parametrize(
    ("path", "who"), [("~nobody-of-this-name/x", "there is no user 'nobody-of-this-name'")]
)
def test_a_home_that_is_not_there(home, path, who):
    with pytest.raises(ValueError, match=who):
        at_home(path)


def test_no_home(monkeypatch):
    def unknown(_):
        raise KeyError

    monkeypatch.setenv("HOME", "")  # Python would give /x
    with pytest.raises(
        ValueError, match=r"~/x: this user has no home \(HOME is not set\)\. Give the whole path"
    ):
        at_home("~/x")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(ValueError, match=r"~: this user has no home"):
        at_home("~")


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", rb"caf\xe9 \udce9"), ("latin-1", b"caf\xe9 \\udce9"), ("utf-8", b"caf\xc3\xa9 \\udce9")],
)
def test_what_an_output_cannot_show_is_escaped(monkeypatch, encoding, shown):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    show_any_name()
    for stream in streams:
        print("café \udce9", file=stream, flush=True)
        assert stream.buffer.getvalue() == shown + b"\n"


@pytest.mark.parametrize("script", ["report.py", "table1.py", "table2.py", "recognise_digits.py"])
def test_scripts_take_the_home_too_and_show_any_name(script, tmp_path):
    """The folder is not there, which each says with its name."""
    done = subprocess.run(
        [sys.executable, Path(__file__).parents[1] / "experiments" / script, "~/café"],
        env={
            "HOME": str(tmp_path),
            "PYTHONIOENCODING": "ascii:strict",
            "PATH": "",
            "PYTHONPATH": ":".join(sys.path),
        },
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    assert str(tmp_path).encode() + rb"/caf\xe9" in done.stdout + done.stderr
    assert b"UnicodeEncodeError" not in done.stderr


def test_a_command_shows_any_name(tmp_path):
    write(tmp_path / "job.yaml", JOB)
    options = ["-c", "job.yaml", "--trainer.default_root_dir", "café", "--print_config"]
    done = subprocess.run(
        [sys.executable, "-m", "vqvae2.cli", "fit", *options],
        env={"PYTHONIOENCODING": "ascii:strict", "PATH": "", "PYTHONPATH": ":".join(sys.path)},
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"default_root_dir: caf\xe9" in done.stdout
