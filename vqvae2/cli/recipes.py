"""Recipes: one name, one run folder, and what its jobs share.

A config names what it builds on in a top-level list `base:`. A reference may name a part of a recipe:

    base: [parts/fit.yaml, demo.yaml#images]    # relative to the file that says so

`demo.yaml` is a recipe. It says where its runs go, which every path below it writes as `$run`, and what its
jobs `demo_JOB.yaml` share, part by part:

    run: runs/demo                              # --run moves every path of every job
    parts:
      images: {data: {init_args: {train: demo:digits}}}

A recipe that is made from another says only what differs, part by part or job by job:

    like: cifar10.yaml
    run: runs/pets
    parts:
      images: {data: {init_args: {train: PICTURES}}}
    jobs:
      vqvae: {trainer: {max_steps: 2000}}

If this is `pets.yaml`, then `pets_vqvae.yaml` needs no file: it is cifar10_vqvae.yaml with pets.yaml in the
place of cifar10.yaml, and likewise for every other job. A part or a job may have a list `base:` of its own,
which goes over the other recipe and under what it says itself. With that a recipe may also have jobs that
the other lacks; and a job that is null is not there:

    jobs:
      mid: {base: [cifar10_bottom.yaml], model: {init_args: {level: mid}}}    # as the bottom prior of pets
      cas: null
"""

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from vqvae2.cli.classes import class_path, with_class_paths
from vqvae2.cli.composition import UsageError, did_you_mean, dotted_keys, lost, merge, read_config, sets
from vqvae2.surroundings import at_home

BASE, LIKE, PARTS, JOBS, RUN = "base", "like", "parts", "jobs", "run"
_VARIABLE = "$run"
_FLAGS = ("-c", "--config")
# The jobs of a recipe with their verbs, in the order in which they are run. Not `inpaint` and `path`: no job
# waits for them.
_STAGES = (
    ("vqvae", "fit"),
    ("encode", "predict"),
    ("top", "fit"),
    ("mid", "fit"),
    ("bottom", "fit"),
    ("classifier", "fit"),
    ("sample", "predict"),
    ("complete", "predict"),
    ("cas", "fit"),
    ("cas", "test"),
    ("classifier", "test"),
    ("eval", "test"),
)
_VERBS = dict(reversed(_STAGES))  # the first one of each job
_NAMES_A_CLASS = re.compile(r"--(model|data)(\.help)?|--[\w.]+\.(help|callbacks\+?|schedule|class_path)")


class Layer(NamedTuple):
    """A piece of a composed config, and the file that says it."""

    source: Path
    content: dict


def expanded(args: list[str]) -> tuple[list[str], dict[str, dict]]:
    """A command line with its configs first, and what those say, composed, with the run folder in its place.

    Options go over configs wherever they stand. The configs keep their order, and so do the options. A job
    that has no file of its own goes by a file of its recipe, in a spelling of its own.

    Returns:
        The command line, and what each of its configs says.

    Raises:
        UsageError: as `compose`; or a run is named, and no config has a path below it.
    """
    configs, options = _split(args)
    run = _named_run(options)
    composed: dict[str, dict] = {}
    for config in configs:
        content = compose(Path(config), run)
        file = config if Path(config).is_file() else str(layers(Path(config))[-1].source)
        while file in composed:
            file = f"{Path(file).parent}/./{Path(file).name}"
        composed[file] = content
    if run and configs and not any(uses_run(_merged(Path(config))) for config in configs):
        raise UsageError(f"--run {run} moves nothing: no path of {configs[0]} begins with $run.")
    options = _with_full_names(options)
    return [*options[:1], *(part for file in composed for part in ("-c", file)), *options[1:]], composed


