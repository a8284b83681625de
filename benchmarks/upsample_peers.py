"""What `medgan.upsample` is measured against: interpolation, the best Tikhonov there is, and other people's networks.

All give the fine volume on the grid that keeps the field of view: with factor f the first fine centre sits at
(1/f - 1)/2 thick voxels.

Two peers have networks and run in environments of their own, which nothing here needs unless they are asked for:

SOUP-GAN (package KevinSR, MIT; its source archive holds the weights "Thin-to-thin"):
    python3.11 -m venv /tmp/soupgan
    /tmp/soupgan/bin/pip install "tensorflow-cpu<2.17"
    /tmp/soupgan/bin/pip download --no-deps --no-binary :all: KevinSR && tar xzf KevinSR-0.1.20.tar.gz
    python benchmarks/upsample.py ... --soupgan-python /tmp/soupgan/bin/python \\
        --soupgan-weights KevinSR-0.1.20/KevinSR/Thin-to-thin
ECLARE (package eclare, GPL 3; learns anew on every volume, a million patches by default):
    python3.11 -m venv /tmp/eclare && /tmp/eclare/bin/pip install eclare
    python benchmarks/upsample_peers.py --eclare-python /tmp/eclare/bin/python --data ../shared/data

SOUP-GAN's own programme puts the corners' centres of the two grids on each other (`scipy.ndimage.zoom`), so that
slices drift, by (f - 1)/2 fine voxels at both ends. It is corrected in its favour: the network, which keeps the
grid it is given, gets the cubic interpolation on the right grid (`soupgan`); and whatever shift is left between its
result and the truth is searched for and taken out (`unshifted`). Its other weights ("Thick-to-thin") are not in the
archive, and its programme would fetch them from elsewhere; they are not measured.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, ndimage, optimize

from medgan.imaging.slices import Acquisition, along

Array = NDArray[np.float32]
#: Smoothness of which the best is taken for each volume, from next to none to far too much.
SMOOTHNESS = tuple(10.0**power for power in np.arange(-7, 0.1, 0.5))
#: Lines along the slices on which a shift is searched for, and how far, in fine voxels.
SHIFT_LINES, FARTHEST = 4000, 1.5
#: A smaller shift costs more by interpolating than it gains.
SMALLEST_SHIFT = 0.02
#: Patches ECLARE learns from by default, and how many at once.
ECLARE_PATCHES, ECLARE_BATCH = 1_000_000, 128

#: Runs in SOUP-GAN's environment: weights, cubic interpolation (X, Y, Z) in its unit, factor, threads, result.
SOUPGAN_CHILD = """
import sys
import numpy as np
import tensorflow as tf
weights, source, factor, threads, target = sys.argv[1:]
tf.config.threading.set_intra_op_parallelism_threads(int(threads))
tf.config.threading.set_inter_op_parallelism_threads(1)
model = tf.saved_model.load(weights)
network = model.signatures["serving_default"]
image = np.moveaxis(np.load(source), 2, 0)
told = np.zeros((1, 5), np.float32)
place = min(max(float(factor) - 2, 0), 4)
low = int(place)
told[0, low] = 1 - (place - low)
if place > low:
    told[0, low + 1] = place - low
# Slabs with a border as wide as the network sees, since a whole volume takes tens of gigabytes.
reach, step = 20, max(8, int(3e6 / (image.shape[0] * image.shape[2])))
result = np.empty_like(image)
for start in range(0, image.shape[1], step):
    stop, first = min(image.shape[1], start + step), max(0, start - reach)
    block = image[None, :, first:stop + reach, :, None]
    made = network(input_images=tf.constant(block), input_indexes=tf.constant(told))["output_images"].numpy()
    result[:, start:stop] = made[0, :, start - first:stop - first, :, 0]
