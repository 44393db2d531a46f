"""Recipes: parts by reference, recipes made from others, one run folder."""

from pathlib import Path

import pytest
import yaml

from vqvae2.cli import stages as stages_command
from vqvae2.cli.composition import UsageError
from vqvae2.cli.recipes import compose, expanded, filled, jobs_of, layers, next_command, stages, uses_run

FILES = {
    "parts/fit.yaml": "trainer: {max_epochs: -1, callbacks+: [{class_path: one}]}",
    "cats.yaml": """
        run: runs/cats
        parts:
          images: {data: {init_args: {train: cats, size: 32, labels: 10}}}
          prior: {model: {init_args: {hidden: 8}}, trainer: {callbacks+: [{class_path: two, at: $run/vqvae}]}}
    """,
    "cats_vqvae.yaml": """
        base: [parts/fit.yaml, cats.yaml#images]
        trainer: {default_root_dir: $run/vqvae, max_steps: 10}
        data: {init_args: {workers: 1}}
    """,
    "cats_top.yaml": "{base: [parts/fit.yaml, cats.yaml#prior], trainer: {default_root_dir: $run/top}}",
    "cats_sample.yaml": "{base: [cats.yaml], model: {priors: [$run/top/best.ckpt]}, data: {number: 5}}",
    "cats_complete.yaml": "{base: [cats_sample.yaml], data: {rows: 0.5}}",
    "cats_cas.yaml": "{base: ['cats.yaml#images'], data: {init_args: {train: $run/samples}}}",
    "dogs.yaml": """
        like: cats.yaml
        run: runs/dogs
        parts: {images: {data: {init_args: {train: dogs, labels: null}}}}
        jobs: {vqvae: {trainer: {max_steps: 20}}, sample: {data: {number: 6}}}
    """,
    "puppies.yaml": """
        like: dogs.yaml
        run: runs/puppies
        parts: {prior: {model: {init_args: {hidden: 9}}}}
        jobs: {vqvae: {trainer: {max_steps: 30}}}
    """,
}


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "parts").mkdir()
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_job_takes_the_parts_it_names_and_the_run_of_its_recipe(folder):
    assert compose(folder / "cats_vqvae.yaml") == {
        "run": "runs/cats",
        "trainer": {
            "max_epochs": -1,
            "callbacks+": [{"class_path": "one"}],
            "default_root_dir": "runs/cats/vqvae",
            "max_steps": 10,
        },
        "data": {"init_args": {"train": "cats", "size": 32, "labels": 10, "workers": 1}},
    }
    assert compose(folder / "cats_sample.yaml") == {
        "run": "runs/cats",
        "model": {"priors": ["runs/cats/top/best.ckpt"]},
        "data": {"number": 5},
    }


def test_a_recipe_made_from_another_needs_no_file_of_its_own_for_a_job(folder):
    vqvae = compose(folder / "dogs_vqvae.yaml")
    assert vqvae["run"] == "runs/dogs"
    assert vqvae["trainer"]["max_steps"] == 20
    assert vqvae["data"]["init_args"] == {"train": "dogs", "size": 32, "labels": None, "workers": 1}
    top = compose(folder / "dogs_top.yaml")
    assert top["model"]["init_args"] == {"hidden": 8}
    assert [each["class_path"] for each in top["trainer"]["callbacks+"]] == ["one", "two"]


def test_what_a_job_says_goes_over_the_part_that_a_recipe_changes(folder):
    assert compose(folder / "dogs_cas.yaml")["data"]["init_args"]["train"] == "runs/dogs/samples"


def test_a_change_of_a_job_reaches_the_jobs_that_build_on_it(folder):
    assert compose(folder / "dogs_complete.yaml")["data"] == {"number": 6, "rows": 0.5}


def test_recipes_can_be_made_from_recipes_that_were_made_from_others(folder):
    vqvae = compose(folder / "puppies_vqvae.yaml")
    assert (vqvae["run"], vqvae["trainer"]["max_steps"]) == ("runs/puppies", 30)
    assert vqvae["data"]["init_args"]["train"] == "dogs"
    assert compose(folder / "puppies_top.yaml")["model"]["init_args"] == {"hidden": 9}
    assert compose(folder / "puppies_sample.yaml")["data"] == {"number": 6}


