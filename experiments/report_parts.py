"""Pieces of the report: HTML elements, pictures, tables, charts. What is not `Html` yet is escaped.

Charts are SVG with the page's own font and colours.
"""

import base64
import csv
import io
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator
from PIL import Image, UnidentifiedImageError

NONE = "\N{EN DASH}"  # stands where there is no figure
VOID = {"img", "meta", "wbr"}
SHARP = 700  # pictures of fewer pixels across or down are enlarged to at most so many, pixel by pixel
PRIORS = ("top", "path", "mid", "bottom")  # their folders in a run
# Black becomes the text's colour and these the page's `--series-N`, so that each scheme has its own.
SERIES = tuple(f"#00000{number}" for number in range(1, 7))
LOOSE = {"marker": "D", "linestyle": "none"}
SIZE = (4.0, 3.1)  # inches, at which the texts' sizes are points
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "text.parse_math": False,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
}


class Html(str):
    """Text that is HTML already."""


def element(tag: str, *content: str, **attributes: object) -> Html:
    """`<tag attributes>content</tag>`; `class_` stands for `class`, `aria_label` for `aria-label`.

    An attribute that is None is left out, one that is True has no value.
    """
    written = "".join(
        f" {name.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value))}"')
        for name, value in attributes.items()
        if value is not None
    )
    return Html(f"<{tag}{written}>" + ("" if tag in VOID else f"{join(content)}</{tag}>"))


def join(parts: Iterable[str]) -> Html:
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in parts))


def unseen(text: str) -> Html:
    """For screen readers, where the page says it by its looks."""
    return element("span", text, class_="unseen")


def code(text: str) -> Html:
    return element("code", text)


def note(*content: str) -> Html:
    return element("p", *content, class_="note")


def number(value: float | None) -> str:
    """A figure as people read it: four digits, or four after the point; small ones have three."""
    if value is None:
        return NONE
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 0.01:
        return f"{value:.{4 - len(str(int(abs(value)))) if abs(value) >= 1 else 4}f}"
    return "0" if value == 0 else f"{value:#.3g}"


def percent(value: float | None) -> str:
    """A fraction in percent, to two digits after the point."""
    return NONE if value is None else f"{100 * value:.2f}"


def table(
    caption: str, header: Sequence[str], rows: Iterable[Sequence[str]], *, hidden: bool = False
) -> Html:
    """Of figures. The first column names the rows; wide tables move sideways in a box of their own.

    Args:
        caption: says what the table holds.
        header: of the columns, the first column's too.
        rows: cells, the first of each its name.
    """
    head = element("tr", *(element("th", cell, scope="col") for cell in header))
    body = [
        element("tr", element("th", name, scope="row"), *(element("td", cell) for cell in cells))
        for name, *cells in rows
    ]
    whole = element(
        "table",
        element("caption", element("span", caption)),
        element("thead", head),
        element("tbody", *body),
    )
    return element("div", whole, class_="wide", role="region", tabindex=0, aria_label=caption)


def section(title: str, *content: str) -> Html:
    """With a heading and the id that the list of sections points at."""
    name = anchor(title)
    return element("section", element("h2", title, id=name), *content, aria_labelledby=name)


def anchor(title: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in title.lower())


def disclosure(summary: str, *content: str) -> Html:
    return element("details", element("summary", summary), *content)


