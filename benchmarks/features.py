"""How well features tell faulty images from real ones: the distance of each fault over the real-against-real floor.

    python benchmarks/features.py [--data ../shared/data] [--features radiomics random MODEL.onnx] [--repeats 10]

A reference and a set to be judged are drawn from real images, of different patients where patients are known. The
set is then given a fault, or left as it is: the median distance of the sets left as they are is the floor. Told is
the median over all draws of each distance divided by its floor, with the share of faulty sets that lie above every
set that was left as it is. Faults: blur (Gaussian, sigma 1 pixel), checkerboard (+- 0.06 pixel by pixel, within
[-1, 1], like what a transposed convolution leaves), wrong class (the other class, or the other plane of the brain),
collapse (a quarter of the images, each four times).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.transform import resize

import medgan
from medgan.metrics.features import encoder, standardised
from medgan.metrics.fidelity import frechet, mmd2

Images = NDArray[np.float32]
#: A slice's size, the planes of a brain that are kept, and the part of its middle that they come from.
SIZE, PLANES, MIDDLE = 64, 24, (0.35, 0.65)


def blur(images: Images) -> Images:
    return gaussian_filter(images, (0, 0, 1, 1)).astype(np.float32)


def checkerboard(images: Images) -> Images:
    board = np.indices(images.shape[2:]).sum(axis=0) % 2 * 0.12 - 0.06
    return np.clip(images + board, -1, 1).astype(np.float32)


def collapse(images: Images) -> Images:
    return np.tile(images[: -(-len(images) // 4)], (4, 1, 1, 1))[: len(images)]


def pneumonia(data: Path) -> tuple[Images, Images, NDArray[np.intp]]:
    """Radiographs with pneumonia, without it, and a number for each of the first: patients are not known."""
    with np.load(data / "pneumonia" / "pneumonia.npz") as file:
        images, labels = file["train_images"], file["train_labels"].ravel()
    values = (images.astype(np.float32) / 127.5 - 1)[:, None]
    return values[labels == 1], values[labels == 0], np.arange(int((labels == 1).sum()))


def brains(data: Path) -> tuple[Images, Images, NDArray[np.intp]]:
    """Axial slices of T1-weighted brains at 64 x 64, coronal ones, and whose the axial ones are."""
    planes: tuple[list[Images], list[Images]] = ([], [])
    for path in sorted((data / "brain-t1").glob("sub-*/anat/*_T1w.nii.gz")):
        scan = medgan.read(path).array[0].astype(np.float32)
        scan = np.clip(scan / np.percentile(scan[scan > scan.mean()], 99) * 2 - 1, -1, 1)
        for kept, axis in zip(planes, (2, 1), strict=True):
            for at in np.linspace(*MIDDLE, PLANES) * scan.shape[axis]:
                plane = np.take(scan, int(at), axis=axis)
                kept.append(resize(plane, (SIZE, SIZE), anti_aliasing=True).astype(np.float32)[None])
    axial, coronal = (np.stack(kept) for kept in planes)
    return axial, coronal, np.repeat(np.arange(len(axial) // PLANES), PLANES)


def halves(units: NDArray[np.intp], n: int, rng: np.random.Generator) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Two sets of n images that share no unit."""
    mixed = rng.permutation(np.unique(units))
    parts = (np.flatnonzero(np.isin(units, part)) for part in np.array_split(mixed, 2))
    one, other = (rng.choice(part, n, replace=False) for part in parts)
    return one, other


def judge(name: str, sets: tuple[Images, Images, NDArray[np.intp]], n: int, repeats: int) -> None:
    """Prints one row for each distance."""
    real, wrong, units = sets
    encode = encoder(name)
    faults: dict[str, Callable[[Images], Images]] = {"blur": blur, "checkerboard": checkerboard, "collapse": collapse}
    started = time.perf_counter()
    clean, off = encode(real), encode(wrong)
    each = (time.perf_counter() - started) / (len(real) + len(wrong)) * 1e3
    changed = {fault: encode(make(real)) for fault, make in faults.items() if fault != "collapse"}
    found: dict[tuple[str, str], list[float]] = {}
    rng = np.random.default_rng(0)
    for _ in range(repeats):
        reference, judged = halves(units, n, rng)
        other = {"none": clean[judged], "collapse": clean[np.tile(judged[: -(-n // 4)], 4)[:n]],
                 "wrong class": off[rng.choice(len(off), n, replace=len(off) < n)],
                 **{fault: features[judged] for fault, features in changed.items()}}
        for fault, features in other.items():
            one, two = standardised(clean[reference], features)
            for distance, measured in (("Fréchet", frechet(one, two)), ("MMD²", mmd2(one, two))):
                found.setdefault((distance, fault), []).append(measured)
    for distance in ("Fréchet", "MMD²"):
        floor = np.array(found[distance, "none"])
        cells = []
        for fault in ("blur", "checkerboard", "wrong class", "collapse"):
            values = np.array(found[distance, fault])
            cells.append(f"{np.median(values) / np.median(np.abs(floor)):8.1f} ({np.mean(values > floor.max()):4.0%})")
        print(f"{encode.name:24} {distance:8} {np.median(np.abs(floor)):9.3g} {'  '.join(cells)}  {each:6.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--features", nargs="+", default=["radiomics", "random"])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--count", type=int, default=250, help="images on each side, at most")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for what, load, most in (("radiographs 28 x 28", pneumonia, 250), ("brain slices 64 x 64", brains, 96)):
        sets = load(options.data)
        n = min(options.count, most)
        print(f"\n{what}, {n} against {n}, {options.repeats} draws; distance over the floor (share above all floors)")
        print(f"{'features':24} {'distance':8} {'floor':>9} {'blur':>15}  {'checkerboard':>15}  {'wrong class':>15}"
              f"  {'collapse':>15}  {'an image':>9}")
        for name in options.features:
            judge(name, sets, n, options.repeats)


if __name__ == "__main__":
    main()
