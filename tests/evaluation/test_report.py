import base64
import io
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from anyres.config import UserError
from anyres.evaluation.metrics import compare
from anyres.evaluation.page import (
    Chart,
    FactGroup,
    Line,
    PageTable,
    Pairing,
    ReportPage,
    Sample,
    SampleAnswer,
    Section,
    Sheet,
)
from anyres.evaluation.plots.line_chart import FRAME, drawn_chart
from anyres.evaluation.report import write_html
from anyres.evaluation.tables import console_table
from anyres.flow import Cost, Estimate, Size

from .curves import SIZES, TRAINED, curve, pixel_errors

NASTY = '<b>Bold & "quoted"</b><script>alert(1)</script>'
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def pairings() -> list[Pairing]:
    draws = np.random.default_rng(0)
    first, second = draws.random(1000) < 0.8, draws.random(1000) < 0.6
    return [
        Pairing("any-size", "single-size 96", Size(*size), compare(first, second if size == (32, 32) else first))
        for size in SIZES
    ]


def sample(name: str, truth: str, side: tuple[int, int]) -> Sample:
    draws = np.random.default_rng(len(name))
    predictions = [
        SampleAnswer(
            model,
            Size(*size),
            truth if size[0] > 32 else "Arla-Ecological-Medium-Fat-Milk",
            f"{100 * draws.random():.0f} %",
            right=size[0] > 32,
        )
        for model in ("any-size", "single-size 96")
        for size in SIZES[:5]
    ]
    predictions.append(SampleAnswer("any-size", Size(96, 160), truth, "50 %", right=True))
    return Sample(name, Image.new("RGB", side, (200, 120, 40)), truth, predictions)


def jpeg(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (40, 120, 200)).save(buffer, "JPEG")
    return buffer.getvalue()


CHARTS = [
    Chart("Loss", [Line("training", [(x / 10, 2 - x / 150) for x in range(1, 151)])]),
    Chart("Held-out top-1 %", [Line(NASTY, [(5.0, 61.0), (10.0, 70.5)]), Line("64 px", [(5.0, 60.0)])], "%", 10.0),
    Chart("One number", [Line("all the same", [(1.0, 0.5), (2.0, 0.5)])]),
]


