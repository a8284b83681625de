"""Speed of `medgan.upsample` against the same network run plainly, seams between blocks, and slice-periodic patterns.

    python benchmarks/upsample_speed.py --data ../shared/data [--threads 2] [--repeats 3] [--size 160 192 159]

The volume is the middle of T1 sub-01, thinned threefold. Plainly means fp32, eager, every plane through
`monai.inferers.sliding_window_inference` with its usual overlap of a quarter, in the same programme otherwise: as
windows of 64 x 64 (`windows`), and as whole planes (`planes`), which no user would think of and which makes the least
work. Runs alternate; the median counts. Whole planes are also what results are compared with, because windows show
their own edges. CPU seconds are those of all threads: they move less than wall time where the machine is shared.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from upsample import INPUTS, SCANS, Scale, thicken, truth_of

import medgan
from medgan.imaging.refine import refine
from medgan.imaging.volume import Volume
from medgan.learning import sharpening

Array = NDArray[np.float32]
KIND, SCAN = INPUTS["gauss3"], SCANS[0]
#: A user's window, how many at once are tried, of which the fastest is taken, and columns of the volume to try on.
WINDOW, AT_ONCE, TRIED = 64, (1, 4, 16), 32
#: Speed and likeness that are promised: output Mvox/s on two cores, times faster, and parts of the intensity range.
SPEED, TIMES, LIKENESS, SEAMS, PATTERN = 3.0, 4.0, 1e-2, 1e-3, 0.05
#: Small blocks: output voxels a slab, and thick voxels through the network at once.
SMALL_SLAB, SMALL_BLOCK = 100_000, 3_000
#: Frequencies on either side of a harmonic of the slices that say what would be there without a pattern.
NEIGHBOURS = 4


def plain_look(window: int | None, at_once: int, self: Any, grey: Array, residual: Array, told: torch.Tensor,
               positions: NDArray[np.float64]) -> None:
    """Stands in for `Sharpener._look`: adds the residual (N, P, Q) for thick network values (T, P, Q), plainly."""
    from monai.inferers import sliding_window_inference

    slices, width, depth = grey.shape
    factor = len(positions) // slices
    planes = sharpening._stacked(grey, slice(0, width), slice(0, depth), self.generator.planes)

    def network(batch: torch.Tensor) -> torch.Tensor:
        rows = (torch.arange(factor * batch.shape[2]) + 0.5) / factor
        made: torch.Tensor = self.generator(batch, told.expand(len(batch), -1), rows)
        return made

    roi = (window, window) if window else (slices, width)
    with torch.inference_mode():
        made = sliding_window_inference(torch.from_numpy(planes), roi, at_once, network, overlap=0.25,
                                        padding_mode="replicate")
    residual += made[:, 0].permute(1, 2, 0).numpy()


@contextmanager
def plainly(window: int | None, at_once: int) -> Iterator[None]:
    """Within it `medgan.upsample` runs its network plainly, `at_once` windows at a time; None for whole planes."""

    def look(self: Any, *arguments: Any) -> None:
        plain_look(window, at_once, self, *arguments)

    with mock.patch.object(sharpening.Sharpener, "_look", look):
        yield


@contextmanager
def small_blocks(slab: int, block: int) -> Iterator[None]:
    """Within it volumes are cut into slabs of `slab` output voxels and blocks of `block` thick ones."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch("medgan.verbs.upsample.refine", partial(refine, slab_voxels=slab)))
        stack.enter_context(mock.patch.dict(sharpening.VOXELS, {2: block, 3: block}))
        yield


def enhance(thick: Volume, model: Path | None) -> Array:
    """The network's result (X, Y, Z), the profile told; an error where the model does not cover the case."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the linear method was used")
        made = medgan.upsample(thick, factor=KIND.factors(SCAN.axis), profile="gaussian", model=model, device="cpu")
    return np.asarray(made.array[0])


def timed(run: Callable[[], Array]) -> tuple[Array, float, float]:
    """A result with the wall and CPU seconds it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    made = run()
    return made, time.perf_counter() - wall, time.process_time() - cpu


def speeds(thick: Volume, model: Path | None, repeats: int) -> tuple[dict[str, tuple[float, float]], dict[str, Array]]:
    """Median wall and CPU seconds of each way, and their results; ways alternate."""

    def plain(window: int | None, volume: Volume = thick, at_once: int | None = None) -> Array:
        with plainly(window, at_once or fastest[window]):
            return enhance(volume, model)

    # The first call of all loads the code and the weights.
    part = replace(thick, array=np.ascontiguousarray(thick.array[:, :TRIED, :TRIED]))
    enhance(part, model)
    fastest = {window: min(AT_ONCE, key=lambda n, w=window: timed(lambda: plain(w, part, n))[2])  # type: ignore[misc]
               for window in (WINDOW, None)}
    ways: dict[str, Callable[[], Array]] = {
        "medgan": lambda: enhance(thick, model), "windows": lambda: plain(WINDOW), "planes": lambda: plain(None)}
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    results = {}
    for _ in range(repeats):
        for name, run in ways.items():
            results[name], *seconds = timed(run)
            spent[name].append((seconds[0], seconds[1]))
    return {name: (statistics.median(w for w, _ in found), statistics.median(c for _, c in found))
            for name, found in spent.items()}, results


