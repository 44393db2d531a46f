"""One page of a whole run: what was sampled, how good it is, beside the paper's figures.

    python experiments/report.py runs/demo
    python experiments/report.py runs/imagenet --eval eval eval_biggan --out imagenet.html

Reads the results of a data set's jobs from their folders and writes one page that needs no server, no network
and no scripts. Prints the same figures as a table.
"""

import argparse
import sys
from pathlib import Path

import matplotlib

import paper
from evaluations import print_table
from report_evaluation import (
    accuracy_table,
    by_class_table,
    facts,
    left_out_list,
    paired,
    quality_tables,
    run_tables,
    trade_offs,
)
from report_parts import (
    NONE,
    Html,
    autoencoder_curves,
    code,
    disclosure,
    element,
    note,
    number,
    percent,
    picture,
    prior_curves,
    save_page,
    section,
    table,
)
from run_results import STAGES, Run, evaluation_command, read_run
from vqvae2.surroundings import at_home, home_path, show_any_name

HEADLINES = ("fid", "is", "precision", "recall", "class_accuracy")
RUN_HEADLINES = ("psnr_db", "bits", "compression")


def main() -> None:
    show_any_name()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=home_path, help="folder of a data set's runs, such as runs/demo")
    parser.add_argument(
        "--eval", type=at_home, nargs="+", default=["eval"], help="evaluations: folders in the run, or paths"
    )
    parser.add_argument("--out", type=home_path, help="the page; report.html in the run's folder")
    arguments = parser.parse_args()
    matplotlib.use("Agg")
    out = arguments.out or arguments.run / "report.html"
    try:
        run = read_run(arguments.run, arguments.eval)
        write_page(run, out)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print_figures(run)
    print(f"\nThe report: {out}")


def write_page(run: Run, out: Path) -> None:
    parts = (
        headline, samples, quality, likelihood, accuracy, curves,
        reconstructions, neighbours, completions, left_out, commands,
    )  # fmt: skip
    save_page(f"{run.name}: VQ-VAE-2", heading(run), [part(run) for part in parts], out)


def heading(run: Run) -> Html:
    """The title, what was evaluated, and with which networks."""
    known = dict.fromkeys(fact for evaluation in run.evaluations for fact in facts(evaluation))
    entries = [part for name, value in known for part in (element("dt", name), element("dd", value))]
    return element(
        "header",
        element("p", "VQ-VAE-2, a run and its evaluation", class_="kicker"),
        element("h1", run.name),
        element("dl", *entries, class_="facts"),
    )


def headline(run: Run) -> Html:
    """The figures that are asked for first, in large type."""
    cells = []
    for evaluation in run.evaluations[:1]:
        whole = next((row for row in evaluation.sets if row["kind"] == "samples"), None)
        held_out = next((row for row in evaluation.sets if row["kind"] == "held_out"), None)
        for metric in HEADLINES if whole else ():
            for key in evaluation.keys_of(metric):
                if (value := whole["figures"].get(key)) is not None:
                    best = held_out and held_out["figures"].get(key)
                    beside = f"held-out images: {number(best)}" if best is not None else None
                    cells.append(large(evaluation.legend[key]["name"], number(value), beside))
    for name, _, value, base in paired(run.evaluations, run.figures):
        if base in RUN_HEADLINES and value is not None:
            cells.append(large(name, number(value), "held-out images"))
    if run.cas:
        beside = f"trained on real images: {percent(run.ceiling['real']['top1'])} %" if run.ceiling else None
        cells.append(large("classification accuracy score", f"{percent(run.cas['real']['top1'])} %", beside))
    return section("In short", element("dl", *cells, class_="headline")) if cells else Html()


def large(name: str, value: str, beside: str | None) -> Html:
    below = element("dd", beside, class_="beside") if beside else Html()
    return element("div", element("dt", name), element("dd", value), below)


def samples(run: Run) -> Html:
    classes = run.classes()
    found, legend = run.images("samples"), "drawn at random, none picked"
    if found and classes:  # the pictures of an evaluation; the sample job's may have other columns
        legend += "; a class a column"
        legend += f": {', '.join(map(str, classes))}" if len(classes) <= 10 else ""
    found, legend = found or [("samples", run.folder / "samples" / "grid.png")], f"{legend}."
    shown = [
        picture(
            path,
            f"Grid of samples, {of}",
            f"{of}: {legend}" if len(found) > 1 else legend[0].upper() + legend[1:],
        )
        for of, path in found
        if path.is_file()
    ]
    return section("Samples", *(shown or [absent(run, "pictures of samples", "samples")]))


def quality(run: Run) -> Html:
    if not any(evaluation.sets for evaluation in run.evaluations):
        return section("Quality", note("No samples were evaluated: ", code(evaluation_command(run.folder))))
    texts = [f"{row.name} ~{row.value:g}" for row in paper.FIGURE_7]
    second = [f"{row.name} {row.key.upper()} {row.value:g}" for row in paper.CAS_PAPER]
    beside = note(
        f"For orientation, {paper.PAPER} on {paper.DATA}, by Inception: FID in round numbers of its text "
        f"({paper.FIGURE_7[0].source.removeprefix('[P] ')}) {'; '.join(texts)}. "
        f"At 50,000 samples {'; '.join(second)} "
        f"({paper.SECOND_HAND}). Figures of other data or another network cannot be compared with these."
    )
    return section("Quality", *quality_tables(run.evaluations), beside)