def next_command(args: list[str]) -> str | None:
    """The command of the recipe's next job; None after the last, or if the first config is of no recipe."""
    configs, options = _split(args)
    names = Path(configs[0]).stem.split("_") if configs else []
    for count in range(len(names) - 1, 0, -1):
        recipe, job = Path(configs[0]).with_name("_".join(names[:count]) + ".yaml"), "_".join(names[count:])
        if not recipe.is_file() or job not in _VERBS:
            continue
        jobs = list(dict.fromkeys(each for each, _ in stages(recipe)))
        if job not in jobs[:-1]:
            return None
        following = jobs[jobs.index(job) + 1]
        run = _named_run(options)
        command = f"lightning {_VERBS[following]} -c {_job_file(recipe, following)}"
        return f"{command} --{RUN} {run}" if run is not None else command
    return None


def stages(recipe: Path) -> list[tuple[str, str]]:
    """The jobs of a recipe with their verbs, in the order in which they are run.

    Raises:
        UsageError: as `layers`.
    """
    jobs = jobs_of(recipe)
    return [(job, verb) for job, verb in _STAGES if job in jobs]


def config_files(args: list[str]) -> list[Path]:
    """All files that the configs of a command line are made of, in the order in which they are laid.

    Raises:
        UsageError: as `layers`.
    """
    found = [layer.source for config in _split(args)[0] for layer in layers(Path(config))]
    return list(dict.fromkeys(found))


def origin(key: list[str], args: list[str]) -> Path | None:
    """Which file of a command line's configs sets the dotted `key` last.

    None when the command line itself sets it, or no config does.
    """
    options = {arg.partition("=")[0].removeprefix("--").replace("init_args.", "") for arg in args}
    if ".".join(key) in options:
        return None
    found = [layer for config in _split(args)[0] for layer in layers(Path(config))]
    return next((layer.source for layer in reversed(found) if sets(layer.content, key)), None)


def compose(path: Path, run: str | None = None) -> dict:
    """A config merged with all that it builds on; classes by their import paths, paths below the run folder.

    Args:
        path: of a config; of a job of a recipe there need not be a file.
        run: goes over the recipe's own.

    Raises:
        UsageError: as `layers`; or paths lie below a run that nobody names.
    """
    composed = _merged(path)
    run = run or composed.get(RUN)
    if uses_run(composed) and not run:
        raise UsageError(f"{path}: has paths below $run, but no run: give --run runs/NAME.")
    return with_class_paths(filled(composed, at_home(run)) if run else composed)


def _merged(path: Path) -> dict:
    composed: dict = {}
    for source, content in layers(path):
        if twice := [key for key, names in dotted_keys(composed).items() if sets(content, names)]:
            raise UsageError(f"{source}: sets '{twice[0]}', which a base sets with dots. Nest it there.")
        composed = merge(composed, content)
    return composed


def layers(path: Path) -> list[Layer]:
    """What a config is made of, in the order in which it is laid.

    What several bases share comes once; if another class has replaced it in between, that part comes again.

    Raises:
        UsageError: a file, a part or a job does not exist, a file is not a YAML mapping, or builds on itself.
    """
    if path.is_file() or not (made := _made_from(path)):
        return _unique(_layers(path, None, {}, ()))
    recipe, job = made
    if job not in jobs_of(recipe):
        raise UsageError(f"{path}: there is no job '{job}', wanted one of {', '.join(jobs_of(recipe))}.")
    line = _line(recipe)
    root = next((each for each in line if _job_file(each, job).is_file()), line[-1])
    swaps = {like.resolve(): made for made, like in pairwise(line[: line.index(root) + 1])}
    file = _job_file(root, job)
    return _unique(_layers(file, None, swaps, ()) if file.is_file() else _new_job(line, job, swaps))


def jobs_of(recipe: Path) -> list[str]:
    """The names of a recipe's jobs: of files, also of those recipes that it is made from, and of its own.

    Raises:
        UsageError: as `layers`.
    """
    found: set[str] = set()
    for each in reversed(_line(recipe)):
        files = each.parent.glob(f"{each.stem}_*{each.suffix}")
        found |= {file.stem.removeprefix(f"{each.stem}_") for file in files}
        own = read_config(each).get(JOBS, {})
        found |= {name for name, content in own.items() if BASE in (content or {})}
        found -= {name for name, content in own.items() if content is None}
    return sorted(found)