np.save(target, np.moveaxis(result, 0, 2))
"""

#: Runs in ECLARE's environment: in-plane slices (X, Y, Z) in [0, 1], FWHM in voxels, factor, threads, steps, batch.
ECLARE_CHILD = """
import sys, time
import numpy as np
import torch
from eclare.eclare import WDSR
from eclare.utils.blur_kernel_ops import parse_kernel
from eclare.utils.train_set import TrainSet
source, width, factor, threads, steps, batch = sys.argv[1], *map(float, sys.argv[2:])
torch.set_num_threads(int(threads))
device = "cuda" if torch.cuda.is_available() else "cpu"
model = WDSR(n_resblocks=16, num_channels=256, scale=factor).to(device)
tall = round(factor * max(model.calc_out_patch_size([8, 8])))
data = TrainSet(image=np.load(source), lr_axis=2, verbose=False)
data.init_eclare((tall, 8), parse_kernel(None, "gaussian", width), factor, int(steps * batch))
optimiser, loss = torch.optim.Adam(model.parameters(), lr=1e-4), torch.nn.MSELoss()
seconds = []
for step in range(int(steps)):
    started = time.perf_counter()
    pairs = [data[i] for i in range(int(batch))]
    thick, sharp = (torch.stack(part).to(device) for part in zip(*pairs))
    distance = loss(model(thick), sharp)
    optimiser.zero_grad()
    distance.backward()
    optimiser.step()
    distance.item()
    seconds.append(time.perf_counter() - started)
print(min(seconds) / batch, device)
"""


def spline(thick: Array, factors: Sequence[int], order: int) -> Array:
    """Linear (1) or cubic (3) B-spline interpolation of (X, Y, Z), the edge repeated."""
    step = 1 / np.asarray(factors, dtype=float)
    shape = tuple(n * f for n, f in zip(thick.shape, factors, strict=True))
    return np.asarray(ndimage.affine_transform(thick, step, (step - 1) / 2, shape, order=order, mode="nearest"))


def lanczos(thick: Array, factors: Sequence[int]) -> Array:
    """Lanczos-3 along each refined axis: weights at the fine centres, edge repeated, rows summing to one."""
    for axis, factor in enumerate(factors):
        if factor == 1:
            continue
        count = thick.shape[axis]
        at = (np.arange(count * factor) + 0.5) / factor - 0.5
        near = np.floor(at)[:, None] + np.arange(-2, 4)
        weight = np.sinc(at[:, None] - near) * np.sinc((at[:, None] - near) / 3)
        matrix = np.zeros((len(at), count), np.float32)
        np.add.at(matrix, (np.arange(len(at))[:, None], np.clip(near, 0, count - 1).astype(int)), weight)
        thick = along(matrix / matrix.sum(axis=1, keepdims=True), thick, axis)
    return thick


def best_tikhonov(thick: Array, scans: Sequence[Acquisition], psnr: Callable[[Array], float]) -> tuple[Array, float]:
    """Tikhonov deconvolution that knows the profile, and the truth as far as its one constant is concerned.

    Args:
        thick: (X, Y, Z).
        scans: The true acquisition of each axis.
        psnr: Judges a result.

    Returns:
        The result with the best constant for this very volume, and that constant.
    """
    best: tuple[float, Array, float] = (-math.inf, thick, 0.0)
    for smoothness in SMOOTHNESS:
        made = thick
        for axis, scan in enumerate(scans):
            if scan.factor > 1:
                curvature = np.diff(np.eye(scan.fine), n=2, axis=0)
                normal = scan.matrix.T @ scan.matrix + smoothness * scan.factor**3 * (curvature.T @ curvature)
                made = along(linalg.solve(normal, scan.matrix.T, assume_a="pos"), made, axis)
        value = psnr(made)
        if value < best[0]:
            break
        best = (value, made, smoothness)
    return best[1], best[2]


def soupgan(thick: Array, factor: int, python: Path, weights: Path, threads: int = 1) -> Array:
    """SOUP-GAN along the last axis of (X, Y, Z), in its own environment, on the right grid.

    Args:
        thick: (X, Y, Z).
        factor: Fine voxels a slice.
        python: The interpreter of its environment.
        weights: Its folder "Thin-to-thin".
        threads: How many it may use.
    """
    # Its programme scales every volume to 0 .. 10000.
    low, high = float(thick.min()), float(thick.max())
    image = (spline((thick - low) / (high - low), (1, 1, factor), 3) * 10_000).astype(np.float32)
    return low + soupgan_network(image, factor, python, weights, threads) * np.float32((high - low) / 10_000)


def soupgan_network(image: Array, factor: int, python: Path, weights: Path, threads: int) -> Array:
    """Its network on an interpolated volume (X, Y, Z) in its own unit."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.npy", Path(folder) / "out.npy"
        np.save(source, image)
        _child(python, SOUPGAN_CHILD, str(weights), str(source), str(factor), str(threads), str(target))
        return np.asarray(np.load(target), dtype=np.float32)


