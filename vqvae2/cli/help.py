"""What `lightning VERB --help` says: the options that are used most, and the suite's own classes."""

import importlib
import inspect

import lightning as L

from vqvae2.cli.classes import class_paths

_STEPS = {
    "fit": "training_step",
    "validate": "validation_step",
    "test": "test_step",
    "predict": "predict_step",
}
_PURPOSES = {
    "fit": "Trains a network. Run the same command again to continue from the last checkpoint.",
    "validate": "Measures a trained network on the held-out data.",
    "test": "Evaluates: samples, reconstructions and priors, or a classifier.",
    "predict": "Writes latents, samples or completions. Run the same command again to complete them.",
}
_OPTIONS = {
    "-c FILE": "a config; several are merged, a later one overrides an earlier one",
    "--run FOLDER": "folder of the recipe's run; every path of every job moves with it",
    "--model.OPTION VALUE": "an option of the model, such as --model.num_codes 128; also --data.OPTION",
    "--trainer.OPTION VALUE": "an option of Lightning's Trainer: max_steps, devices, precision, …",
    "--resume false": "fit: move the old run aside, and start anew",
    "--print_config": "print the composed config and stop",
    "--model.help CLASS": "all options of a class below; also --data.help CLASS",
    "--help_all": "every option",
}


def verbs_of(model: type[L.LightningModule]) -> list[str]:
    """What a module can do."""
    return [
        verb for verb, step in _STEPS.items() if getattr(model, step) is not getattr(L.LightningModule, step)
    ]


def help_text(verb: str) -> str:
    """The short help of a verb."""
    lines = [f"usage: lightning {verb} -c configs/NAME.yaml [options]", "", _PURPOSES[verb], ""]
    lines += _columns(_OPTIONS)
    modules = {name: cls for name, cls in _classes(L.LightningModule) if verb in verbs_of(cls)}
    lines += ["", "model:", *_columns({name: _summary(cls) for name, cls in modules.items()})]
    data = {name: _summary(cls) for name, cls in _classes(L.LightningDataModule)}
    lines += ["", "data:", *_columns(data)]
    return "\n".join(lines)


def _classes(base: type) -> list[tuple[str, type]]:
    """The suite's classes of a kind that can be built, by their names."""
    found = []
    for name, path in class_paths().items():
        if not name.endswith(("Module", "Requests")):
            continue
        cls = getattr(importlib.import_module(path.rpartition(".")[0]), name)
        abstract = any(getattr(part, "__isabstractmethod__", False) for _, part in inspect.getmembers(cls))
        if issubclass(cls, base) and not abstract:
            found.append((name, cls))
    return sorted(found)


def _summary(cls: type) -> str:
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def _columns(rows: dict[str, str]) -> list[str]:
    width = max(map(len, rows), default=0)
    return [f"  {name:<{width}}  {text}" for name, text in rows.items()]