def test_a_file_of_a_job_wins_and_a_recipe_may_lie_elsewhere(folder):
    (folder / "dogs_top.yaml").write_text("{base: ['dogs.yaml#prior'], model: {own: 1}}")
    assert compose(folder / "dogs_top.yaml")["model"] == {"init_args": {"hidden": 8}, "own": 1}
    (folder / "mine").mkdir()
    (folder / "mine/my_cows.yaml").write_text("{like: ../cats.yaml, run: elsewhere}")
    assert compose(folder / "mine/my_cows_top.yaml")["run"] == "elsewhere"


def test_parts_and_jobs_of_a_recipe_may_build_on_other_configs(folder):
    (folder / "parts/big.yaml").write_text(
        "{parts: {top: {model: {init_args: {hidden: 99, wide: 1}}, b: 2}}}"
    )
    (folder / "cows.yaml").write_text("""
        like: cats.yaml
        run: runs/cows
        parts: {images: {base: ['parts/big.yaml#top'], data: {init_args: {train: cows}}}}
        jobs: {top: {base: ['parts/big.yaml#top'], b: 3}}
    """)
    top = compose(folder / "cows_top.yaml")
    assert (top["model"]["init_args"], top["b"]) == ({"hidden": 99, "wide": 1}, 3)
    vqvae = compose(folder / "cows_vqvae.yaml")
    assert (vqvae["model"], vqvae["b"]) == ({"init_args": {"hidden": 99, "wide": 1}}, 2)
    assert vqvae["data"]["init_args"]["train"] == "cows"
    assert all("base" not in layer.content for layer in layers(folder / "cows_vqvae.yaml"))


@pytest.fixture
def calves(folder) -> Path:
    """A recipe made from one that has a job more than its own."""
    (folder / "cows.yaml").write_text("""
        like: cats.yaml
        run: runs/cows
        parts: {prior: {model: {init_args: {hidden: 5}}}}
        jobs:
          top: {model: {init_args: {level: top, wide: 1}}}
          mid:
            base: [cats_top.yaml]
            trainer: {default_root_dir: $run/mid}
            model: {init_args: {level: mid}}
    """)
    (folder / "calves.yaml").write_text("""
        like: cows.yaml
        run: runs/calves
        jobs: {top: {model: {init_args: {wide: 2}}}, mid: {model: {init_args: {deep: 3}}}}
    """)
    return folder


def test_a_recipe_may_have_a_job_that_the_other_lacks(calves):
    cows, young = (compose(calves / f"{name}_mid.yaml") for name in ("cows", "calves"))
    assert cows["trainer"] == compose(calves / "cows_top.yaml")["trainer"] | {
        "default_root_dir": "runs/cows/mid"
    }
    assert cows["model"]["init_args"] == {"hidden": 5, "level": "mid", "wide": 1}
    assert young["model"]["init_args"] == {"hidden": 5, "level": "mid", "wide": 2, "deep": 3}
    assert (young["run"], young["trainer"]["default_root_dir"]) == ("runs/calves", "runs/calves/mid")


def test_jobs_are_those_of_files_and_those_that_are_new(calves):
    there = ["cas", "complete", "sample", "top", "vqvae"]
    assert (jobs_of(calves / "cats.yaml"), jobs_of(calves / "dogs.yaml")) == (there, there)
    assert jobs_of(calves / "calves.yaml") == sorted([*there, "mid"])
    after_top = next_command(["fit", "-c", str(calves / "calves_top.yaml")])
    assert after_top == f"lightning fit -c {calves}/calves_mid.yaml"
    command, composed = expanded(["fit", "-c", str(calves / "calves_mid.yaml")])
    assert Path(command[2]).is_file()
    assert composed[command[2]]["run"] == "runs/calves"


@pytest.fixture
def trees(calves) -> Path:
    """A recipe that lacks two jobs of the other and has one more; and one that is made from it."""
    (calves / "trees.yaml").write_text("""
        like: calves.yaml
        run: runs/trees
        jobs:
          path: {base: [cats_top.yaml], trainer: {default_root_dir: $run/path}}
          mid: null
          cas: null
    """)
    (calves / "oaks.yaml").write_text("""
        like: trees.yaml
        run: runs/oaks
        jobs: {cas: {base: ['cats.yaml#images'], oak: 1}}
    """)
    return calves


