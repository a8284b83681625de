"""What `--sharpness` trades: fidelity against the look, from one end of the shipped model to the other.

    python benchmarks/upsample_sharpness.py --data ../shared/data [--quick] [--figure docs/img/sharpness.png]

On the volumes of `upsample.py`, thinned by 3 with a Gaussian profile that is told. Fidelity: foreground PSNR and SSIM,
higher is better. Look: how far patches of planes across the slices are from the truth's, as the Fréchet distance of 64
features of a random convolutional network (PCA to 24), and how much of the power beyond the slices' Nyquist frequency
is there, over that of the truth (1 is right; less is blurred). The distance is given over that of cubic interpolation;
its floor is that of one half of the truth's patches to the other. Intervals are 95 % bootstrap over people.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import upsample as bench
import upsample_peers as peers
import upsample_tables as tables
from numpy.typing import NDArray
from scipy import linalg

import medgan

SHARPNESS = (0.0, 0.25, 0.5, 0.75, 1.0)
PATCH, FEATURES, COMPONENTS = 24, 64, 24


def patches(image: NDArray[np.float32], scale: bench.Scale) -> NDArray[np.float32]:
    """Patches (N, 1, 24, 24) of the planes that hold the slice axis, where the foreground fills most of them."""
    found = []
    for plane, mask in zip(image[::6], scale.mask[::6], strict=True):
        for row in range(0, plane.shape[0] - PATCH + 1, PATCH // 2):
            for column in range(0, plane.shape[1] - PATCH + 1, PATCH // 2):
                box = (slice(row, row + PATCH), slice(column, column + PATCH))
                if mask[box].mean() > 0.8:
                    found.append(plane[box])
    return (np.stack(found)[:, None] - scale.low) / (scale.high - scale.low)


@torch.no_grad()
def features(images: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N, 2 x 64): mean and deviation of the last layer of a random network, the same one every time."""
    generator = torch.Generator().manual_seed(0)
    h = torch.from_numpy(images.astype(np.float32))
    for inputs, outputs in ((1, 32), (32, 64), (64, FEATURES)):
        weight = torch.randn(outputs, inputs, 3, 3, generator=generator) * (2 / (9 * inputs)) ** 0.5
        weight -= weight.mean(dim=(2, 3), keepdim=True)  # the mean grey says nothing about the look
        h = F.relu(F.conv2d(h, weight))
        h = h / h.std()
    return torch.cat([h.mean(dim=(2, 3)), h.std(dim=(2, 3))], dim=1).double().numpy()


def frechet(one: NDArray[np.float64], two: NDArray[np.float64]) -> float:
    """Fréchet distance of two sets of features (Heusel et al. 2017)."""
    a, b = np.cov(one, rowvar=False), np.cov(two, rowvar=False)
    root = linalg.sqrtm(a @ b).real
    return float(np.square(one.mean(0) - two.mean(0)).sum() + np.trace(a + b - 2 * root))


def lost_power(image: NDArray[np.float32], truth: NDArray[np.float32], factor: int) -> float:
    """Power beyond the slices' Nyquist frequency along the last axis, over that of the truth."""
    totals = []
    for array in (image, truth):
        power = np.square(np.abs(np.fft.rfft(array * np.hanning(array.shape[-1]), axis=-1))).mean(axis=(0, 1))
        totals.append(power[np.fft.rfftfreq(array.shape[-1]) > 0.5 / factor].sum())
    return float(totals[0] / totals[1])


def measure(scan: bench.Scan, data: Path, quick: bool) -> tuple[dict[str, list[float]], list[NDArray[np.float32]]]:
    """PSNR, SSIM, distance over cubic's and power for each result, and one plane of each."""
    kind = bench.INPUTS["gauss3"]
    factors = kind.factors(scan.axis)
    truth = bench.truth_of(scan, data, factors, quick)
    scale = bench.Scale.of(truth.array[0])
    thick = bench.thicken(truth, scan.axis, kind, 0.0)
    results = {"cubic": peers.spline(thick.array[0], factors, 3),
               "linear": medgan.upsample(thick, factor=factors, method="linear", profile="gaussian").array[0]}
    for sharpness in SHARPNESS:
        results[f"sharpness {sharpness:g}"] = medgan.upsample(thick, factor=factors, profile="gaussian",
                                                              sharpness=sharpness).array[0]
    real = patches(truth.array[0], scale)
    seen = features(real)
    centre, axes = seen.mean(0), np.linalg.svd(seen - seen.mean(0), full_matrices=False)[2][:COMPONENTS].T
    distances = {name: frechet((features(patches(image, scale)) - centre) @ axes, (seen - centre) @ axes)
                 for name, image in results.items()}
    order = np.random.default_rng(0).permutation(len(seen))
    half = (seen[order] - centre) @ axes
    floor = frechet(half[::2], half[1::2])
    found = {name: [scale.psnr(image), scale.ssim(image, scan.axis), distances[name] / distances["cubic"],
                    lost_power(image, truth.array[0], kind.factor)] for name, image in results.items()}
    found["truth, half against half"] = [np.nan, 1.0, floor / distances["cubic"], 1.0]
    middle = truth.shape[0] // 2
    shown = [np.clip((image[middle] - scale.low) / (scale.high - scale.low), 0, 1) for image in
             (*(results[name] for name in ("cubic", "sharpness 0", "sharpness 1")), truth.array[0])]
    return found, shown


def figure(planes: list[NDArray[np.float32]], target: Path) -> None:
    """Cubic, both ends and the truth side by side, twice as large."""
    from PIL import Image

    row = np.concatenate([np.pad(plane.T[::-1], ((0, 0), (0, 3))) for plane in planes], axis=1)
    picture = Image.fromarray((255 * row).astype(np.uint8))
    picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST).save(target, optimize=True)


def main() -> None:
    asked = bench.parser(__doc__)
    asked.add_argument("--figure", type=Path, help="a picture of the first volume")
    arguments = asked.parse_args()
    found: dict[str, dict[tuple[str, str], list[float]]] = {}
    for scan in bench.real_scans(arguments.only):
        measured, planes = measure(scan, arguments.data, arguments.quick)
        for name, values in measured.items():
            found.setdefault(name, {})[scan.person, scan.name] = values
        if arguments.figure:
            figure(planes, arguments.figure)
            arguments.figure = None
    print(f"n = {len(found['cubic'])} volumes\n\n| result | PSNR, dB | SSIM | distance of the look, cubic = 1 | "
          "power the slices lost |\n|---|---|---|---|---|")
    for name, rows in found.items():
        cells = []
        for column, digits in enumerate((2, 3, 2, 2)):
            values = {who: row[column] for who, row in rows.items()}
            low, high = tables.interval(values)
            cells.append(f"{np.mean(list(values.values())):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