def picture(path: Path, alt: str, caption: str) -> Html:
    """A picture file inside the page, or a note where it cannot be read."""
    try:
        with Image.open(path) as image:
            image.load()
            buffer = io.BytesIO()
            image.save(buffer, format="PNG", optimize=True)
            width, height = image.size
    except (UnidentifiedImageError, OSError) as error:
        return note("The picture ", code(str(path)), f" cannot be read: {error}.")
    sharp = max(width, height) < SHARP
    enlarged = width * max(1, SHARP // max(width, height))  # by a whole factor: all pixels stay alike
    image = element(
        "img",
        src="data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(),
        alt=alt,
        width=width,
        height=height,
        class_="sharp" if sharp else None,
        style=f"width: {enlarged}px",
    )
    return element("figure", image, element("figcaption", caption))


def document(title: str, style: str, *content: str) -> str:
    """A whole page that refers to nothing outside itself."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html(style)),
    )
    body = element("body", element("main", *content))
    return Html("<!DOCTYPE html>\n") + element("html", head, body, lang="en") + "\n"


def save_page(title: str, header: Html, sections: Sequence[Html], out: Path) -> None:
    """Writes a page with a list of its sections aside and moves it to its place."""
    titles = [title for found in sections for title in re.findall(r"<h2[^>]*>(.*?)</h2>", found)]
    links = [element("li", element("a", Html(title), href=f"#{anchor(title)}")) for title in titles]
    contents = element("nav", element("ul", *links), aria_label="Sections")
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    page = document(title, style, header, contents, *sections)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(out.name + ".part")
    aside.write_text(page, encoding="utf-8")
    aside.replace(out)


class Point(NamedTuple):
    """One set of images in a chart of one figure against another."""

    x: float
    y: float
    label: str


class Line(NamedTuple):
    """Points of one colour: `name` decides which, so that a set has it in two figures alike."""

    name: str
    points: list[Point]
    joined: bool
    hollow: bool  # dashed, with open marks and without labels: the second figure of the same sets


class Column(NamedTuple):
    """A column of a run's metrics.csv."""

    folder: Path
    name: str
    label: str
    colour: str
    faint: bool  # of training batches: noisy, beside the figure that counts
    marker: str = "o"


def chart(title: str, axes_of: Axes) -> Html:
    """The figure of these axes as an inline SVG element with ids of its own; closes it."""
    buffer = io.StringIO()
    axes_of.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    plt.close(axes_of.figure)
    svg = buffer.getvalue()
    inside = re.sub(r"<(metadata|style).*?</\1>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]+)"', inside).group(1)
    inside = inside[inside.index(">") + 1 : inside.rindex("</svg>")].replace("xlink:href", "href")
    own = re.sub(r"\W+", "-", title.lower())
    inside = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{own}-", inside)
    for number, colour in enumerate(SERIES, 1):
        inside = inside.replace(colour, f"var(--series-{number})")
    inside = inside.replace("#000000", "currentColor")
    svg = element("svg", Html(inside), viewBox=box, role="img", aria_label=title)
    return element("figure", svg, element("figcaption", title))


def trade_off(title: str, x: str, y: str, lines: Sequence[Line]) -> Html:
    """One figure of quality against another, a mark a set of images, as Figure 7 of the paper."""
    names = list(dict.fromkeys(line.name for line in lines if line.joined))
    xs = [point.x for line in lines for point in line.points]
    middle = (min(xs) + max(xs)) / 2
    with plt.rc_context(STYLE):
        _, axes = plt.subplots(figsize=SIZE, layout="constrained")
        for line in lines:
            colour = SERIES[names.index(line.name) % (len(SERIES) - 1)] if line.joined else SERIES[-1]
            style = {"marker": "o", "linestyle": "--" if line.hollow else "-"} if line.joined else LOOSE
            face, label = ("none", None) if line.hollow else (colour, short(line.name))
            places = zip(*[point[:2] for point in line.points], strict=True)
            axes.plot(*places, color=colour, markerfacecolor=face, label=label, **style)
            for point in () if line.hollow else line.points:
                side, shift = ("right", -6) if point.x > middle else ("left", 6)
                style = {"fontsize": 8.5, "color": colour, "ha": side, "textcoords": "offset points"}
                axes.annotate(short(point.label), point[:2], (shift, 5), **style)
        axes.margins(0.1)
        axes.set(xlabel=x, ylabel=y)
        axes.legend()
        return chart(title, axes)


def short(name: str) -> str:
    """A name that leaves room for the curves."""
    return name if len(name) <= 22 else name[:21] + "…"


def training(title: str, y: str, columns: Sequence[Column], *, log: bool = False) -> Html | None:
    """Figures over the steps of training; None where no run has left any."""
    drawn = [(column, points) for column in columns if (points := logged(column))]
    if not drawn:
        return None
    with plt.rc_context(STYLE):
        _, axes = plt.subplots(figsize=SIZE, layout="constrained")
        for column, points in drawn:
            style = {"alpha": 0.5, "linewidth": 0.9} if column.faint else {"marker": column.marker}
            axes.plot(*zip(*points, strict=True), color=column.colour, label=column.label, **style)
        axes.set(xlabel="step", ylabel=y, yscale="log" if log else "linear")
        if log:
            axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")
        axes.legend()
        return chart(title, axes)


def logged(column: Column) -> list[tuple[int, float]]:
    """Steps and values; none where the run has no such file or column."""
    path = column.folder / "metrics.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [
            (int(row["step"]), float(row[column.name]))
            for row in csv.DictReader(file)
            if row.get("step") and row.get(column.name)
        ]


def autoencoder_curves(run: Path) -> Html | None:
    columns = [
        Column(run / "vqvae", "train/mse", "train", SERIES[0], True),
        Column(run / "vqvae", "val/mse", "held out", SERIES[0], False),
    ]
    return training("Autoencoder: mean squared error", "MSE, pixels in [-1, 1]", columns, log=True)


def prior_curves(run: Path) -> Html | None:
    columns = [
        Column(run / level, f"{part}/nll_nats", f"{level}, {name}", colour, part == "train")
        for level, colour in zip(PRIORS, SERIES, strict=False)
        for part, name in (("train", "train"), ("val", "held out"))
    ]
    return training("Priors: negative log-likelihood", "NLL, nats a code", columns)