def test_a_job_that_is_null_is_not_there(trees):
    assert jobs_of(trees / "trees.yaml") == ["complete", "path", "sample", "top", "vqvae"]
    there = "no job 'mid', wanted one of complete, path, sample, top, vqvae"
    with pytest.raises(UsageError, match=there):
        compose(trees / "trees_mid.yaml")
    with pytest.raises(UsageError, match="no job 'mid', wanted one of cas, complete, path"):
        compose(trees / "oaks_mid.yaml")
    (trees / "bad.yaml").write_text("{like: trees.yaml, jobs: {mid: {deep: 4}}}")
    with pytest.raises(UsageError, match=r"no job 'mid'.* A job that is new names its 'base'"):
        compose(trees / "bad_top.yaml")


def test_a_further_recipe_may_bring_a_job_back(trees):
    assert jobs_of(trees / "oaks.yaml") == ["cas", "complete", "path", "sample", "top", "vqvae"]
    cas = compose(trees / "oaks_cas.yaml")
    assert (cas["run"], cas["oak"], cas["data"]["init_args"]["size"]) == ("runs/oaks", 1, 32)
    assert compose(trees / "oaks_path.yaml")["trainer"]["default_root_dir"] == "runs/oaks/path"


def test_stages_are_the_jobs_that_are_there_in_their_order(trees):
    wanted = {"vqvae": "fit", "top": "fit", "sample": "predict", "complete": "predict"}
    assert stages(trees / "trees.yaml") == [*wanted.items()]
    assert stages(trees / "oaks.yaml") == [*wanted.items(), ("cas", "fit"), ("cas", "test")]


def test_a_recipes_stages_are_printed_for_make(trees, capsys):
    stages_command.main([str(trees / "trees.yaml")])
    wanted = "fit vqvae\nfit top\npredict sample\npredict complete\n"
    assert capsys.readouterr().out == wanted
    with pytest.raises(SystemExit, match="no such config"):
        stages_command.main([str(trees / "pines.yaml")])


def test_the_next_job_passes_over_those_that_are_not_there(trees):
    command, found = ["fit", "-c", str(trees / "trees_vqvae.yaml")], []
    while following := next_command(command):
        command = following.split()[1:]
        found.append((command[0], Path(command[2]).stem))
    assert found == [
        ("fit", "trees_top"),
        ("predict", "trees_sample"),
        ("predict", "trees_complete"),
    ]


def test_a_shared_part_comes_again_where_another_class_has_replaced_it(folder):
    """As a job that builds on another's file, changes its class, and names the part that both share."""
    (folder / "cats_top.yaml").write_text("""
        base: [parts/fit.yaml, cats.yaml#prior]
        trainer: {default_root_dir: $run/top, callbacks+: [{class_path: three}]}
        model: {class_path: Top, init_args: {deep: 1}}
    """)
    (folder / "parts/other.yaml").write_text("{model: {class_path: Other}}")
    bases = "base: [cats_top.yaml, parts/other.yaml, 'cats.yaml#prior'"
    (folder / "cats_path.yaml").write_text(f"{bases}]")
    path = compose(folder / "cats_path.yaml")
    assert path["model"] == {"class_path": "Other", "init_args": {"hidden": 8}}
    assert path["trainer"] == compose(folder / "cats_top.yaml")["trainer"]  # nothing is appended twice
    (folder / "cats_path.yaml").write_text(f"{bases}, cats_top.yaml]")
    assert compose(folder / "cats_path.yaml")["model"] == path["model"]  # not another class's options


@pytest.mark.parametrize(
    ("name", "text", "asked", "message"),
    [
        (
            "bad.yaml",
            "{like: cats.yaml, parts: {imags: {}}}",
            "bad_top.yaml",
            "no part 'imags', .* images, prior",
        ),
        (
            "bad.yaml",
            "{like: cats.yaml, jobs: {topp: {}}}",
            "bad_top.yaml",
            "no job 'topp', .* top, vqvae. A job that is new names its 'base'",
        ),
        ("bad.yaml", "{like: cats.yaml, jobs: {mid: {base: [cow.yaml]}}}", "bad_mid.yaml", "does not exist"),
        (
            "bad.yaml",
            "{like: cats.yaml, jobs: {top: {base: [cats_top.yaml]}}}",
            "bad_top.yaml",
            "builds on itself",
        ),
        ("bad.yaml", "{like: cows.yaml}", "bad_top.yaml", r"there is no recipe .*cows\.yaml"),
        ("bad.yaml", "{like: cats.yaml}", "bad_mid.yaml", "no job 'mid', wanted one of cas, .*vqvae"),
        ("bad.yaml", "{like: bad.yaml}", "bad_top.yaml", "builds on itself"),
        (
            "bad_top.yaml",
            "{base: ['cats.yaml#sounds']}",
            "bad_top.yaml",
            "no part 'sounds', .* images",
        ),
        ("bad_top.yaml", "{base: ['cows.yaml#images']}", "bad_top.yaml", r"base .*cows\.yaml does not exist"),
        ("bad_top.yaml", "{base: [bad_top.yaml]}", "bad_top.yaml", "builds on itself"),
    ],
)
def test_what_does_not_exist_is_named(folder, name, text, asked, message):
    (folder / name).write_text(text)
    with pytest.raises(UsageError, match=message):
        layers(folder / asked)


