"""The machine as it is: where a home lies, and what an output can show."""

import io
import os
import sys
from pathlib import Path


def at_home(path: str) -> str:
    """A path that begins with `~` or `~user`, below that home; any other text, addresses too, as it is.

    Raises:
        ValueError: there is no such home, so that a folder named `~` would be meant by mistake.
    """
    if not path.startswith("~"):
        return path
    name, slash, _ = path.partition("/")
    homeless = name == "~" and os.environ.get("HOME") == ""  # which Python takes for the root folder
    found = path if homeless else os.path.expanduser(path)
    if found == path and (name == "~" or slash):
        who = "this user has no home (HOME is not set)" if name == "~" else f"there is no user '{name[1:]}'"
        raise ValueError(f"{path}: {who}. Give the whole path; if this is its real name, write ./{path}.")
    return found


def home_path(path: str) -> Path:
    """`at_home` as a path, for the arguments of scripts."""
    return Path(at_home(path))


def show_any_name() -> None:
    """From now on what is printed never fails: a character that an output cannot show is escaped there.

    Names of files may hold any byte, and an output may be ASCII (LANG=C, PYTHONIOENCODING).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
