"""Every number of the paper-size configs, `experiments/paper.py` and the README against the papers'."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paper_numbers import GRIDS, NONE, README_COLUMN, RESULTS, TABLES
from tests.recipe_names import CONFIGS, JOBS
from vqvae2.cli.composition import read_config
from vqvae2.cli.recipes import compose
from vqvae2.evaluation.likelihood import storage_figures

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "experiments"))
import paper  # noqa: E402
from configured import data_facts, network  # noqa: E402

PAPER_SIZE = ("imagenet_", "ffhq_", "small_", "hr_", "sundae_")
DEMOS = ("hr_demo_", "sundae_demo_")
NAMES = [name for name in JOBS if name.startswith(PAPER_SIZE) and not name.startswith(DEMOS)]


def values(node: object, name: str = "") -> Iterator[tuple[str, object]]:
    """The values of a config by their dotted names, without `init_args`; callbacks by their class alone."""
    if isinstance(node, dict):
        if "class_path" in node:
            yield name, node["class_path"].rpartition(".")[2]
        for key, value in node.items():
            inner = name if key == "init_args" else f"{name}.{key}".removeprefix(".")
            yield from () if key == "class_path" else values(value, inner)
    elif isinstance(node, list):
        for i, item in enumerate(node):
            is_callback = isinstance(item, dict) and "class_path" in item
            yield from values(item, item["class_path"].rpartition(".")[2] if is_callback else f"{name}.{i}")
    else:
        yield name, node


def rows_of(config: str) -> list[tuple[str, object]]:
    """What the tables say of a config."""
    return [
        (name, row[table.configs.index(config)])
        for table in TABLES
        if config in table.configs
        for name, row in table.rows.items()
    ]


def inherited(config: str) -> dict[str, object]:
    """What the recipe that this one is made from says; nothing for jobs that the papers' tables speak of."""
    recipe, _, job = config.rpartition("_")
    like = read_config(CONFIGS / f"{recipe}.yaml").get("like")
    if like is None or job in ("vqvae", "top", "path", "mid", "bottom"):
        return {}
    return dict(values(compose(CONFIGS / f"{Path(like).stem}_{job}.yaml")))


@pytest.mark.parametrize("config", NAMES)
def test_every_number_of_a_config_is_in_the_table_and_the_other_way_round(config):
    found = dict(values(compose(CONFIGS / f"{config}.yaml")))
    rows = rows_of(config)
    wanted = dict(rows)
    assert len(wanted) == len(rows), "the table says something twice"
    there = inherited(config)
    numbers = {
        name: value
        for name, value in found.items()
        if isinstance(value, int | float) and (name in wanted or name not in there or there[name] != value)
    }
    words = {name: found.get(name) for name, value in wanted.items() if isinstance(value, str)}
    assert numbers | words == {name: value for name, value in wanted.items() if value is not NONE}
    assert all(name not in found for name, value in wanted.items() if value is NONE)


def test_the_table_speaks_of_configs_that_exist():
    assert {name for table in TABLES for name in table.configs} <= set(NAMES)


@pytest.mark.parametrize("config", GRIDS)
def test_grids_are_the_papers(config):
    size = data_facts(config).image_size
    assert network(config).grids(size, size) == GRIDS[config]


def numbers_of(constant: object) -> dict[str, tuple]:
    """The numbers of a table of `experiments/paper.py` by the words before them."""
    if isinstance(constant, dict):
        return {name: (value,) for name, value in constant.items()}
    if isinstance(constant, int | float):
        return {"": (constant,)}
    is_number = [[isinstance(field, int | float) for field in row] for row in constant]
    return {
        ", ".join(row[: kinds.index(True)]): tuple(
            field for field, number in zip(row, kinds, strict=True) if number
        )
        for row, kinds in zip(constant, is_number, strict=True)
    }


def test_every_reported_result_is_the_papers():
    constants = {name: value for name, value in vars(paper).items() if name.isupper()}
    found = {name: numbers_of(value) for name, value in constants.items() if not isinstance(value, str)}
    assert found == RESULTS


def test_the_readmes_column_is_the_papers():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("## Results") :].split("\n\n")
    rows = next(block for block in table if block.startswith("|")).splitlines()
    assert rows[0].split("|")[2].strip().startswith("paper")
    column = {cells[1].strip(): cells[2] for cells in (row.split("|") for row in rows[2:])}
    numbers = {name: [float(n) for n in re.findall(r"\d*\.?\d+", cell)] for name, cell in column.items()}
    found = {name: row for name, row in numbers.items() if row}
    for start, wanted in README_COLUMN.items():
        (name,) = [name for name in found if name.startswith(start)]
        assert found.pop(name) == wanted, name
    assert found == {}, "the paper's column has numbers that the table lacks"


@pytest.mark.parametrize(("recipe", "printed"), [("hr_ffhq", 171), ("small_ffhq", 130)])
def test_the_codes_compress_as_the_appendix_of_hr_vqvae_says(recipe, printed):
    """A.1: 256·256·3·8 / (32·32·3·3) ≈ 171; over 9 bits of 32·32, 16·16 and 8·8 codes ≈ 130."""
    spec = data_facts(f"{recipe}_top").spec
    assert round(storage_figures(spec, num_pixels=256 * 256, channels=3)["compression_stored"]) == printed
