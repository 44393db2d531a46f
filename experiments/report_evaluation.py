"""The report's facts, tables and curves of evaluations, beside the papers' figures."""

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import paper
from report_parts import (
    NONE,
    Html,
    Line,
    Point,
    code,
    disclosure,
    element,
    join,
    note,
    number,
    percent,
    table,
    trade_off,
    unseen,
)
from vqvae2.pixels import size_of

SPLIT = re.compile(r", (training images|held-out images|train|val|held out)(?=,|$)")  # in figures' names
NETWORKS = {
    "distance": "Network for FID, IS, KID",
    "manifold": "Network for precision to coverage",
}
WORDS = {"held_out": "held-out images"}
KINDS = ("samples", "held_out", "reconstructions")  # from the top of the table down


class Evaluation(NamedTuple):
    """A metrics.json and the folder that it is in."""

    folder: Path
    content: dict[str, Any]

    @property
    def sets(self) -> list[dict[str, Any]]:
        return self.content["sets"]

    @property
    def figures(self) -> dict[str, Any]:
        """Of the run, not of a set of images."""
        return self.content["figures"]

    @property
    def legend(self) -> dict[str, dict[str, Any]]:
        return self.content["legend"]

    def keys_of(self, metric: str) -> list[str]:
        return [key for key, entry in self.legend.items() if entry["metric"] == metric]

    def name_of(self, key: str) -> str:
        return self.legend[key]["name"]

    def conditions(self) -> str:
        """Networks, reference, images and settings. Compare two evaluations only if these are equal."""
        inputs, networks = self.content["inputs"], self.content.get("networks") or {}
        prints = {purpose: network["fingerprint"] for purpose, network in networks.items() if network}
        shape = [inputs.get(name) for name in ("real", "image_size", "channels")]
        return json.dumps([prints, shape, self.content.get("settings")], sort_keys=True)


def legend_of(evaluations: Sequence[Evaluation]) -> dict[str, dict[str, Any]]:
    """Of all figures; of two evaluations that have one, the first says what it is."""
    return {key: entry for evaluation in reversed(evaluations) for key, entry in evaluation.legend.items()}


def facts(evaluation: Evaluation) -> list[tuple[str, Html]]:
    """What was evaluated, and with which networks."""
    content, inputs = evaluation.content, evaluation.content["inputs"]
    found = []
    for row in evaluation.sets:
        if row["kind"] == "samples" and row["fraction"] == 1:
            found.append(("Samples", join([f"{number(row['num_images'])} from ", code(row["location"])])))
    if "real" in content["counts"]:
        count = number(content["counts"]["real"])
        part = f", its {inputs['real_part']} part" if inputs.get("real_part") else ""
        found.append(("Compared with", join([f"{count} images of ", code(inputs["real"]), part])))
    for purpose, network in (content.get("networks") or {}).items():
        if network:
            layers, mark = ", ".join(network["layers"]), code(str(network["fingerprint"])[:12])
            seen = join([f"{network['name']}, layers {layers}, fingerprint ", mark])
            found.append((NETWORKS.get(purpose, purpose), seen))
    if chosen := content.get("rejection"):
        classifier = chosen.get("critic")  # the key in metrics.json
        found.append(
            ("Rejection classifier", code(classifier) if classifier else join(["that of the sample job"]))
        )
    colours = {1: "grey", 3: "colour"}.get(inputs["channels"], f"{inputs['channels']} channels")
    height, width = size_of(inputs["image_size"])
    found.append(("Images", join([f"{height} x {width}, {colours}"])))
    if "versions" in content:  # not in older evaluations
        commit, versions = (content["commit"] or "not known")[:12], content["versions"]
        found.append(
            ("Computed by", join([f"commit {commit}, torch {versions['torch']}, {content['device']}"]))
        )
    found.append(("Command", code(content["command"])))
    return found


def set_name(key: str | None) -> str:
    """A set's key in words."""
    if key is None:
        return "the run"
    candidate, _, fraction = key.partition("@")
    name = WORDS.get(candidate, candidate)
    return f"{name}, best {100 * float(fraction):g}\N{NO-BREAK SPACE}%" if fraction else name


