"""A table of a paper as the tests read it."""

from typing import NamedTuple

NONE = None  # the papers' tables have a dash, or say nothing: the config has no such option


class Table(NamedTuple):
    """Options by their dotted names, without `init_args`; a value for each of the configs."""

    source: str
    configs: tuple[str, ...]
    rows: dict[str, tuple]


def same(source: str, configs: tuple[str, ...], rows: dict) -> Table:
    """A table whose configs all have the same values."""
    return Table(source, configs, {name: (value,) * len(configs) for name, value in rows.items()})


def jobs(recipes: tuple[str, ...], *names: str) -> tuple[str, ...]:
    """The configs of some jobs: of each job all recipes, in their order."""
    return tuple(f"{recipe}_{name}" for name in names for recipe in recipes)


def listed(name: str, *values: object) -> dict[str, object]:
    """The rows of an option that is a list."""
    return {f"{name}.{i}": value for i, value in enumerate(values)}
