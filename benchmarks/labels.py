"""How well label maps survive thick slices: nearest neighbour against `medgan.upsample(labels=...)`.

    python benchmarks/labels.py --data ../shared/data

Real masks are thinned, each thick voxel taking the commonest label of its fine ones (the smaller of two alike), along
the slice axis by 3 and by 5 and along all axes by 2, and brought back to their grid. Dice of the foreground against
the mask as it was drawn, mean over cases, and the gain's mean with its range.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medgan.datasets.layouts import open_dataset
from medgan.imaging.labels import refine_labels
from medgan.imaging.slices import Acquisition
from medgan.imaging.volume import Volume

SETS = ("hippocampus", "glioma", "ms")
THINNED = {"slices ×3": (1, 1, 3), "slices ×5": (1, 1, 5), "isotropic ×2": (2, 2, 2)}


def majority(mask: NDArray[np.integer], factors: tuple[int, ...]) -> NDArray[np.integer]:
    """(X, Y, Z), each axis a multiple of its factor, made coarser."""
    values = np.unique(mask)
    shape = [n for length, factor in zip(mask.shape, factors, strict=True) for n in (length // factor, factor)]
    counts = [(mask == value).reshape(shape).sum(axis=(1, 3, 5)) for value in values]
    return values[np.argmax(counts, axis=0)]


def dice(found: NDArray[np.integer], truth: NDArray[np.integer]) -> float:
    """Of everything that is labelled."""
    return float(2 * np.sum((found > 0) & (truth > 0)) / (np.sum(found > 0) + np.sum(truth > 0)))


def main() -> None:
    """Prints a row for each data set and way of thinning."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with hippocampus, glioma and ms")
    root = parser.parse_args().data
    print("| masks | n | thinned | nearest neighbour | medgan | gain, least to most |\n|---|---|---|---|---|---|")
    for name in SETS:
        dataset = open_dataset(root / name)
        masks = [mask for _, mask in map(dataset.load, dataset.cases) if mask is not None]
        for title, factors in THINNED.items():
            scores = []
            for mask in masks:
                whole = mask.array[0][tuple(slice(n // f * f) for n, f in zip(mask.shape, factors, strict=True))]
                coarse = majority(whole, factors)
                near = coarse
                for axis, factor in enumerate(factors):
                    near = near.repeat(factor, axis)
                scans = [Acquisition(n, float(f)) for n, f in zip(coarse.shape, factors, strict=True)]
                affine = np.diag([*(mm * f for mm, f in zip(mask.spacing_mm, factors, strict=True)), 1.0])
                fine = refine_labels(Volume(coarse[None], affine), scans).array[0]
                scores.append((dice(near, whole), dice(fine, whole)))
            first, second = np.array(scores).T
            gain = second - first
            print(f"| {name} | {len(scores)} | {title} | {first.mean():.3f} | {second.mean():.3f} | {gain.mean():+.3f} "
                  f"({gain.min():+.3f} to {gain.max():+.3f}) |", flush=True)


if __name__ == "__main__":
    main()