def quality_tables(evaluations: Sequence[Evaluation]) -> list[Html]:
    """A row a set, a column a metric; a table for all evaluations whose figures can be compared."""
    groups: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        if evaluation.sets:
            groups.setdefault(evaluation.conditions(), []).append(evaluation)
    parts = [part for group in groups.values() for part in quality_table(group)]
    if len(groups) > 1:
        own = "Each table has its own networks, reference or settings: compare within one only."
        parts.insert(0, note(own))
    return parts


def quality_table(group: Sequence[Evaluation]) -> list[Html]:
    """The table, and below it why figures are missing."""
    legend = legend_of(group)
    rows = one_of_each([(evaluation, row) for evaluation in group for row in evaluation.sets])
    keys = [
        key
        for key, entry in legend.items()
        if any(isinstance(row["figures"].get(key), int | float) for _, row in rows)
        and not (entry["metric"].endswith("_std") and key.replace("_std", "", 1) in legend)
    ]
    best = {key: best_value(key, legend, [row for _, row in rows]) for key in keys}
    reasons: dict[str, int] = {}
    body = []
    for evaluation, row in rows:
        missing = {
            entry["metric"]: f"{label(evaluation, entry['metric'])}: {entry['reason']}"
            for entry in evaluation.content.get("left_out") or []
            if entry.get("set") == row["key"]
        }
        cells = []
        for key in keys:
            metric = legend[key]["metric"]
            cells.append(cell(row, key, metric, best[key], missing.get(metric), reasons))
        body.append([row_name(row), number(row["num_images"]), *cells])
    header = ["set", "images", *(column_name(legend[key]) for key in keys)]
    caption = "Each set of images against the same real ones. ↓ lower is better, ↑ higher is better"
    caption += (
        "; bold and shaded: the best of the samples." if any(v is not None for v in best.values()) else "."
    )
    why = element("ol", *(element("li", reason) for reason in reasons), class_="footnotes")
    unequal = note("Fréchet distances fall as the number of images grows: compare rows of as many images.")
    sizes = {row["num_images"] for _, row in rows}
    return [table(caption, header, body), why if reasons else Html(), unequal if len(sizes) > 1 else Html()]


def one_of_each(rows: list[tuple[Evaluation, dict[str, Any]]]) -> list[tuple[Evaluation, dict[str, Any]]]:
    """Samples first. If several evaluations have the same figures for the same set, it is shown once."""
    kept: list[tuple[Evaluation, dict[str, Any]]] = []
    for evaluation, row in sorted(rows, key=lambda pair: KINDS.index(pair[1]["kind"])):
        if all(row != other for _, other in kept):
            kept.append((evaluation, row))
    return kept


def best_value(key: str, legend: dict[str, Any], rows: list[dict[str, Any]]) -> float | None:
    """Among the samples; None where there is nothing to choose from."""
    values = [row["figures"].get(key) for row in rows if row["kind"] == "samples"]
    values = [value for value in values if value is not None]
    pick = {"lower": min, "higher": max}.get(legend[key].get("better"))
    return pick(values) if pick and len(values) > 1 else None


def row_name(row: dict[str, Any]) -> Html:
    """With where the images are, for whole sets."""
    name = join([set_name(row["key"])])
    if row.get("fraction", 1) < 1 or not row.get("location"):
        return name
    breaks = join(part for step in row["location"].split("/") for part in ("/", element("wbr"), step))
    return join([name, element("span", Html(breaks[1:]), class_="below")])


def column_name(entry: dict[str, Any]) -> Html:
    """The metric, which way is better, and below it the network where that is not the metric's own."""
    better = entry.get("better")
    arrow = {"lower": "\N{NO-BREAK SPACE}↓", "higher": "\N{NO-BREAK SPACE}↑"}.get(better, "")
    spoken = unseen(f" ({better} is better)") if arrow else Html()
    metric, bracket, network = entry["name"].partition(" (")
    below = element("span", f" ({network}", class_="below") if bracket else Html()
    return join([metric, element("span", arrow, aria_hidden="true"), below, spoken])


