"""Measures `medgan.imaging.estimation` on scans that had no part in making it, and refits its one constant.

    python benchmarks/estimation.py --data ../shared/data [--axes 2] [--development] [--fit]

Each volume is acquired again with thick slices under known conditions; the estimator is told nothing but the volume and
its spacing. What an estimate costs is the foreground PSNR of `restore` (in dB, as in benchmarks/upsample.py) with the
estimated profile against the true one, a cubic spline, and a Gaussian as wide as the spacing. `restore` is given the
noise that was added in every case, so that differences are the profile's alone.
`--fit` prints the spread of log steepness between axes of the development volumes, which is `estimation.ANATOMY`.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

import medgan
from medgan.datasets.phantoms import phantom
from medgan.imaging import estimation
from medgan.imaging.acquisition import simulate
from medgan.imaging.estimation import estimate_noise, estimate_profile
from medgan.imaging.intensity import foreground
from medgan.imaging.restoration import restore
from medgan.imaging.slices import Profile
from medgan.imaging.volume import Volume

DEVELOPMENT = (*(f"brain-t1/sub-0{i}/anat/sub-0{i}_T1w.nii.gz" for i in range(3, 9)), "ms/imagesTr/ms_07.nii.gz",
               "ct/lungfcp_native.nii.gz", "ct/lidcpilot_native.nii.gz", "lung-nodule/imagesTr/lidc_0001.nii.gz",
               "phantom mr", "phantom ct")
HELD_OUT = (*(f"brain-t1/sub-0{i}/anat/sub-0{i}_T1w.nii.gz" for i in (1, 2)), "ms/imagesTr/ms_26.nii.gz",
            *(f"glioma/imagesTr/glioma_000{i}_000{c}.nii.gz" for i in (3, 4, 5, 6) for c in (0, 1)),
            "glioma-other/imagesTr/glioma_hg15_0000.nii.gz", "ct/aorta_1.5mm.nii.gz", "ct/totalsegmentator_3mm.nii.gz")
#: Profile, thickness in slice spacings, factor, noise as a part of the foreground's range.
CONDITIONS: tuple[tuple[Profile, float, float, float], ...] = (
    ("gaussian", 1.0, 3, 0.0), ("rect", 1.0, 3, 0.0), ("gaussian", 0.67, 3, 0.0), ("sinc", 1.0, 3, 0.0),
    ("gaussian", 1.0, 4, 0.02), ("rect", 1.0, 4, 0.01), ("gaussian", 0.85, 2, 0.03), ("rect", 1.0, 6, 0.0),
)
#: Gaussian of the same strength, per unit of thickness; that of a sinc is what the estimator's own measure takes it for
#: and so is not judged.
STRENGTH = {"gaussian": 1.0, "rect": 0.68, "sinc": float("nan")}
#: PSNR is taken on every n-th plane along both other axes: what is restored along one axis does not mix lines.
EVERY = 4


@dataclass(frozen=True)
class Row:
    """One volume, axis and condition."""

    name: str
    axis: int
    condition: tuple[Profile, float, float, float]
    error: float
    deviation: float
    confidence: float
    told: float
    estimated: float
    gaussian: float
    noise_ratio: float


def read(root: Path, name: str) -> Volume:
    """A volume cut to its foreground, as float32."""
    if name.startswith("phantom"):
        modality, size = ("mr", 1.2) if name.endswith("mr") else ("ct", 2.2)
        volume = phantom(modality, 1, shape=(160, 160, 120), spacing_mm=(size,) * 3)[0]  # type: ignore[arg-type]
    else:
        volume = medgan.read(root / name)
    array = volume.array[0]
    values, counts = np.unique(array[::3, ::3, ::3], return_counts=True)
    if counts.max() > 0.1 * counts.sum():
        inside = array != values[counts.argmax()]
        box = ndimage.find_objects(inside.astype(np.uint8))[0]
        array = array[tuple(slice(max(0, part.start - 4), part.stop + 4) for part in box)]
    return replace(volume, array=array[None].astype(np.float32))


def spline(thick: Volume, axis: int, factor: float, fine: int) -> NDArray[np.float32]:
    matrix, offset, shape = np.ones(3), np.zeros(3), list(thick.shape)
    matrix[axis], offset[axis], shape[axis] = 1 / factor, (1 / factor - 1) / 2, fine
    return np.asarray(ndimage.affine_transform(thick.array[0], matrix, offset, tuple(shape), order=3, mode="nearest"))


def measure(volume: Volume, name: str, axis: int, condition: tuple[Profile, float, float, float]) -> Row | None:
    """What the estimator finds, and what that does to the restored volume; None where there are too few slices."""
    profile, thickness, factor, noise = condition
    count = int(volume.shape[axis] // factor)
    if count < estimation.LEAST_SAMPLES:
        return None
    fine = round(count * factor)
    truth = replace(volume, array=np.take(volume.array, range(fine), axis + 1))
    low, high = (float(v) for v in np.percentile(foreground(truth.array[0]), (0.1, 99.9)))
    spacing = factor * truth.spacing_mm[axis]
    clean = simulate(truth, axis=axis, spacing_mm=spacing, thickness_mm=thickness * spacing, profile=profile)
    drawn = np.random.default_rng(0).normal(0, noise * (high - low), clean.array.shape).astype(np.float32)
    thick = replace(clean, array=clean.array + drawn)
    sigma = estimate_noise(thick.array[0], axis)
    found = estimate_profile(thick.array[0], thick.spacing_mm, axis, sigma)
    # What the volume holds of noise already adds to what is added here.
    own = estimate_noise(clean.array[0], axis)
    ratio = sigma / np.hypot(noise * (high - low), own) if noise else float("nan")

    lines = tuple(slice(None) if a in (0, axis + 1) else slice(None, None, EVERY) for a in range(4))
    part, target = replace(thick, array=thick.array[lines]), truth.array[lines][0]
    mask = target > low + 0.05 * (high - low)
    contrast = float(thick.array[thick.array > low + 0.05 * (high - low)].std())
    factors = [factor if a == axis else 1.0 for a in range(3)]

    def psnr(result: NDArray[np.float32]) -> float:
        error = np.square(result[mask] - target[mask], dtype=np.float64).mean()
        return float(10 * np.log10((high - low) ** 2 / error))

    def restored(kind: Profile, width: float, level: float) -> float:
        return psnr(restore(part, factor=factors, profile=kind, thickness_mm=width * spacing,
                            noise=level / contrast).array[0])

    cubic = psnr(spline(part, axis, factor, fine))
    told = restored(profile, thickness, noise * (high - low)) - cubic
    gaussian = restored("gaussian", 1.0, noise * (high - low)) - cubic
    if found is None:
        return Row(name, axis, condition, float("nan"), float("nan"), float("nan"), told, float("nan"), gaussian, ratio)
    estimated = restored(found.profile, found.thickness, noise * (high - low)) - cubic
    error = float(np.log(found.thickness / (STRENGTH[profile] * thickness)))
    return Row(name, axis, condition, error, found.deviation, found.confidence, told, estimated, gaussian, ratio)


def axes_of(name: str, axes: tuple[int, ...]) -> tuple[int, ...]:
    """Those along which the volume is sharp."""
    return tuple(a for a in axes if a != 2) or (0,) if "lidc_0001" in name else axes


def rows(root: Path, names: tuple[str, ...], axes: tuple[int, ...]) -> Iterator[Row]:
    for name in names:
        volume = read(root, name)
        for axis in axes_of(name, axes):
            for condition in CONDITIONS:
                row = measure(volume, name, axis, condition)
                if row is not None:
                    yield row


def report(found: list[Row]) -> None:
    """Means over volumes for each condition, then the worst cases and whether the errors are as large as told."""
    print("\n| condition | n | none | bias | rms error | told - cubic | estimated - cubic, mean / worst | "
          "Gaussian 1.0 - cubic, mean / worst | noise / true |\n|---|---|---|---|---|---|---|---|---|")
    groups: dict[object, list[Row]] = defaultdict(list)
    for row in found:
        groups[row.condition].append(row)
    for (profile, thickness, factor, noise), group in groups.items():  # type: ignore[misc]
        sure = [row for row in group if np.isfinite(row.estimated)]
        errors = np.array([row.error for row in sure])
        made, plain = [row.estimated for row in sure], [row.gaussian for row in group]
        print(f"| {profile} {thickness:g}, x{factor:g}, noise {noise:g} | {len(group)} | {len(group) - len(sure)} | "
              f"{errors.mean():+.3f} | {np.sqrt(np.square(errors).mean()):.3f} | "
              f"{np.mean([row.told for row in group]):+.2f} | {np.mean(made):+.2f} / {min(made):+.2f} | "
              f"{np.mean(plain):+.2f} / {min(plain):+.2f} | {np.mean([row.noise_ratio for row in group]):.3f} |")
    sure = [row for row in found if np.isfinite(row.estimated)]
    loss = np.array([row.told - row.estimated for row in sure])
    below = [row for row in sure if row.estimated < -0.05]
    worse = [row for row in below if row.estimated < row.told - 0.05]
    noise = np.array([row.noise_ratio for row in found if np.isfinite(row.noise_ratio)])
    judged = [row for row in sure if np.isfinite(row.error)]
    scaled = np.array([row.error / row.deviation for row in judged])
    near = np.array([abs(row.error) < estimation.TOLERANCE for row in judged])
    print(f"\nloss to told: mean {loss.mean():.3f}, worst {loss.max():.2f} dB, n = {len(loss)}")
    print(f"below cubic - 0.05 dB: {len(below)}, of which told is not as low: {len(worse)}")
    for row in worse:
        print(f"  {row.name} axis {row.axis} {row.condition}: error {row.error:+.2f} +- {row.deviation:.2f}, told "
              f"{row.told:+.2f}, estimated {row.estimated:+.2f}, Gaussian {row.gaussian:+.2f}")
    print(f"error / deviation: rms {np.sqrt(np.square(scaled).mean()):.2f}, beyond 2: {np.mean(abs(scaled) > 2):.3f}")
    print(f"within tolerance: {near.mean():.3f}, confidence said {np.mean([row.confidence for row in judged]):.3f}, "
          f"n = {len(judged)}")
    print(f"noise over true: {noise.min():.3f} to {noise.max():.3f}, within 15 %: "
          f"{np.mean(abs(noise - 1) < 0.15):.3f}, n = {len(noise)}")
    kinds: dict[str, list[Row]] = defaultdict(list)
    for row in judged:
        kinds[row.name].append(row)
    for name, group in kinds.items():
        print(f"  {name}: bias {np.mean([r.error for r in group]):+.3f}, "
              f"rms {np.sqrt(np.mean([r.error**2 for r in group])):.3f}, "
              f"loss {np.mean([r.told - r.estimated for r in group]):.3f}, n = {len(group)}")


def fit(root: Path, axes: tuple[int, ...]) -> None:
    """Prints the contrast at the true thickness, one root mean square for each kind of scan."""
    kinds: dict[str, list[float]] = defaultdict(list)
    for name in DEVELOPMENT:
        volume = read(root, name)
        for axis in axes_of(name, axes):
            for width in (0.67, 1.0):
                for factor in (2, 3, 4):
                    spacing = factor * volume.spacing_mm[axis]
                    thick = simulate(volume, axis=axis, spacing_mm=spacing, thickness_mm=width * spacing)
                    sigma = estimate_noise(thick.array[0], axis)
                    found = estimation.contrasts(thick.array[0], thick.spacing_mm, axis, sigma)
                    if found is not None:
                        at = np.interp(np.log(width), np.log(estimation.CANDIDATES), found[0])
                        # People of one data set are one kind of scan; the chest scans are of different scanners.
                        kinds[name if name.startswith("ct/") else name.split("/")[0]].append(float(at))
    squares = {kind: float(np.mean(np.square(values))) for kind, values in kinds.items()}
    for kind, square in squares.items():
        print(f"{kind}: mean {np.mean(kinds[kind]):+.3f}, rms {np.sqrt(square):.3f}, n = {len(kinds[kind])}")
    print(f"ANATOMY: {np.sqrt(np.mean(list(squares.values()))):.3f} (each kind of scan counting alike)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--axes", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--development", action="store_true", help="measure on the volumes the estimator was made with")
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--only", default="", help="measure only scans whose name holds this")
    arguments = parser.parse_args()
    axes = tuple(arguments.axes)
    if arguments.fit:
        fit(arguments.data, axes)
        return
    names = tuple(n for n in (DEVELOPMENT if arguments.development else HELD_OUT) if arguments.only in n)
    report(list(rows(arguments.data, names, axes)))


if __name__ == "__main__":
    main()
