"""Contact sheets: rows of small grey pictures with captions, as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgan.storage import atomic_path

GAP = 2
CAPTION_HEIGHT = 14
#: What pictures say of themselves.
PICTURE = "Drawn by medgan: may show synthetic images - NOT FOR DIAGNOSIS"
#: Colours of the label indices 1, 2, ... in outlines.
COLOURS = ((255, 80, 60), (80, 200, 255), (255, 210, 60), (120, 255, 120), (220, 120, 255), (255, 150, 200))


def plane(image: NDArray[Any], *, lines_down: bool = False) -> NDArray[Any]:
    """(C, X, Y[, Z]) -> (X, Y): first channel, of volumes the middle slice, its second axis up.

    Args:
        image: The image.
        lines_down: Whether its second axis runs down the page, as in rasters; else up, as in RAS.
    """
    flat = image[0] if image.ndim == 3 else image[0, :, :, image.shape[3] // 2]
    return flat[:, ::-1] if lines_down else flat


def grey(image: NDArray[Any], low: float = -1.0, high: float = 1.0) -> NDArray[np.uint8]:
    """A 2D image (X, Y) as an upright RGB picture (H, W, 3); `low` is black and `high` white."""
    scaled = np.clip((np.asarray(image, np.float64) - low) / (high - low), 0, 1)
    picture = np.rint(scaled.T[::-1] * 255).astype(np.uint8)
    return np.repeat(picture[:, :, None], 3, axis=2)


def outlined(image: NDArray[Any], labels: NDArray[Any], low: float = -1.0, high: float = 1.0) -> NDArray[np.uint8]:
    """The picture of `image` (X, Y) with the borders of its label indices drawn in colour."""
    picture = grey(image, low, high)
    upright = labels.T[::-1]
    border = np.zeros(upright.shape, bool)
    border[:-1] |= upright[:-1] != upright[1:]
    border[:, :-1] |= upright[:, :-1] != upright[:, 1:]
    owner = np.maximum(upright, np.maximum(np.roll(upright, -1, 0), np.roll(upright, -1, 1)))
    for value in np.unique(owner[border]):
        if value:
            picture[border & (owner == value)] = COLOURS[(int(value) - 1) % len(COLOURS)]
    return picture


def sheet(rows: Sequence[tuple[str, Sequence[NDArray[np.uint8]]]], *, zoom: int = 1) -> NDArray[np.uint8]:
    """Lays pictures out in captioned rows.

    Args:
        rows: (caption, pictures (H, W, 3)) from top to bottom; pictures of a row may differ in size.
        zoom: Whole-number enlargement.

    Returns:
        (H, W, 3) RGB.
    """
    from PIL import Image, ImageDraw

    bands = []
    for caption, pictures in rows:
        enlarged = [p.repeat(zoom, 0).repeat(zoom, 1) for p in pictures]
        height = max(p.shape[0] for p in enlarged)
        padded = [np.pad(p, ((0, height - p.shape[0]), (0, GAP), (0, 0))) for p in enlarged]
        strip = Image.new("RGB", (max(sum(p.shape[1] for p in padded), 6 * len(caption)), CAPTION_HEIGHT))
        ImageDraw.Draw(strip).text((2, 1), caption, fill=(230, 230, 230))
        body = np.concatenate(padded, axis=1)
        width = max(strip.width, body.shape[1])
        bands += [np.pad(np.asarray(strip), ((0, 0), (0, width - strip.width), (0, 0))),
                  np.pad(body, ((0, GAP), (0, width - body.shape[1]), (0, 0)))]
    width = max(b.shape[1] for b in bands)
    return np.concatenate([np.pad(b, ((0, 0), (0, width - b.shape[1]), (0, 0))) for b in bands])


def save(picture: NDArray[np.uint8], path: Path) -> None:
    """Writes a picture as PNG, whole or not at all."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    told = PngInfo()
    told.add_text("Description", PICTURE)
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG", pnginfo=told)