def cell(
    row: dict[str, Any], key: str, metric: str, best: float | None, reason: str | None, known: dict[str, int]
) -> Html:
    """A figure with its deviation, marked if best; without one a dash and the number of the reason."""
    value = row["figures"].get(key)
    if value is None:
        mark = element("sup", str(known.setdefault(reason, len(known) + 1))) if reason else Html()
        return join([element("span", NONE, aria_hidden="true"), unseen("no figure"), mark])
    is_best = value == best and row["kind"] == "samples"
    shown = element("strong", number(value), unseen(" (best)")) if is_best else join([number(value)])
    deviation = row["figures"].get(metric + "_std" + key.removeprefix(metric))
    return (
        shown
        if deviation is None
        else join([shown, element("span", f" ± {number(deviation)}", class_="below")])
    )


def label(evaluation: Evaluation, metric: str) -> str:
    """What a metric is called, also one that no set has."""
    keys = evaluation.keys_of(metric)
    return evaluation.name_of(keys[0]) if keys else metric.replace("_", " ")


def left_out_list(evaluations: Sequence[Evaluation]) -> Html:
    """Every figure that is missing, and why; then what was computed otherwise than asked for."""
    sets: dict[tuple[str, str], list[str]] = {}
    for evaluation in evaluations:
        for entry in evaluation.content.get("left_out") or []:
            name = label(evaluation, entry["metric"])
            sets.setdefault((name, entry["reason"]), []).append(set_name(entry.get("set")))
    notes = [
        element("li", note) for evaluation in evaluations for note in evaluation.content.get("notes", [])
    ]
    if not sets and not notes:
        return note("Every figure was computed for every set.")
    items = [
        element("li", element("strong", name), f" of {'; '.join(which)}: {reason}")
        for (name, reason), which in sets.items()
    ]
    return element("ul", *items, *notes)


def paired(
    evaluations: Sequence[Evaluation], figures: dict[str, float]
) -> list[tuple[str, float | None, float | None, str]]:
    """The run's figures: name, on training data, on held-out data or of neither, key without its ending."""
    legend = legend_of(evaluations)
    pairs: dict[str, dict[str, float]] = {}
    names: dict[str, str] = {}
    for key, value in figures.items():
        base = key.removesuffix("_train").removesuffix("_val")
        pairs.setdefault(base, {})["train" if key.endswith("_train") else "val"] = value
        names[base] = SPLIT.sub("", legend[key]["name"]) if base != key else legend[key]["name"]
    return [(names[base], pair.get("train"), pair.get("val"), base) for base, pair in pairs.items()]


def run_tables(evaluations: Sequence[Evaluation], figures: dict[str, float]) -> list[Html]:
    """The run's figures of training and held-out data beside the paper's; then those of neither."""
    published = paper_figures()
    found = paired(evaluations, figures)
    splits = [
        [name, number(train), number(held_out), *published.get(base, (NONE, NONE))]
        for name, train, held_out, base in found
        if base not in figures
    ]
    whole = [[name, number(value)] for name, _, value, base in found if base in figures]
    header = ["figure", "train", "held out", "paper, train", "paper, validation"]
    caption = f"The run's own figures beside {paper.PAPER} on {paper.DATA}; * computed from its Table 1."
    tables = [table(caption, header, splits)] if splits else []
    return tables + ([table("Codes and codebooks.", ["figure", "value"], whole)] if whole else [])


def paper_figures() -> dict[str, tuple[str, str]]:
    """Table 1 and what follows from it, by this suite's keys without their ending."""
    rows = {row.key: row for row in paper.TABLE_1}
    errors = [rows["mse"].train, rows["mse"].validation]
    bits = paper.validation_bits()
    return {key: (f"{row.train:.2f}", f"{row.validation:.2f}") for key, row in rows.items()} | {
        "mse": tuple(f"{error:.4f}" for error in errors),
        "psnr_db": tuple(f"{10 * math.log10(4 / error):.2f}*" for error in errors),
        "bits": (NONE, f"{bits:,.0f}*"),
        "bpp": (NONE, f"{bits / paper.PIXELS:.3f}*"),
        "compression": (NONE, f"{24 * paper.PIXELS / bits:.1f}*"),
    }


