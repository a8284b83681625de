"""Measures `medgan.upsample` on scans it has not seen, thinned threefold, and draws the figure of docs/upsample.md.

    python benchmarks/upsample.py --data ../shared/data [--model RUN] [--figure docs/img/upsample.png]

Each volume is blurred along one axis with a slice profile of three voxels and every third slice is kept. PSNR is taken
in the foreground over a fixed range (0 to the 99.9 percentile of the foreground above the volume's floor). Methods are
not told the truth beyond the profile's name and width; `auto` is told nothing and assumes a Gaussian.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

import medgan
from medgan.imaging.acquisition import simulate
from medgan.imaging.intensity import foreground
from medgan.imaging.slices import Profile
from medgan.imaging.volume import Volume

FACTOR = 3
#: Name, file, slice axis, and the part that is used (everything where None).
SCANS: tuple[tuple[str, str, int], ...] = (
    ("T1 sub-01", "brain-t1/sub-01/anat/sub-01_T1w.nii.gz", 2),
    ("T1 sub-02", "brain-t1/sub-02/anat/sub-02_T1w.nii.gz", 2),
    ("FLAIR ms_07", "ms/imagesTr/ms_07.nii.gz", 2),
    ("FLAIR ms_26", "ms/imagesTr/ms_26.nii.gz", 2),
    ("FLAIR other scanner", "glioma-other", 2),
    ("CT lungfcp", "ct/lungfcp_native.nii.gz", 2),
    ("CT lidcpilot", "ct/lidcpilot_native.nii.gz", 2),
    ("CT aorta", "ct/aorta_1.5mm.nii.gz", 2),
    ("CT body 3 mm", "ct/totalsegmentator_3mm.nii.gz", 2),
)
METHODS = ("linear", "cubic", "Lanczos-3", "Tikhonov", "network", "network auto")
BOOTSTRAPS = 2000


def truth_of(path: Path, axis: int) -> Volume:
    """A volume with a multiple of three slices, as float32."""
    if path.is_dir():
        path = sorted(path.glob("imagesTr/*_0000.nii.gz"))[0]
    volume = medgan.read(path)
    length = volume.shape[axis] // FACTOR * FACTOR
    part = (slice(None),) * (axis + 1) + (slice(length),)
    return replace(volume, array=volume.array[part].astype(np.float32))


def spline(thick: Volume, axis: int, order: int) -> NDArray[np.float32]:
    fine = thick.shape[axis] * FACTOR
    matrix, offset, shape = np.ones(3), np.zeros(3), list(thick.shape)
    matrix[axis], offset[axis], shape[axis] = 1 / FACTOR, (1 / FACTOR - 1) / 2, fine
    return np.asarray(ndimage.affine_transform(thick.array[0], matrix, offset, tuple(shape), order=order,
                                               mode="nearest"))


def lanczos(thick: Volume, axis: int) -> NDArray[np.float32]:
    """Lanczos-3 along the axis: weights at the fine centres, edge repeated, rows summing to one."""
    count = thick.shape[axis]
    at = (np.arange(count * FACTOR) + 0.5) / FACTOR - 0.5
    near = np.floor(at)[:, None] + np.arange(-2, 4)
    weight = np.sinc(at[:, None] - near) * np.sinc((at[:, None] - near) / 3)
    matrix = np.zeros((len(at), count), np.float32)
    np.add.at(matrix, (np.arange(len(at))[:, None], np.clip(near, 0, count - 1).astype(int)), weight)
    matrix /= matrix.sum(axis=1, keepdims=True)
    return np.moveaxis(np.tensordot(matrix, thick.array[0], (1, axis)), 0, axis)


def methods(thick: Volume, axis: int, profile: Profile, model: Path | None) -> dict[str, Callable[[], Any]]:
    factors = [FACTOR if a == axis else 1 for a in range(3)]

    def ours(**options: Any) -> Any:
        return medgan.upsample(thick, factor=factors, **options).array[0]

    return {
        "linear": lambda: spline(thick, axis, 1), "cubic": lambda: spline(thick, axis, 3),
        "Lanczos-3": lambda: lanczos(thick, axis), "Tikhonov": lambda: ours(profile=profile, method="linear"),
        "network": lambda: ours(profile=profile, model=model), "network auto": lambda: ours(model=model),
    }


def measure(truth: Volume, axis: int, profile: Profile, model: Path | None) -> dict[str, float]:
    """Foreground PSNR of every method, in dB."""
    thick = simulate(truth, axis=axis, spacing_mm=FACTOR * truth.spacing_mm[axis], profile=profile)
    array = truth.array[0]
    low, high = (float(v) for v in np.percentile(foreground(array), (0.1, 99.9)))
    mask = array > low + 0.05 * (high - low)
    found = {}
    for name, method in methods(thick, axis, profile, model).items():
        error = np.square(method()[mask] - array[mask], dtype=np.float64).mean()
        found[name] = float(10 * np.log10((high - low) ** 2 / error))
    return found


def gain_interval(gains: list[float]) -> str:
    """Mean of paired gains over volumes with a 95 % bootstrap interval."""
    draws = np.random.default_rng(0).choice(gains, (BOOTSTRAPS, len(gains))).mean(axis=1)
    low, high = np.percentile(draws, (2.5, 97.5))
    return f"{np.mean(gains):+.2f} [{low:+.2f}, {high:+.2f}], smallest {min(gains):+.2f}, n = {len(gains)}"


def figure(root: Path, target: Path, model: Path | None) -> None:
    """Coronal slice of sub-01: thick, cubic, medgan, truth."""
    from PIL import Image, ImageDraw

    truth = truth_of(root / SCANS[0][1], 2)
    thick = simulate(truth, spacing_mm=FACTOR * truth.spacing_mm[2])
    sharp = medgan.upsample(thick, factor=(1, 1, FACTOR), model=model).array[0]
    images = {"thick, 3 mm": thick.array[0].repeat(FACTOR, axis=2), "cubic": spline(thick, 2, 3), "medgan": sharp,
              "truth, 1 mm": truth.array[0]}
    high = float(np.percentile(truth.array[truth.array > 0], 99.5))
    shown = np.argwhere(truth.array[0, :, 150] > 0.1 * high)
    (left, _), (right, top) = shown.min(axis=0), shown.max(axis=0)
    middle = (left + right) // 2
    wide, deep = slice(left, middle + 12), slice(max(0, top - 110), top + 2)
    panels = []
    for name, image in images.items():
        panel = np.clip(image[wide, 150, deep].T[::-1] / high, 0, 1)
        picture = Image.fromarray((255 * panel).astype(np.uint8)).resize((3 * panel.shape[1], 3 * panel.shape[0]),
                                                                       Image.Resampling.NEAREST)
        framed = Image.new("L", (picture.width + 4, picture.height + 18))
        framed.paste(picture, (0, 18))
        ImageDraw.Draw(framed).text((4, 3), name, fill=255)
        panels.append(np.asarray(framed))
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(panels, axis=1)).save(target, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--only", default="", help="measure only scans whose name starts so")
    arguments = parser.parse_args()
    profiles: tuple[Profile, ...] = ("gaussian", "rect")
    for profile in profiles:
        print(f"\n{profile} profile of 3 voxels, thinned x3, foreground PSNR in dB\n")
        print("| scan | " + " | ".join(METHODS) + " |\n|---|" + "---|" * len(METHODS))
        rows: list[dict[str, float]] = []
        for name, path, axis in SCANS:
            if not name.startswith(arguments.only):
                continue
            rows.append(measure(truth_of(arguments.data / path, axis), axis, profile, arguments.model))
            print(f"| {name} | " + " | ".join(f"{rows[-1][method]:.2f}" for method in METHODS) + " |", flush=True)
        print("| mean | " + " | ".join(f"{np.mean([row[method] for row in rows]):.2f}" for method in METHODS) + " |\n")
        for method, base in (("network", "cubic"), ("network", "Tikhonov"), ("Tikhonov", "cubic"),
                             ("network auto", "cubic")):
            print(f"{method} over {base}: {gain_interval([row[method] - row[base] for row in rows])}")
    if arguments.figure:
        figure(arguments.data, arguments.figure, arguments.model)


if __name__ == "__main__":
    main()