def filled(config: Any, run: str) -> Any:
    """A config with the run folder in the place of `$run` at the beginning of each path."""
    if isinstance(config, dict):
        return {key: filled(value, run) for key, value in config.items()}
    if isinstance(config, list):
        return [filled(value, run) for value in config]
    return run + config.removeprefix(_VARIABLE) if uses_run(config) else config


def uses_run(config: Any) -> bool:
    """Whether some path lies below the run folder."""
    if isinstance(config, dict | list):
        return any(map(uses_run, config.values() if isinstance(config, dict) else config))
    return isinstance(config, str) and (config == _VARIABLE or config.startswith(f"{_VARIABLE}/"))


def _layers(
    path: Path, part: str | None, swaps: Mapping[Path, Path], above: tuple[tuple[Path, str | None], ...]
) -> Iterator[Layer]:
    """
    Args:
        path: of a config.
        part: of the recipe that it is.
        swaps: recipes that stand in the place of others.
        above: files and parts that build on this one.
    """
    while path.resolve() in swaps:
        path = swaps[path.resolve()]
    if (path.resolve(), part) in above:
        raise UsageError(f"{path}: builds on itself; take it out of its own '{BASE}' or '{LIKE}'.")
    above = (*above, (path.resolve(), part))
    content = read_config(path)
    if LIKE in content:
        _check_recipe(path, content)
        yield from _layers(_line(path)[1], part, {}, above)
    own = {key: value for key, value in content.items() if key not in (LIKE, PARTS, JOBS)}
    yield from _said(path, own, swaps, above)
    if part is not None:
        if part not in _parts(path):
            raise UsageError(
                f"{path} has no part '{part}', wanted one of {', '.join(_parts(path)) or 'none'}."
            )
        yield from _said(path, content.get(PARTS, {}).get(part, {}), swaps, above)
    for recipe, changes in _of_swapped(path, swaps):
        yield from _said(recipe, changes, swaps, above)


def _said(
    path: Path, content: dict, swaps: Mapping[Path, Path], above: tuple[tuple[Path, str | None], ...]
) -> Iterator[Layer]:
    """What a config, a part or a job says, over what it builds on."""
    for base, of in _bases(path, content):
        yield from _layers(base, of, swaps, above)
    yield Layer(path, {key: value for key, value in content.items() if key != BASE})


def _new_job(line: list[Path], job: str, swaps: Mapping[Path, Path]) -> Iterator[Layer]:
    """A job that is in no file, from the most general recipe that has it."""
    yield from _layers(line[0], None, {}, ())
    for recipe in reversed(line):
        yield from _said(recipe, read_config(recipe).get(JOBS, {}).get(job) or {}, swaps, ())


def _of_swapped(path: Path, swaps: Mapping[Path, Path]) -> Iterator[tuple[Path, dict]]:
    """What recipes in the places of others say of a job of those: the most general one first."""
    for old in reversed(swaps):
        if path.parent.resolve() == old.parent and path.stem.startswith(f"{old.stem}_"):
            job = path.stem.removeprefix(f"{old.stem}_")
            recipe: Path | None = swaps[old]
            while recipe is not None:
                yield recipe, read_config(recipe).get(JOBS, {}).get(job) or {}
                recipe = swaps.get(recipe.resolve())


def _bases(path: Path, content: dict) -> Iterator[tuple[Path, str | None]]:
    bases = content.get(BASE, [])
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UsageError(f"{path}: '{BASE}' wants a list of files, found {bases!r}.")
    for base in bases:
        name, _, part = base.partition("#")
        file = path.parent / at_home(name)
        if not file.is_file():
            raise UsageError(f"{path}: its base {file} does not exist.{did_you_mean(file)}")
        yield file, part or None


