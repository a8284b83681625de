"""Throughput of lesions made while a network trains, against reading the files with MONAI alone.

    python benchmarks/online.py --data ../shared/data/glioma [--run RUN] [--items 12] [--crop 96] [--modality mr]

Whole cases are items of `medgan.OnlineLesions`, each with new lesions, once every case is in its cache; crops are what
`RandSyntheticLesiond` adds behind MONAI's reader and random crop, once every case was prepared. Seconds are CPU seconds
of one thread, which other work on the machine changes little; with as many workers, throughput is that many times as
high. The ratio is to `LoadImaged` of the same case. Spread is the standard deviation of single items, which differ
with the size of their lesions and how many shapes found no place.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Compose, LoadImaged, RandCropByPosNegLabeld

import medgan
from medgan.datasets.layouts import open_dataset
from medgan.transforms import RECORD, RandSyntheticLesiond

KEYS = ("image", "label")


@dataclass(frozen=True)
class Row:
    """CPU seconds of the items of one way, and how many of them got lesions."""

    name: str
    seconds: tuple[float, ...]
    made: int

    def line(self, reading: float) -> str:
        """One line of the table; `reading` is the mean of reading alone."""
        mean, spread = statistics.mean(self.seconds), statistics.stdev(self.seconds)
        return (f"| {self.name} | {len(self.seconds)} | {mean:.2f} ± {spread:.2f} | "
                f"{statistics.median(self.seconds):.2f} | {1 / mean:.2f} | {mean / reading:.2f} | {self.made} |")


def timed(name: str, items: Iterator[Any], run: Callable[[Any], bool]) -> Row:
    """Runs every item and says how long each took; the first is not counted, for it loads code."""
    seconds, made = [], 0
    for number, item in enumerate(items):
        start = time.process_time()
        got = run(item)
        if number:
            seconds.append(time.process_time() - start)
            made += got
    return Row(name, tuple(seconds), made)


def measure(root: Path, run: Path | None, modality: str, count: int, edge: int) -> tuple[Row, list[Row]]:
    """Reading alone, and every way on whole cases and on crops."""
    parents = [case for case in open_dataset(root).split("train") if case.mask is not None]
    files = [{"image": [str(path) for path in case.images], "label": str(case.mask)} for case in parents]
    cycle = [files[number % len(files)] for number in range(count + 1)]
    reader = LoadImaged(keys=KEYS, ensure_channel_first=True)
    reading = timed("MONAI's reading alone", iter(cycle), lambda case: bool(reader(case)) and False)
    crop = Compose([reader, RandCropByPosNegLabeld(keys=KEYS, label_key="label", spatial_size=(edge,) * 3)])
    crops = [crop.set_random_state(number)(case)[0] for number, case in enumerate(cycle)]
    rows = []
    for method in ("paste", "procedural", *(("gan",) if run else ())):
        given: dict[str, Any] = {"method": method, "modality": modality, "run": run if method == "gan" else None}
        cases = medgan.OnlineLesions(given["run"], root, method=method, modality=modality, share=1.0,  # type: ignore[arg-type]
                                     repeats=count, cache_cases=len(parents))
        for case in cases.studio.parents:
            if cases.studio.config.augment.removed > 0:
                _ = cases.studio.ready(case).emptied
        rows.append(timed(f"{method}, whole", iter(range(count + 1)), lambda i, c=cases: c[i]["synthetic"]))  # type: ignore[misc]
        transform = RandSyntheticLesiond(dataset=root, prob=1.0, **given).set_random_state(0).prepare()
        rows.append(timed(f"{method}, {edge}³ crop", iter(crops),
                          lambda c, t=transform: bool(t(c)["image"].meta[RECORD])))  # type: ignore[misc]
        print("\n".join(row.line(statistics.mean(reading.seconds)) for row in rows[-2:]), flush=True)
    return reading, rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--modality", default="mr")
    parser.add_argument("--items", type=int, default=12)
    parser.add_argument("--crop", type=int, default=96)
    given = parser.parse_args()
    torch.set_num_threads(1)
    reading, rows = measure(given.data, given.run, given.modality, given.items, given.crop)
    print("| way | n | CPU s an item | median | items/s | × reading | with lesions |\n|---|---|---|---|---|---|---|")
    for row in (reading, *rows):
        print(row.line(statistics.mean(reading.seconds)))


if __name__ == "__main__":
    main()
