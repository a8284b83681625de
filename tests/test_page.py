"""The report's page: one file, everything escaped, nothing from elsewhere, and drawn as a browser draws it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from medgan.metrics.utility import auroc
from medgan.reports import charts, page
from medgan.reports.sheets import GAP

#: A name that would run, load or close something if it were not escaped.
EVIL = '"><script>alert(1)</script><img src="http://example.org/x.png"> & Ärzte'
#: Attributes that make a browser fetch something.
FETCHING = ("src", "href", "srcset", "data", "poster", "action", "xlink:href")
#: Flags without which a headless browser asks for things by itself.
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run", "--no-default-browser-check", "--disable-default-apps",
         "--disable-extensions", "--virtual-time-budget=4000")


def fetched(html: str) -> list[str]:
    """What a page would have to load: every address in it that is not the data itself."""
    found: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            found.extend(str(value) for name, value in attributes
                         if name in FETCHING and not str(value).startswith("data:"))
            if tag in ("script", "iframe", "object", "embed", "base"):
                found.append(tag)

    Reader().feed(html)
    return found + re.findall(r"(?:url\(|@import)[^;]*", html)


def sample_page(name: str = EVIL) -> str:
    rng = np.random.default_rng(0)
    sheet = charts.grid([charts.picture_of(rng.uniform(-1, 1, (1, 8, 8)), lines_down=True, zoom=4)
                         for _ in range(5)], 3)
    truth, score = rng.random(60) < 0.5, rng.random(60)
    return page.page(name, name, [
        page.tiles([page.Tile(name, name, "good", name)]), page.warnings([name]),
        page.section(name, page.heading(name), page.paragraph(name), page.table((name,), [[name]]),
                     page.picture(charts.png(sheet), name, name), page.folded(name, name),
                     page.figure(charts.roc({name: charts.roc_points(truth, score)}, name), name),
                     page.figure(charts.histogram({name: score}, name, name, marks={name: 0.5})),
                     page.figure(charts.intervals([charts.Interval(name, 0.1, -0.1, 0.2)], name, name, zero=True)),
                     page.Markup(charts.legend([name])))])


def test_every_text_is_escaped_and_nothing_is_fetched() -> None:
    html = sample_page()
    assert fetched(html) == []
    assert "<script" not in html and "&lt;script&gt;" in html and "Ärzte" in html
    assert fetched('<img src="http://example.org/a.png">') and fetched("<style>a{b:url(c)}</style>")


def test_drawings_are_whole_and_hold_what_they_show() -> None:
    fpr, tpr = charts.roc_points([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    assert fpr.tolist() == [0, 0, 0.5, 0.5, 1] and tpr.tolist() == [0, 0.5, 0.5, 1, 1]
    assert float(np.trapezoid(tpr, fpr)) == pytest.approx(float(auroc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])[0]))
    # Ties are one step, or the curve would depend on their order.
    assert charts.roc_points([1, 0], [0.5, 0.5])[0].tolist() == [0, 1]
    gone = float("nan")
    drawings = [charts.roc({"a": (fpr, tpr)}, "t"), charts.histogram({"a": [1.0, 2.0], "b": [1.5]}, "t", "x"),
                charts.histogram({"a": [1.0, 1.0]}, "t", "x"), charts.against_floor(0.2, 0.1, 0.3, 0.05, 0.01, "t"),
                charts.intervals([charts.Interval("a", 0.2, 0.1, 0.3), charts.Interval("b", gone, gone, gone)],
                                 "t", "x", zero=True)]
    for drawing in drawings:
        ElementTree.fromstring(drawing)
        assert "nan" not in drawing.lower().replace("nan-", "")
    assert charts.BETTER in drawings[-1] and "not known" in drawings[-1]
    assert charts.WORSE in charts.intervals([charts.Interval("a", -0.2, -0.3, -0.1)], "t", "x", zero=True)
    assert charts.OPEN in charts.intervals([charts.Interval("a", 0.0, -0.3, 0.1)], "t", "x", zero=True)
    assert charts.against_floor(0.2, 0.1, 0.3, float("nan"), 0.01, "t") == ""


def test_pictures_stand_upright() -> None:
    image = np.full((1, 4, 6), -1.0)
    image[0, 3, 0] = 1.0  # the right end of the first line
    down, up = (charts.picture_of(image, lines_down=way) for way in (True, False))
    assert down.shape == (6, 4, 3)
    assert down[0, 3, 0] == 255 and up[-1, 3, 0] == 255 and int(down[..., 0].astype(int).sum()) == 255
    assert charts.grid([down] * 4, 3).shape == (2 * 6 + GAP, 3 * 4 + 2 * GAP, 3)


def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium on this machine: the page is not opened in a browser (make system)")
    return found


def opened(path: Path, folder: Path, *more: str) -> tuple[str, str]:
    """(the page as it stands after loading, what the browser said)."""
    done = subprocess.run([chromium(), *QUIET, f"--user-data-dir={folder}", "--enable-logging=stderr", "--v=0", *more,
                           path.as_uri()], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, done.stderr


#: Written into a copy of the page: says, where the browser can be asked for it, what was drawn and what was loaded.
PROBE = """<script>addEventListener("load", () => { document.body.dataset.probe = JSON.stringify({
  images: [...document.images].map(image => image.naturalWidth),
  drawings: [...document.querySelectorAll("svg")].map(svg => svg.getBoundingClientRect().width),
  loaded: performance.getEntriesByType("resource").map(entry => entry.name).filter(name => !name.startsWith("data:")),
  wide: document.documentElement.scrollWidth - document.documentElement.clientWidth}); });</script>"""


def probed(html: str, folder: Path) -> dict[str, Any]:
    """What a browser made of a page."""
    target = folder / "probed.html"
    none, inline = "default-src &#x27;none&#x27;;", "script-src &#x27;unsafe-inline&#x27;;"
    allowed = html.replace(none, f"{none} {inline}")
    assert allowed != html, "the page says what a browser may load"
    target.write_text(allowed.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    dom, said = opened(target, folder / "profile", "--dump-dom", "--window-size=1200,900")
    assert "CONSOLE" not in said, said
    match = re.search(r'data-probe="([^"]*)"', dom)
    assert match is not None, dom[-500:]
    return dict(json.loads(unescape(match[1])))


@pytest.mark.slow
def test_a_browser_draws_every_picture_and_asks_for_nothing(tmp_path: Path) -> None:
    found = probed(sample_page(), tmp_path)
    assert len(found["images"]) == 1 and all(width > 0 for width in found["images"])
    assert len(found["drawings"]) == 3 and all(width > 50 for width in found["drawings"])
    assert found["loaded"] == []
    assert found["wide"] == 0, "the page scrolls sideways"
