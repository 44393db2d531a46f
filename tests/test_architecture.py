"""The rooms: imports go one way, networks are plain torch, no file grows beyond what a reader can hold."""

import ast
import importlib
import inspect
import re
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
NAMED_TUPLE = {"_asdict", "_fields", "_replace"}
PRIVATE_NAME = re.compile(r"\b(?:self\.|super\(\)\.|def )(_[a-z]\w*)")
# Of Lightning, with no public way to the same; its releases may change them, so pyproject.toml pins it.
PRIVATE = {
    ("loop_state.py", "_batches_that_stepped"),  # the numbers of a resumed run's rows
    ("run_folder.py", "_timeout"),  # how long the strategy lets a rank wait for another
}

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


def test_the_readme_says_what_each_folder_is_for():
    """In the order of imports, with the sentence that stands at the top of the folder."""
    said = re.findall(
        r"^vqvae2/(\w+)/ +(.+)$", (PACKAGE.parent / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    own = [
        (room, ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text())))
        for room in FLOORS.split()
    ]
    assert said == own


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


def private_names(path: Path) -> set[str]:
    """Names with an underscore that a file takes from other objects than its own."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    selves = {id(node) for node in attributes if isinstance(node.value, ast.Name) and node.value.id == "self"}
    own = {node.attr for node in attributes if id(node) in selves}
    own |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    found = {node.attr for node in attributes if id(node) not in selves} - own
    for node in nodes:  # getattr(strategy, "_timeout", None)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("attr"):
            found |= {arg.value for arg in node.args[1:2] if isinstance(arg, ast.Constant)}
    found |= {part for name in imports(path) if name.startswith("lightning") for part in name.split(".")}
    return {name for name in found if re.match("_[a-z]", name)} - NAMED_TUPLE


def inherited_names(cls: type) -> set[str]:
    """Names with an underscore that a class shares with those of Lightning that it is made from."""
    theirs = [base for base in cls.__mro__ if base.__module__.startswith("lightning")]
    mine, *names = [set(PRIVATE_NAME.findall(inspect.getsource(each))) for each in (cls, *theirs)]
    return mine & set().union(*names)


def lightning_sources() -> str:
    package = Path(importlib.import_module("lightning").__file__).parent
    return "\n".join(path.read_text(encoding="utf-8") for path in package.rglob("*.py"))


def test_no_more_of_lightnings_private_names_are_used():
    theirs = set(re.findall(r"\b_[a-z]\w*", lightning_sources()))
    found = {(path.name, name) for path in FILES for name in private_names(path) & theirs}
    for path in FILES:
        module = importlib.import_module(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
        classes = [cls for _, cls in inspect.getmembers(module, inspect.isclass)]
        for cls in (cls for cls in classes if cls.__module__ == module.__name__):
            found |= {(path.name, name) for name in inherited_names(cls)}
    assert found == PRIVATE