def _line(recipe: Path) -> list[Path]:
    """A recipe, the one that it is made from, and so on."""
    line = [recipe]
    while like := read_config(line[-1]).get(LIKE):
        file = line[-1].parent / at_home(str(like))
        if not file.is_file():
            raise UsageError(f"{line[-1]}: there is no recipe {file} ('{LIKE}').")
        if file.resolve() in [each.resolve() for each in line]:
            raise UsageError(f"{file}: builds on itself; take it out of '{LIKE}'.")
        line.append(file)
    return line


def _made_from(path: Path) -> tuple[Path, str] | None:
    """The recipe and the job of a config without a file."""
    names = path.stem.split("_")
    for count in range(len(names) - 1, 0, -1):
        recipe = path.with_name("_".join(names[:count]) + path.suffix)
        if recipe.is_file() and LIKE in read_config(recipe):
            return recipe, "_".join(names[count:])
    return None


def _job_file(recipe: Path, job: str) -> Path:
    return recipe.with_name(f"{recipe.stem}_{job}{recipe.suffix}")


def _parts(recipe: Path) -> list[str]:
    """The names of a recipe's parts, with those of the recipes that it is made from."""
    names = [name for each in reversed(_line(recipe)) for name in read_config(each).get(PARTS, {})]
    return list(dict.fromkeys(names))


def _check_recipe(path: Path, content: dict) -> None:
    """
    Raises:
        UsageError: it changes a part or a job that the recipe it is made from does not have.
    """
    like = _line(path)[1]
    for kind, there in ((PARTS, _parts(like)), (JOBS, jobs_of(like))):
        for name, own in content.get(kind, {}).items():
            if name not in there and (kind == PARTS or BASE not in (own or {})):
                what = f"no {kind.removesuffix('s')} '{name}', wanted one of {', '.join(there)}"
                hint = f" A job that is new names its '{BASE}'." if kind == JOBS else ""
                raise UsageError(f"{path}: {like} has {what}.{hint}")


def _unique(found: Iterator[Layer]) -> list[Layer]:
    """Each layer once; of one that comes again, what was lost since with another class."""
    kept: list[Layer] = []
    composed: dict = {}
    for layer in found:
        if layer in kept:
            layer = Layer(layer.source, lost(layer.content, composed))
            if not layer.content:
                continue
        kept.append(layer)
        composed = merge(composed, layer.content)
    return kept


def _split(args: list[str]) -> tuple[list[str], list[str]]:
    """The configs that a command line names, and all else; a flag without a value stays there."""
    configs, options = [], []
    rest = iter([*pairwise([*args, "--"])])
    for arg, following in rest:
        flag, equals, value = arg.partition("=")
        if flag in _FLAGS and not equals and not following.startswith("--"):
            value = next(rest)[0]
        elif flag not in _FLAGS and flag.startswith("-c"):
            value = arg.removeprefix("-c")
        elif flag not in _FLAGS or not equals:
            options.append(arg)
            continue
        configs.append(at_home(value))
    return configs, options


def _named_run(options: list[str]) -> str | None:
    """The value of the last `--run`; None if there is none."""
    flag = f"--{RUN}"
    parts = [
        part for arg in options for part in (arg.split("=", 1) if arg.startswith(f"{flag}=") else (arg,))
    ]
    return next((value for name, value in reversed([*pairwise(parts)]) if name == flag), None)


def _with_full_names(options: list[str]) -> list[str]:
    """Options with the import paths of the classes that they name; `--help_all` is the parser's own help."""
    full = []
    for before, option in pairwise(["", *options]):
        flag, equals, value = option.partition("=") if option.startswith("--") else ("", "", option)
        if _NAMES_A_CLASS.fullmatch(flag or before):
            option = f"{flag}{equals}{class_path(value)}" if value else option
        full.append("--help" if option == "--help_all" else option)
    return full