def unshifted(image: Array, truth: Array, mask: NDArray[np.bool_], axis: int) -> tuple[Array, float]:
    """Moves a result along an axis to where it fits the truth best.

    Args:
        image: (X, Y, Z) result.
        truth: (X, Y, Z).
        mask: Where they are compared.
        axis: The slice axis.

    Returns:
        The result, moved by cubic interpolation unless it fits best (nearly) where it is, and the shift in fine voxels.
    """
    lines, wanted, where = (np.moveaxis(a, axis, -1).reshape(-1, a.shape[axis]) for a in (image, truth, mask))
    inside = np.flatnonzero(where.any(axis=1))
    chosen = np.random.default_rng(0).choice(inside, min(SHIFT_LINES, inside.size), replace=False)
    lines, wanted, where = lines[chosen], wanted[chosen], where[chosen]

    def moved(shift: float, array: Array, along_axis: int) -> Array:
        vector = [shift if a == along_axis else 0.0 for a in range(array.ndim)]
        return np.asarray(ndimage.shift(array, vector, order=3, mode="nearest"))

    def distance(shift: float) -> float:
        return float(np.square(moved(shift, lines, 1)[where] - wanted[where], dtype=np.float64).mean())

    coarse = min(np.linspace(-FARTHEST, FARTHEST, 13), key=distance)
    shift = float(optimize.minimize_scalar(distance, bounds=(coarse - 0.25, coarse + 0.25), method="bounded",
                                           options={"xatol": 0.005}).x)
    still = float(np.square(lines[where] - wanted[where], dtype=np.float64).mean())
    if abs(shift) < SMALLEST_SHIFT or distance(shift) >= still:
        return image, 0.0
    return moved(shift, image, axis), shift


def eclare_seconds(sharp: Array, factor: int, python: Path, threads: int = 1, steps: int = 2) -> tuple[float, str]:
    """Seconds ECLARE takes to learn from one patch, as fast as it went, and the device it ran on.

    Args:
        sharp: (X, Y, Z) thick slices that it learns from.
        factor: The factor.
        python: The interpreter of its environment.
        threads: How many it may use.
        steps: Optimiser steps of its default batch that are timed.
    """
    low, high = float(sharp.min()), float(sharp.max())
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.npy"
        np.save(source, ((sharp - low) / (high - low)).astype(np.float32))
        told = _child(python, ECLARE_CHILD, str(source), str(factor), str(factor), str(threads), str(steps),
                      str(ECLARE_BATCH))
    seconds, device = told.split()[-2:]
    return float(seconds), device


def _child(python: Path, programme: str, *arguments: str) -> str:
    """Runs a programme in another environment; gives what it prints."""
    done = subprocess.run([str(python), "-c", programme, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{python} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def main() -> None:
    """Times ECLARE's optimiser steps on one volume and says how long all of them would take."""
    from upsample import INPUTS, SCANS, thicken, truth_of

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--eclare-python", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    factors = INPUTS["gauss3"].factors(SCANS[0].axis)
    truth = truth_of(SCANS[0], arguments.data, factors)
    thick: Any = thicken(truth, SCANS[0].axis, INPUTS["gauss3"], 0.0)
    seconds, device = eclare_seconds(thick.array[0], max(factors), arguments.eclare_python, arguments.threads)
    print(f"ECLARE on {SCANS[0].name}, {device}, {arguments.threads} threads: {1000 * seconds:.1f} ms a patch, so "
          f"{seconds * ECLARE_PATCHES / 3600:.1f} h to learn from its {ECLARE_PATCHES} patches, for each volume")


if __name__ == "__main__":
    main()