def likelihood(run: Run) -> Html:
    title = "Likelihood, error and codebook"
    if not run.figures:
        return section(
            title, note("Not measured: give the evaluation job an autoencoder, priors and latents.")
        )
    warning = note(
        "The paper's column is for orientation. Its NLL is of other codes: likelihoods can be compared only "
        "between priors over the codes of one autoencoder, errors and bits only on the same images."
    )
    return section(title, *run_tables(run.evaluations, run.figures), warning)


def accuracy(run: Run) -> Html:
    """The classification accuracy score, its ceiling and the paper's Table 2."""
    missing = [
        note(f"No accuracy of a classifier trained on {what}: ", code(STAGES[stage].format(run.name)), ".")
        for stage, what, found in (
            ("cas", "the samples", run.cas),
            ("classifier", "real images", run.ceiling),
        )
        if not found
    ]
    by_class = by_class_table(run.evaluations, run.cas, run.ceiling, run.classes())
    tables = [accuracy_table(run.cas, run.ceiling), *by_class]
    return section("Classification accuracy score", *missing, *tables)


def curves(run: Run) -> Html:
    quality_curves = trade_offs(run.evaluations)
    logged = [chart for chart in (autoencoder_curves(run.folder), prior_curves(run.folder)) if chart]
    parts: list[Html] = []
    if quality_curves:
        parts += [element("div", *quality_curves, class_="charts")]
    else:
        parts += [
            note("No curve of quality against diversity: evaluate several fractions or several candidates.")
        ]
    if logged:
        parts += [element("h3", "Training"), element("div", *logged, class_="charts")]
    return section("Curves", *parts)


def reconstructions(run: Run) -> Html:
    paths = [path for _, path in run.images("reconstructions")] or sorted(
        (run.folder / "vqvae/images").glob("reconstructions-*.png")
    )[-1:]
    legend = "Held-out images from the top level alone, then with each level below it; the originals last."
    shown = [
        picture(path, "Reconstructions level by level beside the originals", legend) for path in paths[:1]
    ]
    return section("Reconstructions", *(shown or [absent(run, "reconstructions", "vqvae")]))


def neighbours(run: Run) -> Html:
    """As the supplement's Figures 2 and 3: is a sample a copy of a training image?"""
    shown = []
    for measure in ("features", "pixels"):
        legend = (
            f"The nearest by {measure}: each row a sample, then its nearest training images, nearest first."
        )
        shown += [
            picture(path, f"Samples beside their nearest training images by {measure}", legend)
            for _, path in run.images(f"neighbours-{measure}")
        ]
    rows = [
        [
            run.of(evaluation, f"{found['set']}, {number(found['index'])}"),
            number(found.get("label")),
            *(
                number(found[measure][0]["distance"]) if found.get(measure) else NONE
                for measure in ("features", "pixels")
            ),
        ]
        for evaluation in run.evaluations
        for found in evaluation.content.get("neighbours") or []
    ]
    if not shown and not rows:
        command = code(evaluation_command(run.folder))
        return section("Nearest training images", note("Not searched: ", command, " with model.queries."))
    caption = "Distance to the nearest training image; 0 is a copy"
    distances = table(caption, ["sample", "class", "by features", "by pixels"], rows) if rows else Html()
    pictures = element("div", *shown, class_="pictures")
    return section(
        "Nearest training images", pictures, disclosure("Distances", distances) if rows else Html()
    )


def completions(run: Run) -> Html:
    path = run.folder / "complete" / "grid.png"
    legend = "Left to right: an image from its own codes, what is kept of it, and completions."
    shown = (
        picture(path, "Images that were completed", legend)
        if path.is_file()
        else absent(run, "completions", "complete")
    )
    return section("Completions", shown)


def absent(run: Run, what: str, stage: str) -> Html:
    return note(f"No {what}: ", code(STAGES[stage].format(run.name)), " makes them.")


def left_out(run: Run) -> Html:
    """Counts of all that was read, and what is in no figure."""
    rows = [
        [
            run.of(evaluation, name.replace("_", " ")),
            number(count),
            number(evaluation.content["unreadable"].get(name, 0)),
        ]
        for evaluation in run.evaluations
        for name, count in evaluation.content["counts"].items()
    ]
    counts = table("Images and codes that the figures are of", ["data", "read", "unreadable"], rows)
    return section("What was left out", counts, left_out_list(run.evaluations))


def commands(run: Run) -> Html:
    rows = [
        [stage, code(command.format(run.name))]
        for stage, command in STAGES.items()
        if (run.folder / stage).is_dir()
    ]
    rows += [[evaluation.folder.name, code(evaluation.content["command"])] for evaluation in run.evaluations]
    page = f"python experiments/report.py {run.folder}"
    if len(run.evaluations) > 1:
        page += f" --eval {' '.join(str(evaluation.folder) for evaluation in run.evaluations)}"
    rows += [["this page", code(page)]]
    return section(
        "Commands", element("div", table("What made each part", ["part", "command"], rows), class_="words")
    )


def print_figures(run: Run) -> None:
    """Sets side by side, then the run's own figures."""
    for evaluation in run.evaluations:
        keys = list(dict.fromkeys(key for row in evaluation.sets for key in row["figures"]))
        lines = [["", *(row["key"] for row in evaluation.sets)]]
        for key in keys:
            values = [row["figures"].get(key) for row in evaluation.sets]
            if not any(isinstance(value, list) for value in values):
                lines.append([evaluation.legend[key]["name"], *map(number, values)])
        lines += [["images", *(number(row["num_images"]) for row in evaluation.sets)]]
        if evaluation.sets:
            print_table(lines)
            print()
    rows = [
        [name, number(train), number(val)] for name, train, val, _ in paired(run.evaluations, run.figures)
    ]
    print_table([["", "train", "held out or all"], *rows])


if __name__ == "__main__":
    main()