def seams(thick: Volume, model: Path | None, large: Array, slab: int = SMALL_SLAB, block: int = SMALL_BLOCK) -> float:
    """Largest difference between the result in small blocks and in large ones, in the volume's unit."""
    with small_blocks(slab, block):
        return float(np.abs(enhance(thick, model) - large).max())


def spectrum(image: Array, mask: NDArray[np.bool_], axis: int) -> NDArray[np.float64]:
    """Mean power along an axis over the lines that cross the foreground, under a Hann window."""
    lines, where = (np.moveaxis(a, axis, -1).reshape(-1, a.shape[axis]) for a in (image, mask))
    courses = lines[where.any(axis=1)].astype(np.float64)
    courses = (courses - courses.mean(axis=1, keepdims=True)) * np.hanning(courses.shape[1])
    power: NDArray[np.float64] = np.square(np.abs(np.fft.rfft(courses, axis=1))).mean(axis=0)
    return power


def periodicity(image: Array, truth: Array, mask: NDArray[np.bool_], axis: int, factor: int,
                ) -> dict[int, tuple[float, float, float]]:
    """How much a result has at the slices' frequency and its harmonics.

    Args:
        image: (X, Y, Z) result.
        truth: (X, Y, Z).
        mask: The foreground.
        axis: The slice axis, a multiple of `factor` long.
        factor: Fine voxels a slice.

    Returns:
        For each harmonic: the result's power over the truth's, which a result that lacks fine detail lowers as well;
        and how far the result's and the truth's power stand out of their neighbouring frequencies (1: not at all),
        which only a pattern raises.
    """
    powers = [spectrum(a, mask, axis) for a in (image, truth)]
    found = {}
    for harmonic in range(1, factor // 2 + 1):
        at = harmonic * image.shape[axis] // factor
        # A Hann window spreads a line over its direct neighbours; they do not count.
        offsets = [o for o in range(-NEIGHBOURS - 1, NEIGHBOURS + 2) if abs(o) > 1]
        near = [at + o for o in offsets if 0 < at + o < len(powers[0])]
        # Power falls with frequency: the geometric mean of both sides is the line between them.
        peaks = [float(power[at] / np.exp(np.log(power[near]).mean())) for power in powers]
        found[harmonic] = (float(powers[0][at] / powers[1][at]), peaks[0], peaks[1])
    return found


def main() -> None:
    """Prints a line for each promise; ends with 1 where one is not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", type=int, nargs=3, default=(160, 192, 159), help="fine voxels, whole slices")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    truth = truth_of(SCAN, options.data, KIND.factors(SCAN.axis), margin=1000)
    starts = [max(0, (n - size) // 2) for n, size in zip(truth.shape, options.size, strict=True)]
    part = tuple(slice(start, start + size) for start, size in zip(starts, options.size, strict=True))
    truth = replace(truth, array=np.ascontiguousarray(truth.array[(slice(None), *part)]))
    scale = Scale.of(truth.array[0])
    span = scale.high - scale.low
    thick = thicken(truth, SCAN.axis, KIND, 0.0)
    spent, results = speeds(thick, options.model, options.repeats)
    ours, made = spent["medgan"], results["medgan"]
    million = made.size / 1e6
    print(f"{' x '.join(map(str, made.shape))} voxels, {options.threads} threads, median of {options.repeats}")
    for name, (wall, cpu) in spent.items():
        print(f"{name:8} {million / wall:.2f} output Mvox/s, {cpu:.1f} CPU s, {wall / ours[0]:.2f} times our wall and "
              f"{cpu / ours[1]:.2f} times our CPU time")
    kept = [told("output Mvox/s", million / ours[0], SPEED, more=True),
            told("times faster than windows, wall", spent["windows"][0] / ours[0], TIMES, more=True)]
    likeness = {name: float(np.abs(results[name] - made).max()) / span for name in ("windows", "planes")}
    print(f"largest difference from windows {likeness['windows']:.2e} of the range, their own edges included")
    kept += [told("largest difference from whole planes in fp32, of the range", likeness["planes"], LIKENESS),
             told("largest difference of small from large blocks, of the range",
                  seams(thick, options.model, made) / span, SEAMS)]
    for harmonic, (power, peak, wanted) in periodicity(made, scale.truth, scale.mask, SCAN.axis, KIND.factor).items():
        print(f"harmonic {harmonic} of the slices: power {power:.3f} of the truth's")
        kept.append(told(f"harmonic {harmonic}: stands out {peak:.3f} (truth {wanted:.3f}), so too much by",
                         peak / wanted - 1, PATTERN))
    sys.exit(not all(kept))


def told(what: str, value: float, limit: float, more: bool = False) -> bool:
    """Prints a promise and says whether it is kept."""
    kept = value >= limit if more else value <= limit
    print(f"{'kept' if kept else 'NOT KEPT'}: {what} {value:.3g}, {'at least' if more else 'at most'} {limit:g}")
    return kept


if __name__ == "__main__":
    main()