def accuracy_table(cas: dict[str, Any] | None, ceiling: dict[str, Any] | None) -> Html:
    """Ours beside the paper's Table 2."""
    rows = []
    for name, found in (("trained on the samples", cas), ("trained on real images: the ceiling", ceiling)):
        if found:
            tested = [found["real"], found.get("reconstructed") or {}]
            figures = [percent(part.get(top)) for part in tested for top in ("top1", "top5")]
            rows.append([name, *figures, number(found["num_train"])])
    for model in dict.fromkeys(row.model for row in paper.TABLE_2):
        cells = {row.tested_on: (row.top1, row.top5) for row in paper.TABLE_2 if row.model == model}
        figures = [*cells["real"], *cells.get("reconstructed", (None, None))]
        name = join([f"paper: {model}", element("span", paper.DATA, class_="below")])
        rows.append([name, *(NONE if value is None else f"{value:.2f}" for value in figures), NONE])
    tops = [f"{data}, top-{top}" for data in ("real", "reconstructed") for top in (1, 5)]
    caption = "Accuracy in percent on held-out images, real and reconstructed by the autoencoder."
    return table(caption, ["classifier", *tops, "images trained on"], rows)


def by_class_table(
    evaluations: Sequence[Evaluation],
    cas: dict[str, Any] | None,
    ceiling: dict[str, Any] | None,
    classes: list[str] | None,
) -> list[Html]:
    """Each class: samples recognised as it, and how well the tested classifiers do on it."""
    columns: list[tuple[str, list[float | None]]] = []
    for evaluation in evaluations:
        for row in evaluation.sets:
            for key, value in row["figures"].items():
                if isinstance(value, list):
                    columns.append((f"{set_name(row['key'])}: {evaluation.name_of(key)}", value))
    for what, found in (("trained on samples", cas), ("trained on real images", ceiling)):
        for tested in ("real", "reconstructed"):
            part = found and found.get(tested)
            if part and part.get("by_class"):
                columns.append((f"{what}, tested on {tested} ones", part["by_class"]))
    if not columns:
        return []
    count = max(len(values) for _, values in columns)
    rows = [
        [str(classes[i]) if classes and i < len(classes) else str(i)]
        + [percent(values[i]) if i < len(values) else NONE for _, values in columns]
        for i in range(count)
    ]
    header = ["class", *(name for name, _ in columns)]
    return [disclosure("Class by class", table("Accuracy of each class in percent.", header, rows))]


def trade_offs(evaluations: Sequence[Evaluation]) -> list[Html]:
    """Figure 7 of the paper: FID and FID* against the Inception score, precision against recall."""
    charts = []
    for title, x, ys in (
        ("Fréchet distance against Inception score", "is", ("fid", "fid_star")),
        ("Precision against recall", "recall", ("precision",)),
    ):
        lines = [line for evaluation in evaluations for y in ys for line in lines_of(evaluation, x, y)]
        if any(len(line.points) > 1 for line in lines if line.joined):
            names = [
                evaluations[0].name_of(key) for metric in (x, *ys) for key in evaluations[0].keys_of(metric)
            ]
            dashed = any(line.hollow for line in lines)
            y = f"{names[1]}; open: {names[2]}" if dashed else names[1]
            charts.append(trade_off(title, names[0], y, lines))
    return charts


def lines_of(evaluation: Evaluation, x: str, y: str) -> list[Line]:
    """One metric against another: a line a candidate over its fractions, else one over all candidates."""
    hollow = y == "fid_star"
    lines: dict[str, Line] = {}
    for x_key, y_key in zip(evaluation.keys_of(x), evaluation.keys_of(y), strict=False):
        rows = [
            row
            for row in evaluation.sets
            if None not in (row["figures"].get(x_key), row["figures"].get(y_key))
        ]
        parts = Counter(row["candidate"] for row in rows if row["kind"] == "samples")
        several = any(count > 1 for count in parts.values())
        for row in rows:
            name, label, joined = "real images", WORDS.get(row["key"], row["key"]), False
            if row["kind"] == "samples":
                curve = parts[row["candidate"]] > 1
                name = row["candidate"] if curve else "other samples" if several else "candidates"
                label = f"{100 * row['fraction']:g}\N{NO-BREAK SPACE}%" if curve else set_name(row["key"])
                joined = curve or not several
            line = lines.setdefault(name, Line(name, [], joined, hollow))
            line.points.append(Point(row["figures"][x_key], row["figures"][y_key], label))
    return list(lines.values())
