"""What is imported is declared in pyproject.toml, where who installs it will look for it."""

import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.test_architecture import imports

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
SCRIPTS = {path.stem for folder in ("data", "experiments") for path in (ROOT / folder).glob("*.py")}
OURS = sys.stdlib_module_names | SCRIPTS | {"vqvae2", "tests", "experiments"}


def names(requirements: list[str]) -> set[str]:
    """The packages of some requirements, with those of the extras of this one among them."""
    found = set()
    for requirement in requirements:
        name, extras = re.match(r"([\w-]+)(?:\[([\w,]+)\])?", requirement).groups()
        found |= (
            names([each for extra in extras.split(",") for each in EXTRAS[extra]])
            if name == "vqvae2"
            else {name}
        )
    return found


PACKAGES = packages_distributions()  # of each module that is installed here
NEEDED = names(PROJECT["dependencies"])
DECLARED = {
    "vqvae2": NEEDED,
    "data": NEEDED.union(*map(names, EXTRAS.values())),
    "experiments": NEEDED.union(*map(names, EXTRAS.values())),
    "tests": NEEDED | names(EXTRAS["dev"]),
}


def undeclared(path: Path, declared: set[str]) -> set[str]:
    """The modules of others that a file imports and none of the packages `declared` holds."""
    modules = {name.split(".")[0] for name in imports(path)} - OURS
    return {
        module
        for module in modules
        if not {name.lower().replace("_", "-") for name in PACKAGES.get(module, [module])} & declared
    }


@pytest.mark.parametrize("folder", DECLARED)
def test_what_is_imported_is_declared(folder):
    found = {path.name: undeclared(path, DECLARED[folder]) for path in (ROOT / folder).rglob("*.py")}
    assert {name: modules for name, modules in found.items() if modules} == {}


def test_a_missing_declaration_is_seen(tmp_path):
    file = tmp_path / "file.py"
    file.write_text("import yaml\ndef f():\n    from sklearn.svm import SVC\n    import torch.nn\n")
    assert undeclared(file, {"torch"}) == {"yaml", "sklearn"}
    assert undeclared(file, {"torch", "pyyaml", "scikit-learn"}) == set()


def test_lightning_whose_private_names_are_used_is_pinned():
    assert "lightning>=2.6,<2.7" in PROJECT["dependencies"]