def page() -> ReportPage:
    return ReportPage(
        title="ResFormer-tiny on groceries",
        claim="One model holds 74 to 77 % top-1 from 64 to 224 pixels.",
        points=[replace(point, metrics=point.metrics | {"top5": Estimate(1.0)}) for point in curve()],
        comparisons=pairings(),
        samples=[sample("a.jpg", NASTY, (500, 300)), sample("b.jpg", "Granny-Smith", (90, 400))],
        notes=["Fruit/" + "very-long-folder-name/" * 12 + "img.jpg could not be read (truncated).", NASTY],
        facts=[FactGroup("Model", [("recipe", NASTY)]), FactGroup("Training", [("seed", "0")])],
        train_sizes=TRAINED,
        cautions=["these images chose the epoch: `anyres eval RUN` measures on others"],
        samples_lead="First the wrong ones.",
        charts=CHARTS,
        sheet=Sheet(jpeg(1800, 300), "Images of the first step.", "Augmented training images."),
        commands=[("anyres predict RUN photo.jpg", NASTY)],
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "new" / "report.html"
    write_html(path, page())
    return path


class Outline(HTMLParser):
    """Tags that were opened and closed, and every attribute."""

    VOID = ("meta", "link", "img", "source", "br", "line", "circle")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_and_asks_for_nothing(written: Path) -> None:
    html = written.read_text(encoding="utf-8")
    outline = Outline()
    outline.feed(html)
    assert not outline.open, "tags left open"
    assert "script" not in outline.tags
    assert html.count("<b") == html.count('<b aria-hidden="true">') + html.count("<body>"), "bold is ours alone"
    for tag, name, value in outline.attributes:
        if name in ("src", "srcset", "href", "action", "data"):
            assert value.startswith(("data:", "#")), f"<{tag} {name}> leaves the page: {value[:80]}"
    assert not re.search(r"url\(|@import|https?://|//\w", re.sub(r'"data:[^"]*"', "", html))
    assert any(name == "content" and "default-src 'none'" in value for _, name, value in outline.attributes)
    images = re.findall(r"<img[^>]*>", html)
    assert len(images) == 4
    assert all(re.search(r'alt="[^"]{10,}"', image) for image in images)
    assert NASTY not in html
    assert NASTY in outline.text, "shown as it is written, not obeyed"
    assert [p.name for p in written.parent.iterdir()] == ["report.html"]


def test_the_page_says_what_was_measured(written: Path) -> None:
    outline = Outline()
    outline.feed(written.read_text(encoding="utf-8"))
    for words in (
        "68.1",
        "65.1 \N{EN DASH} 70.9",
        "inside the noise",
        "clear: any-size is better",
        "25.7 M",
        "1.26 G",
        "96\N{THIN SPACE}\N{MULTIPLICATION SIGN}\N{THIN SPACE}160",
    ):
        assert words in outline.text, words
    alt = next(value for tag, name, value in outline.attributes if (tag, name) == ("img", "alt"))
    assert "any-size: 68.1 % at 32, 74.0 % at 64" in alt


def contents_of(path: Path) -> list[str]:
    """Where the table of contents leads, which is every section."""
    outline = Outline()
    outline.feed(path.read_text(encoding="utf-8"))
    linked = [value for tag, name, value in outline.attributes if (tag, name) == ("a", "href")]
    headed = [value for tag, name, value in outline.attributes if (tag, name) == ("h2", "id")]
    assert linked == [f"#{anchor}" for anchor in headed]
    return linked


def columns_of(path: Path) -> list[str]:
    """The heads of the table of sizes, whose rows have as many cells, and the drawn interval."""
    table = path.read_text(encoding="utf-8").partition('aria-labelledby="sizes"')[2].partition("</table>")[0]
    heads = re.findall(r'<th scope="col">([^<]+)</th>', table)
    rows = re.findall(r'<tr>\n<th scope="row">.*?</tr>', table, re.DOTALL)
    assert {row.count("<td") for row in rows} == {len(heads)}
    assert f'colspan="{len(heads) + 1}"' in table
    return heads


def test_what_is_the_same_in_every_row_is_said_once_and_the_winner_gives_the_color(
    written: Path, tmp_path: Path
) -> None:
    html = written.read_text(encoding="utf-8")
    assert contents_of(written) == ["#curve", "#sizes", "#pairs", "#images", "#training", "#data", "#facts", "#next"]
    assert columns_of(written) == ["size", "top-1&nbsp;%", "95&nbsp;% interval", "ms", "MACs", "images/s", "loss"]
    assert "Everywhere: 1,000 images, top-5 100.0 %." in html
    assert '<span class="verdict clear ink0">clear: any-size is better' in html
    points = [replace(p, n=1000 + i, cost=Cost(math.nan, math.nan, 0)) for i, p in enumerate(curve()[:2])]
    swapped = [replace(pair, first=pair.second, second=pair.first) for pair in pairings()]
    other = tmp_path / "other.html"
    points = [*points, replace(points[0], model="single-size 96")]
    write_html(other, ReportPage(title="t", claim="c", points=points, comparisons=swapped))
    assert contents_of(other) == ["#curve", "#sizes", "#pairs"]
    assert columns_of(other) == ["size", "top-1&nbsp;%", "95&nbsp;% interval", "top-5&nbsp;%", "loss", "images"]
    assert "Everywhere" not in other.read_text(encoding="utf-8")
    assert '<span class="verdict clear ink1">clear: single-size 96 is better' in other.read_text(encoding="utf-8")


def test_charts_lie_within_their_frame() -> None:
    for chart in CHARTS:
        drawn = drawn_chart(chart)
        places = [tuple(map(float, place.split(","))) for line in drawn.lines for place in line.path.split()]
        assert all(FRAME.left <= x <= FRAME.right and FRAME.top <= y <= FRAME.foot for x, y in places)
        assert len(drawn.along) >= 2
    loss, scores, _ = map(drawn_chart, CHARTS)
    assert not loss.lines[0].dots, "too many to be marked"
    assert scores.kept == f"{FRAME.right:.1f}", "the last epoch is the widest"
    assert "64 px: 60 % at the end" in scores.alt


def test_thumbnails_are_small_jpegs_in_proportion(written: Path) -> None:
    found = re.findall(r'data:image/jpeg;base64,([^"]+)" width="(\d+)" height="(\d+)"', written.read_text())
    *found, sheet = found
    assert sheet[1:] == ("1800", "300"), "the sheet as it is"
    sizes = []
    for content, width, height in found:
        with Image.open(io.BytesIO(base64.b64decode(content))) as image:
            assert image.format == "JPEG"
            assert image.size == (int(width), int(height))
            sizes.append(image.size)
    assert sizes == [(360, 216), (81, 360)]


def test_a_page_of_points_alone(tmp_path: Path) -> None:
    write_html(tmp_path / "r.html", ReportPage(title="t", claim="c", points=curve()[:1]))
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "On the same images" not in html
    assert "About the" not in html
    with pytest.raises(UserError, match="the curve is empty"):
        write_html(tmp_path / "r.html", ReportPage(title="t", claim="c", points=[]))


def test_a_page_of_an_error_in_pixels(tmp_path: Path) -> None:
    """A headline with a unit of its own and without intervals; answers that are not simply right or wrong."""
    answers = [SampleAnswer("ruler", point.size, "17.5 px", "off by 3.5 px") for point in pixel_errors()]
    samples = [Sample("a.jpg", Image.new("RGB", (90, 60)), "14 px", answers)]
    section = Section(
        "Far off", "The largest errors.", [PageTable("Far off", ("image", "error px"), [("a.jpg", NASTY)])]
    )
    page = ReportPage("Ruler", "Mean error.", pixel_errors(), samples=samples, sections=[section, section])
    write_html(tmp_path / "r.html", page)
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    outline = Outline()
    outline.feed(html)
    assert not outline.open
    assert "nan" not in outline.text.lower()
    assert "nan" not in "".join(value for _, name, value in outline.attributes if name not in ("src", "srcset")).lower()
    for words in (
        "MAE, size and time",
        "MAE\N{NO-BREAK SPACE}px",
        "17.5 px",
        "off by 3.5 px",
        "The largest errors.",
        "Lower MAE is better",
        NASTY,
    ):
        assert words in outline.text, words
    assert "%, on a scale" not in outline.text
    assert "Accuracy" not in outline.text
    assert not [value for _, name, value in outline.attributes if (name, value) == ("class", "wrong")]
    ids = [value for _, name, value in outline.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    alt = next(value for tag, name, value in outline.attributes if (tag, name) == ("img", "alt"))
    assert alt.startswith("MAE by image size. ruler: 5.5 px at 32, 3.5 px at 64")


def test_the_console_table_of_an_error_in_pixels() -> None:
    buffer = io.StringIO()
    Console(file=buffer, width=150).print(console_table(pixel_errors()))
    head, first, *_ = buffer.getvalue().splitlines()
    assert "MAE px" in head
    assert first.split()[:4] == ["ruler", "32", "5.5", "\N{EN DASH}"]
    assert "nan" not in buffer.getvalue()


def test_a_disturbed_time_is_shown_with_its_range() -> None:
    point = curve()[0]
    disturbed = replace(point, cost=replace(point.cost, latency_low_ms=2.0, latency_high_ms=40.0, disturbed=True))
    buffer = io.StringIO()
    Console(file=buffer, width=150).print(console_table([disturbed]))
    assert "3.10 (2.00 \N{EN DASH} 40.0, disturbed)" in buffer.getvalue()


def test_the_console_table() -> None:
    buffer = io.StringIO()
    points = curve()
    Console(file=buffer, width=150).print(console_table(points, pairings()))
    lines = buffer.getvalue().splitlines()
    assert len(lines) == 1 + len(points)
    assert "to single-size 96 (clear)" in lines[1]
    assert "+0.0 to single-size 96 (inside the noise)" in lines[2]
    assert "68.1" in lines[1]
    buffer = io.StringIO()
    Console(file=buffer, width=100).print(console_table(points))
    assert "difference" not in buffer.getvalue()


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}")
    with playwright.sync_playwright() as tool:
        chromium = tool.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield chromium
        chromium.close()


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_in_a_browser(browser: object, written: Path, width: int, theme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme, offline=True)
    tab = context.new_page()
    troubles: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: troubles.append(message.text))
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(written.as_uri(), wait_until="load")
    widths = tab.evaluate("[...document.images].map(image => image.complete ? image.naturalWidth : 0)")
    assert len(widths) == 4
    assert min(widths) > 0
    drawn = tab.evaluate("(({naturalWidth: w, naturalHeight: h}) => w / h)(document.querySelector('.curve img'))")
    assert (drawn > 2) == (width > 640), "the tall picture is for narrow screens"
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    outside = tab.evaluate(
        """[...document.querySelectorAll('main *')]
           .filter(e => !e.closest('.pan > *') && e.getBoundingClientRect().right > innerWidth + 1)
           .map(e => e.outerHTML.slice(0, 80))"""
    )
    assert outside == []
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(22, 27, 34)" if theme == "dark" else "rgb(255, 255, 255)")
    assert troubles == []
    assert all(url.startswith(("file:", "data:")) for url in asked)
    context.close()
