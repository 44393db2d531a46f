"""The report in a real browser: on a phone and on a desk, in light and dark, without a network."""

import importlib
import os
import shutil
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from tests.experiments.fake_run import evaluation, legend, make_run, row

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
REQUIRED = os.environ.get("VQVAE2_BROWSER_REQUIRED") == "1"
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
SIZES = {"small phone": (320, 568), "phone": (375, 812), "desk": (1280, 900)}
VIEWS = [(size, scheme) for size in SIZES for scheme in ("light", "dark")]

# Relative luminance and contrast as WCAG 2.2 defines them, of every text with what is painted behind it.
CONTRASTS = """() => {
  const parse = colour => colour.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    throw new Error("nothing is painted behind the text");
  };
  const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim()) continue;
    const style = getComputedStyle(node);
    const inChart = node.closest("svg") !== null;
    const [a, b] = [inChart ? style.fill : style.color, behind(node)]
      .map(colour => luminance(typeof colour === "string" ? parse(colour) : colour));
    found.push({
      text: walker.currentNode.data.trim(), inChart, opacity: style.opacity,
      contrast: (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), isLight: a > b,
    });
  }
  return found;
}"""


class View(NamedTuple):
    """What a browser shows of the report, and what it complained about and asked for."""

    page: object
    complaints: list[str]
    requests: list[str]
    scheme: str


def find_browser() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    path = find_browser()
    missing = None if sync_playwright else "the Python package playwright"
    missing = missing if path else "a browser: Debian's package chromium"
    if missing:
        (pytest.fail if REQUIRED else pytest.skip)(f"needs {missing}")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """With long names, and as many sets and figures as a large evaluation has."""
    content = evaluation()
    content["legend"] |= legend()
    more = {"density_classifier": 1.5, "coverage_classifier": 0.5}
    content["sets"] += [
        row(f"temperature_0.{i}_of_a_long_name@0.{i}", "samples", 1000, i / 10, **more) for i in range(1, 10)
    ]
    content["command"] += " --data.init_args.samples=" + "very_long_name/" * 20
    run = make_run(tmp_path_factory.mktemp("runs") / "a_run_of_a_rather_long_name", content)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXPERIMENTS))
        module = importlib.import_module("report")
        module.matplotlib.use("Agg")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # such as of charts whose texts leave no room for curves
            module.write_page(module.read_run(run, ["eval"]), run / "report.html")
    return run / "report.html"


@pytest.fixture(scope="module", params=VIEWS, ids=" ".join)
def view(request, browser, report):
    size, scheme = request.param
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda asked: requests.append(asked.url))
    page.goto(report.as_uri())
    for summary in page.query_selector_all("summary"):
        summary.click()  # what is folded away is part of the page
    yield View(page, complaints, requests, scheme)
    page.close()


def test_the_page_never_moves_sideways(view):
    found = view.page.evaluate("() => [document.documentElement.scrollWidth, window.innerWidth]")
    assert found[0] <= found[1]
    wider = view.page.evaluate(
        "() => [...document.querySelectorAll('main *')].filter(node => !node.closest('.wide, svg')"
        " && node.getBoundingClientRect().right > window.innerWidth + 0.5).map(node => node.outerHTML)"
    )
    assert wider == []


def test_wide_tables_move_in_their_own_box_and_their_row_names_stay(view):
    found = view.page.evaluate(
        "() => { const box = document.querySelector('.wide'); box.scrollLeft = 1e6; return {"
        " moved: box.scrollLeft, hidden: box.scrollWidth - box.clientWidth, focusable: box.tabIndex,"
        " name: box.querySelector('tbody th').getBoundingClientRect().left,"
        " left: box.getBoundingClientRect().left}; }"
    )
    assert found["moved"] == pytest.approx(found["hidden"], abs=1)
    assert found["hidden"] > 0 or view.page.viewport_size["width"] > 1000
    assert found["name"] == pytest.approx(found["left"], abs=1)
    assert found["focusable"] == 0


def test_every_picture_is_decoded_and_fits(view):
    images = view.page.evaluate(
        "() => Promise.all([...document.images].map(image => image.decode().then(() => ("
        "{natural: [image.naturalWidth, image.naturalHeight], shown: [image.width, image.height]}))))"
    )
    assert len(images) == 5
    for image in images:
        (width, height), (shown_width, shown_height) = image["natural"], image["shown"]
        assert min(width, shown_width) > 0
        assert shown_height / shown_width == pytest.approx(height / width, rel=0.02)  # not stretched
        assert shown_width <= view.page.viewport_size["width"]


def test_nothing_is_asked_of_a_network_and_nothing_complains(view):
    assert view.requests == [view.page.url]
    assert view.complaints == []


def test_every_text_can_be_read_and_follows_the_scheme(view):
    found = view.page.evaluate(CONTRASTS)
    charts = [text for text in found if text["inChart"]]
    assert len(found) > 200
    assert len(charts) > 40
    assert [text for text in found if text["contrast"] < 4.5 or text["opacity"] != "1"] == []
    assert {text["isLight"] for text in found} == {view.scheme == "dark"}


def test_light_is_light_and_dark_is_dark(view, tmp_path):
    path = tmp_path / "page.png"
    view.page.evaluate("() => window.scrollTo(0, 0)")
    view.page.screenshot(path=path)
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"), dtype=float)
    paper = np.median(pixels)
    assert paper > 240 if view.scheme == "light" else paper < 35
    ink = pixels.min() if view.scheme == "light" else pixels.max()
    assert abs(paper - ink) > 180
    written = np.abs(pixels - paper) > 60
    assert 0.003 < written.mean() < 0.3  # a page with text on it: neither empty nor covered


def test_paper_is_white_and_wide_enough(view):
    """Printed, wherever it is read: the evaluation's table fits, whatever the scheme."""
    screen = view.page.viewport_size
    view.page.emulate_media(media="print")
    view.page.set_viewport_size({"width": 794, "height": 1123})  # A4
    found = view.page.evaluate(
        "() => [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,"
        " document.documentElement.scrollWidth]"
    )
    view.page.emulate_media(media="screen")
    view.page.set_viewport_size(screen)
    assert found[:2] == ["rgb(255, 255, 255)", "rgb(0, 0, 0)"]
    assert found[2] <= 794


def test_charts_draw_lines_that_can_be_seen(view, tmp_path):
    """Frames and curves have the scheme's colours: no black on black."""
    for i, chart in enumerate(view.page.query_selector_all("svg")):
        path = tmp_path / f"{i}.png"
        chart.screenshot(path=path)
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"), dtype=float)
        paper = np.median(pixels.reshape(-1, 3), axis=0)
        far = np.abs(pixels - paper).max(axis=2) > 90
        assert 0.004 < far.mean() < 0.3
        colours = np.ptp(pixels[far], axis=1)
        assert (colours > 40).any()  # curves have colours
        assert (colours < 25).any()  # texts have the page's
