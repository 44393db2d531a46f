"""The rooms: imports go one way, networks are plain torch, no file grows beyond what a reader can hold."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vqvae2"
FREE = ["distributed", "pixels", "surroundings"]  # small enough that every room may know them
FLOORS = "nn sampling metrics pictures storage data training runs jobs evaluation cli"
ROOMS = [*FREE, *FLOORS.split()]
PLAIN = {
    "nn": sys.stdlib_module_names | {"torch", "torchvision", "einops", "vqvae2"},
    "sampling": sys.stdlib_module_names | {"torch", "numpy", "einops", "vqvae2"},
}
MAX_LINES = 400

FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """The dotted names that a file imports, at any depth in it; `from a import b` counts as a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def misplaced(path: Path) -> list[str]:
    """What a file imports from rooms that come after its own."""
    inside = [name.split(".")[1] for name in imports(path) if name.startswith("vqvae2.")]
    return [name for name in inside if ROOMS.index(name) > ROOMS.index(room(path))]


@pytest.mark.parametrize("path", [path for path in FILES if room(path) != "__init__"], ids=str)
def test_imports_go_one_way(path):
    assert misplaced(path) == []


@pytest.mark.parametrize("path", [path for path in FILES if room(path) in PLAIN], ids=str)
def test_networks_and_sampling_are_plain_torch(path):
    assert {name.split(".")[0] for name in imports(path)} - PLAIN[room(path)] == set()


def test_nothing_in_the_package_imports_tests_or_experiments():
    outside = [
        (path.name, name)
        for path in FILES
        for name in imports(path)
        if name.split(".")[0] in ("tests", "experiments")
    ]
    assert outside == []


@pytest.mark.parametrize("path", FILES, ids=str)
def test_files_stay_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_the_checks_see_a_wrong_import(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    (tmp_path / "nn").mkdir()
    wrong = tmp_path / "nn/wrong.py"
    wrong.write_text(
        "def f():\n    from vqvae2.data.images import ImageDataModule\nimport vqvae2.training.base\n"
    )
    assert sorted(misplaced(wrong)) == ["data", "training"]
