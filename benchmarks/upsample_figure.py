"""The figure of docs/upsample.md: planes that hold the slice axis, and what each method makes of them."""

from __future__ import annotations

import argparse

import numpy as np
import upsample
import upsample_peers as peers
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

import medgan
from medgan.imaging.intensity import foreground

Array = NDArray[np.float32]
#: Volume; the axis looked along and where, as a part of the box; the middle of the window as parts of the other axes.
VIEWS = (("T1 sub-01", 1, 0.40, (0.30, 0.70)), ("FLAIR ms_26", 0, 0.40, (0.45, 0.60)), ("CT aorta", 1, 0.5, (0.5, 0.5)))
#: What a panel shows, in mm, and how large, in pixels a mm; CT is coarser and gets more of the body.
WINDOW_MM, PIXELS_PER_MM = (66.0, 60.0), 4.0
CT_SCALE = 2.0
#: Grey values of CT, in HU: soft tissue, lung vessels and bone can all be told apart.
CT_RANGE = (-900.0, 700.0)
GAP, HEAD, FOOT = 6, 30, 24
INK, PALE, PAPER = (20, 20, 20), (90, 90, 90), (255, 255, 255)


def figure(options: argparse.Namespace) -> None:
    """Draws thick, cubic, Tikhonov, medgan and truth side by side, with the PSNR of each whole volume."""
    rows = [row(*view, options) for view in VIEWS]
    wide = max(sum(panel.width + GAP for _, panel, _ in row) - GAP for row in rows)
    tall = HEAD + sum(row[0][1].height + FOOT for row in rows) + GAP
    sheet = Image.new("RGB", (wide + 2 * GAP, tall), PAPER)
    pen = ImageDraw.Draw(sheet)
    large, small = (ImageFont.load_default(size) for size in (17, 14))
    top = HEAD
    for number, panels in enumerate(rows):
        left = GAP
        for name, panel, words in panels:
            middle = left + panel.width // 2
            if number == 0:
                pen.text((middle, HEAD // 2), name, fill=INK, font=large, anchor="mm")
            sheet.paste(panel, (left, top))
            pen.text((middle, top + panel.height + FOOT // 2), words, fill=PALE, font=small, anchor="mm")
            left += panel.width + GAP
        top += panels[0][1].height + FOOT
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    # 64 greys are as many as can be told apart, and a third of the bytes.
    sheet.quantize(64, dither=Image.Dither.NONE).save(options.figure, optimize=True)


def row(name: str, across: int, depth: float, middle: tuple[float, float],
        options: argparse.Namespace) -> list[tuple[str, Image.Image, str]]:
    """Heading, picture and words below, for each panel of a volume."""
    scan = next(scan for scan in upsample.SCANS if scan.name == name)
    kind = upsample.INPUTS[upsample.MAIN]
    factors = kind.factors(scan.axis)
    truth = upsample.truth_of(scan, options.data, factors)
    thick = upsample.thicken(truth, scan.axis, kind, 0.0)
    scale = upsample.Scale.of(truth.array[0])
    told = kind.told(truth, scan.axis)
    made = {
        "thick slices": thick.array[0].repeat(kind.factor, axis=scan.axis),
        "cubic": peers.spline(thick.array[0], factors, 3),
        "Tikhonov": medgan.upsample(thick, factor=factors, method="linear", **told).array[0],
        "medgan": medgan.upsample(thick, factor=factors, model=options.model, device=options.device, **told).array[0],
        "truth": truth.array[0],
    }
    greys = CT_RANGE if name.startswith("CT") else (0.0, float(np.percentile(foreground(truth.array[0]), 99.8)))
    zoom = CT_SCALE if name.startswith("CT") else 1.0
    first, second = (axis for axis in range(3) if axis != across)
    spacing = truth.spacing_mm
    places = []
    for axis, centre, length in zip((first, second), middle, WINDOW_MM, strict=True):
        count = min(truth.shape[axis], round(zoom * length / spacing[axis]))
        start = min(max(0, round(centre * truth.shape[axis] - count / 2)), truth.shape[axis] - count)
        places.append(slice(start, start + count))
    panels = []
    for title, image in made.items():
        plane = image.take(int(depth * truth.shape[across]), axis=across)[places[0], places[1]]
        shown = np.clip((plane.T[::-1] - greys[0]) / (greys[1] - greys[0]), 0, 1)
        picture = Image.fromarray((255 * shown).astype(np.uint8)).convert("RGB")
        size = [round(PIXELS_PER_MM * length) for length in WINDOW_MM]
        size = [round(size[1] * WINDOW_MM[0] / WINDOW_MM[1]), size[1]]
        words = f"{name}, {kind.factor * spacing[scan.axis]:.2g} mm" if title == "thick slices" else (
            f"{spacing[scan.axis]:.2g} mm" if title == "truth" else f"{scale.psnr(image):.1f} dB")
        panels.append((title, picture.resize((size[0], size[1]), Image.Resampling.NEAREST), words))
    return panels