def test_every_path_below_the_run_moves_and_nothing_else_does():
    config = yaml.safe_load("{a: $run, b: [$run/x, {c: $runs/x}], d: $run.x, e: costs $run/x, f: 3, g: null}")
    assert uses_run(config)
    assert filled(config, "r") == {"a": "r", "b": ["r/x", {"c": "$runs/x"}]} | {
        name: config[name] for name in "defg"
    }
    assert not uses_run({"a": ["$runs", 1, None]})


def test_the_next_job_of_a_recipe_is_named_with_the_same_run(folder):
    cats = ["fit", "-c", str(folder / "cats_vqvae.yaml"), "--run", "runs/x"]
    assert next_command(cats) == f"lightning fit -c {folder}/cats_top.yaml --run runs/x"
    assert next_command(["fit", f"--config={folder}/dogs_top.yaml"]) == (
        f"lightning predict -c {folder}/dogs_sample.yaml"
    )
    assert next_command(["predict", "-c", str(folder / "cats_cas.yaml")]) is None  # the last
    assert next_command(["fit", "-c", str(folder / "parts/fit.yaml")]) is None


def test_a_run_on_the_command_line_moves_all_configs_and_is_refused_where_nothing_moves(folder):
    cats = str(folder / "cats_top.yaml")
    command, composed = expanded(["fit", "--x", "1", "-c", cats, "--run=r/s"])
    assert command == ["fit", "-c", cats, "--x", "1", "--run=r/s"]
    assert composed[cats]["trainer"]["default_root_dir"] == "r/s/top"
    assert composed[cats]["trainer"]["callbacks+"][1]["at"] == "r/s/vqvae"
    with pytest.raises(UsageError, match="--run r moves nothing"):
        expanded(["fit", "-c", str(folder / "parts/fit.yaml"), "--run", "r"])
    (folder / "lost.yaml").write_text("{a: $run/x}")
    with pytest.raises(UsageError, match="paths below \\$run, but no run: give --run"):
        expanded(["fit", "-c", str(folder / "lost.yaml")])


def test_classes_go_by_their_names_on_the_command_line_and_in_configs(folder):
    config = folder / "one.yaml"
    config.write_text(
        "{model: {class_path: TopPriorModule}, data: {class_path: vqvae2.modules.old.ImageDataModule}}"
    )
    options = [
        "--model",
        "AutoencoderModule",
        "--data.help=SampleRequests",
        "--x",
        "AutoencoderModule",
        "--help_all",
    ]
    (_, _, _, *rest), composed = expanded(["fit", "-c", str(config), *options])
    assert composed[str(config)]["model"]["class_path"] == "vqvae2.training.pixelsnail.TopPriorModule"
    assert composed[str(config)]["data"]["class_path"] == "vqvae2.data.images.ImageDataModule"
    assert rest == [
        *("--model", "vqvae2.training.autoencoder.AutoencoderModule"),
        *("--data.help=vqvae2.jobs.requests.SampleRequests", "--x", "AutoencoderModule", "--help"),
    ]


def test_jobs_without_files_are_parsed_by_files_that_are_there(folder):
    jobs = [str(folder / f"dogs_{job}.yaml") for job in ("vqvae", "top")]
    command, composed = expanded(["fit", "-c", jobs[0], "-c", jobs[1]])
    files = command[2::2]
    assert len({*files}) == 2
    assert all(Path(file).is_file() for file in files)
    assert [composed[file]["trainer"]["default_root_dir"] for file in files] == [
        "runs/dogs/vqvae",
        "runs/dogs/top",
    ]
