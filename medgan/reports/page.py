"""A report as one HTML file that opens offline: no script, no font, no picture that lies elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

#: What a browser may load: the page's own styles and the pictures written into it; nothing from anywhere.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

Mood = Literal["good", "bad", "open", "plain"]

STYLE = """
:root { color-scheme: light; --ink: #1f2933; --pale: #5c6875; --line: #dde3ea; --paper: #ffffff; --back: #f4f6f9;
  --good: #1a7f4b; --bad: #b42318; --open: #8a6100; --plain: #3b5b8c; }
* { box-sizing: border-box; }
html { font: 15px/1.5 system-ui, "Segoe UI", "Liberation Sans", Arial, sans-serif; color: var(--ink);
  background: var(--back); }
body { margin: 0 auto; max-width: 1080px; padding: 28px 24px 60px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 19px; margin: 0 0 6px; }
h3 { font-size: 15px; margin: 20px 0 6px; }
p { margin: 6px 0; max-width: 82ch; }
.lead { color: var(--pale); margin: 0 0 18px; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 8px; padding: 18px 22px 20px;
  margin: 18px 0; }
.tiles { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 14px; margin: 16px 0; }
.tile { background: var(--paper); border: 1px solid var(--line); border-left: 6px solid var(--mood); border-radius: 8px;
  padding: 12px 16px 14px; }
.tile .question { color: var(--pale); font-size: 13px; }
.tile .answer { color: var(--mood); font-size: 20px; font-weight: 650; line-height: 1.3; }
.tile p { margin: 4px 0 0; font-size: 14px; }
.good { --mood: var(--good); } .bad { --mood: var(--bad); } .open { --mood: var(--open); }
.plain { --mood: var(--plain); }
.pill { display: inline-block; border: 1px solid var(--mood); color: var(--mood); border-radius: 99px; padding: 0 9px;
  font-size: 12.5px; white-space: nowrap; }
.warnings { border-left: 6px solid var(--open); }
.warnings li { margin: 4px 0; }
.note { color: var(--pale); font-size: 13.5px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; margin: 8px 0; }
th, td { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); vertical-align: middle; }
th { color: var(--pale); font-weight: 600; font-size: 13px; white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { margin: 10px 0; }
figcaption { color: var(--pale); font-size: 13.5px; margin-top: 4px; max-width: 82ch; }
img { display: block; max-width: 100%; image-rendering: pixelated; border-radius: 3px; }
svg { display: block; max-width: 100%; height: auto; font: 12px system-ui, "Liberation Sans", Arial, sans-serif; }
.side { display: flex; flex-wrap: wrap; gap: 10px 26px; align-items: flex-start; }
.side > * { flex: 0 1 auto; min-width: 0; }
.legend { list-style: none; padding: 0; margin: 8px 0; font-size: 14px; }
.legend li { display: flex; align-items: center; gap: 8px; margin: 3px 0; }
.legend span { width: 22px; height: 5px; border-radius: 2px; flex: none; }
.flat li { display: inline-flex; margin-right: 20px; }
.pairs { display: flex; flex-wrap: wrap; gap: 16px 18px; }
.pairs figure { margin: 0; }
.pairs figcaption { font-size: 12.5px; }
pre { background: var(--back); border-radius: 6px; padding: 12px; overflow-x: auto; font-size: 12.5px; }
details summary { cursor: pointer; color: var(--pale); }
@media (max-width: 720px) { .tiles { grid-template-columns: minmax(0, 1fr); } body { padding: 16px 12px; } }
@media print { html { background: #fff; } section, .tile { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Markup:
    """HTML that is safe to write as it is; every other text is escaped."""

    html: str


Content = str | Markup


@dataclass(frozen=True)
class Tile:
    """One question of the verdict and its answer.

    Args:
        question: What was asked.
        answer: In a few words.
        mood: Whether that is good news.
        detail: The figures behind it.
    """

    question: str
    answer: str
    mood: Mood
    detail: str


def html(content: Content) -> str:
    """Text escaped, markup as it is."""
    return content.html if isinstance(content, Markup) else escape(content)


def joined(parts: Sequence[Content]) -> Markup:
    """Several pieces one after the other."""
    return Markup("\n".join(map(html, parts)))


def paragraph(text: Content, *, note: bool = False) -> Markup:
    """A paragraph; a note is smaller and paler."""
    return Markup(f'<p class="note">{html(text)}</p>' if note else f"<p>{html(text)}</p>")


def section(title: str, *parts: Content) -> Markup:
    """A part of the page with a heading."""
    return Markup(f"<section><h2>{escape(title)}</h2>\n{joined(parts).html}</section>")


def heading(text: str) -> Markup:
    """A heading within a section."""
    return Markup(f"<h3>{escape(text)}</h3>")


def tiles(given: Sequence[Tile]) -> Markup:
    """The verdict: a tile for each question."""
    return Markup('<div class="tiles">' + "\n".join(
        f'<div class="tile {tile.mood}"><div class="question">{escape(tile.question)}</div>'
        f'<div class="answer">{escape(tile.answer)}</div><p>{escape(tile.detail)}</p></div>' for tile in given)
        + "</div>")


def pill(text: str, mood: Mood) -> Markup:
    """A word with the colour of what it means."""
    return Markup(f'<span class="pill {mood}">{escape(text)}</span>')


def warnings(texts: Sequence[str]) -> Markup:
    """A list of what the reader has to know before believing any of it; nothing where there is nothing."""
    if not texts:
        return Markup("")
    listed = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return Markup(f'<section class="warnings"><h2>Read this first</h2><ul>{listed}</ul></section>')


def table(head: Sequence[str], rows: Sequence[Sequence[Content]], *, numbers: Sequence[int] = ()) -> Markup:
    """A table.

    Args:
        head: Names of the columns.
        rows: Their cells.
        numbers: Columns of figures, which are set to the right.
    """
    marks = [' class="number"' if column in numbers else "" for column in range(len(head))]
    top = "".join(f"<th{mark}>{escape(name)}</th>" for name, mark in zip(head, marks, strict=True))
    body = "".join("<tr>" + "".join(f"<td{mark}>{html(cell)}</td>" for cell, mark in zip(row, marks, strict=True))
                   + "</tr>\n" for row in rows)
    return Markup(f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>')


def figure(drawing: str, caption: Content = "") -> Markup:
    """An inline SVG with its caption."""
    below = f"<figcaption>{html(caption)}</figcaption>" if html(caption) else ""
    return Markup(f"<figure>{drawing}{below}</figure>")


def picture(png: bytes, alt: str, caption: Content = "") -> Markup:
    """A PNG written into the page."""
    data = base64.b64encode(png).decode("ascii")
    return figure(f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}">', caption)


def side_by_side(*parts: Content, kind: Literal["side", "pairs"] = "side") -> Markup:
    """Parts beside each other where there is room."""
    return Markup(f'<div class="{kind}">{"".join(f"<div>{html(part)}</div>" for part in parts)}</div>')


def folded(title: str, text: str) -> Markup:
    """Long text that opens at a click."""
    return Markup(f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>")


def page(title: str, lead: str, parts: Sequence[Content]) -> str:
    """The whole file.

    Args:
        title: Of the page.
        lead: A line below it.
        parts: What follows.
    """
    return (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n'
            f'<style>{STYLE}</style>\n</head>\n<body>\n'
            f'<header><h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p></header>\n'
            f"{joined(parts).html}\n</body>\n</html>\n")
