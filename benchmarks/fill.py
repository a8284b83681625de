"""How near `medgan fill` comes to the tissue that was there, against linear interpolation and biharmonic in-painting.

    python benchmarks/fill.py --data ../shared/data [--run RUN] [--figure docs/img/fill.png]

Voids of the shapes of real lesions (glioma, ms) are cut into lesion-free tissue, and single slices and runs of them
are taken out. PSNR over the range from the 0.1 to the 99.9 percentile of the foreground, and SSIM, inside the void;
means over voids, and the mean difference to the peer with its 95 % bootstrap interval over voids.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.metrics import structural_similarity
from skimage.restoration import inpaint_biharmonic

import medgan
from medgan.imaging.geometry import reorient
from medgan.imaging.intensity import foreground
from medgan.imaging.volume import Volume
from medgan.lesions.filling import Smooth
from medgan.verbs import fill as verb

Array = NDArray[np.float32]

#: Name; image; its mask of lesions, or None; modality.
HOSTS = (
    ("T1", "brain-t1/sub-01/anat/sub-01_T1w.nii.gz", None, "mr"),
    ("FLAIR ms", "ms/imagesTr/ms_26.nii.gz", "ms/labelsTr/ms_26.nii.gz", "mr"),
    ("FLAIR glioma", "glioma-other/imagesTr/glioma_hg15_0000.nii.gz", "glioma-other/labelsTr/glioma_hg15.nii.gz", "mr"),
    ("CT", "ct/aorta_1.5mm.nii.gz", None, "ct"),
)
SHAPES = ("glioma/labelsTr/glioma_0003.nii.gz", "glioma/labelsTr/glioma_0005.nii.gz", "ms/labelsTr/ms_07.nii.gz",
          "ms/labelsTr/ms_26.nii.gz")
#: Voids a host, of so many mm equivalent diameter.
VOIDS, SIZES_MM = 8, (6.0, 24.0)
#: Kept clear of lesions and of each other, in voxels.
APART = 8
#: The peer sees so many voxels around a void.
PEER_MARGIN = 6
#: Missing slices, and where in the body.
GAPS, DEPTHS = (1, 3, 5, 8), (0.4, 0.5, 0.6)
#: So many slices on each side of the missing ones are shown.
AROUND = 24
DRAWS = 5000


def shapes(root: Path) -> list[NDArray[np.bool_]]:
    """Real lesions of the wanted sizes, at 1 mm."""
    found = []
    for name in SHAPES:
        mask = medgan.read(root / name).array[0] > 0
        parts, _ = ndimage.label(mask)
        for index, box in enumerate(ndimage.find_objects(parts), start=1):
            shape = parts[box] == index
            if SIZES_MM[0] <= 2 * np.cbrt(shape.sum() * 3 / 4 / np.pi) <= SIZES_MM[1]:
                found.append(shape)
    return found


def body(volume: Volume) -> NDArray[np.bool_]:
    """(X, Y, Z) tissue: not air, not the constant background."""
    array = volume.array[0]
    if volume.modality == "ct":
        inside = array > -200
    else:
        values, counts = np.unique(array, return_counts=True)
        inside = array != values[counts.argmax()]
    return np.asarray(ndimage.binary_erosion(ndimage.binary_opening(inside), iterations=2))


def cut(volume: Volume, lesions: NDArray[np.bool_] | None, stock: list[NDArray[np.bool_]], seed: int
        ) -> NDArray[np.int32]:
    """(X, Y, Z) voids, numbered from 1, in lesion-free tissue."""
    rng = np.random.default_rng(seed)
    free = body(volume)
    taken = np.zeros(free.shape, bool) if lesions is None else ndimage.binary_dilation(lesions, iterations=APART)
    made = np.zeros(free.shape, np.int32)
    places = np.argwhere(free & ~taken)
    number = 0
    for _ in range(4000):
        if number == VOIDS:
            break
        shape = stock[rng.integers(len(stock))]
        shape = ndimage.zoom(shape.astype(np.float32), 1 / np.array(volume.spacing_mm), order=1) >= 0.5
        corner = places[rng.integers(len(places))] - np.array(shape.shape) // 2
        if (corner < APART).any() or (corner + shape.shape > np.array(free.shape) - APART).any() or not shape.any():
            continue
        box = tuple(slice(c, c + n) for c, n in zip(corner, shape.shape, strict=True))
        wide = tuple(slice(s.start - APART, s.stop + APART) for s in box)
        if free[box][shape].mean() < 0.98 or taken[box][shape].any() or made[wide].any():
            continue
        number += 1
        made[box][shape] = number
    return made


def biharmonic(volume: Volume, voids: NDArray[np.int32]) -> Array:
    """The peer: each void in its own box, in 3D."""
    result = volume.array[0].astype(np.float64)
    low, high = result.min(), result.max()
    for box in ndimage.find_objects(voids):
        wide = tuple(slice(max(0, s.start - PEER_MARGIN), s.stop + PEER_MARGIN) for s in box)
        part = (result[wide] - low) / (high - low)
        result[wide] = inpaint_biharmonic(part, voids[wide] > 0) * (high - low) + low
    return result.astype(np.float32)


class Scale:
    """The range that errors are measured over."""

    def __init__(self, truth: Array) -> None:
        self.low, self.high = (float(v) for v in np.percentile(foreground(truth), (0.1, 99.9)))

    def psnr(self, made: Array, truth: Array, where: NDArray[np.bool_]) -> float:
        """In dB."""
        error = np.square((made[where].astype(np.float64) - truth[where]) / (self.high - self.low)).mean()
        return float(-10 * np.log10(error))


def interval(values: NDArray[np.float64]) -> str:
    """Mean [95 % bootstrap interval of the mean]."""
    rng = np.random.default_rng(0)
    means = rng.choice(values, (DRAWS, len(values))).mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return f"{values.mean():+.2f} [{low:+.2f}, {high:+.2f}]"


def fine(image: Array, where: NDArray[np.bool_]) -> float:
    """Root mean square of what is finer than 1.5 voxels."""
    return float(np.sqrt(np.square(image - ndimage.gaussian_filter(image, 1.5))[where].mean()))


def methods(run: Path | None) -> dict[str, dict[str, object]]:
    """Name -> options of `fill`; biharmonic stands apart."""
    found: dict[str, dict[str, object]] = {"smooth": {"method": "smooth"}, "tissue": {"method": "tissue"}}
    return found | ({"gan": {"model": run}} if run else {})


def hosts(root: Path) -> Iterator[tuple[str, str, Volume, NDArray[np.bool_] | None]]:
    """Kind, name, volume and lesions."""
    for kind, image, mask, modality in HOSTS:
        volume = replace(reorient(medgan.read(root / image)), modality=modality)
        volume = volume.with_array(volume.array.astype(np.float32))
        yield kind, image, volume, None if mask is None else reorient(medgan.read(root / mask)).array[0] > 0


def measure_voids(options: argparse.Namespace) -> None:
    """Prints the table of lesion-shaped voids."""
    stock = shapes(options.data)
    rows: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    for seed, (kind, _, volume, lesions) in enumerate(hosts(options.data)):
        voids, truth = cut(volume, lesions, stock, seed), volume.array[0]
        scale = Scale(truth)
        filled = {"biharmonic (peer)": biharmonic(volume, voids)}
        filled["smooth, no texture"] = plain(volume, voids)
        for name, given in methods(options.run).items():
            if name == "gan" and volume.modality != "mr":
                continue
            filled[name] = medgan.fill(volume, Volume((voids > 0).astype(np.uint8)[None], volume.affine), seed=seed,
                                       report=True, **given)[0].array[0]
        for name, made in filled.items():
            for index, box in enumerate(ndimage.find_objects(voids), start=1):
                wide = tuple(slice(s.start - 4, s.stop + 4) for s in box)
                hole = voids[wide] == index
                _, similar = structural_similarity(truth[wide], made[wide], data_range=scale.high - scale.low,
                                                   full=True, win_size=7)
                rows.setdefault(kind, {}).setdefault(name, []).append((
                    scale.psnr(made[wide], truth[wide], hole), float(similar[hole].mean()),
                    fine(made[wide], hole) / fine(truth[wide], hole)))
    print("| tissue | n | method | PSNR | SSIM | fine detail, of the truth's | PSNR against the peer |")
    print("|---|---|---|---|---|---|---|")
    for kind, found in rows.items():
        peer = np.array(found["biharmonic (peer)"])
        for name, scores in found.items():
            table = np.array(scores)
            against = "" if name.endswith("(peer)") else interval(table[:, 0] - peer[:, 0])
            print(f"| {kind} | {len(table)} | {name} | {table[:, 0].mean():.2f} | {table[:, 1].mean():.3f} | "
                  f"{np.median(table[:, 2]):.2f} | {against} |", flush=True)


def plain(volume: Volume, voids: NDArray[np.int32]) -> Array:
    """`smooth` without borrowed texture: what the texture costs in PSNR."""
    kept, verb._filler = verb._filler, lambda *_: Smooth(0.0)
    try:
        return medgan.fill(volume, Volume((voids > 0).astype(np.uint8)[None], volume.affine), method="smooth",
                           report=True)[0].array[0]
    finally:
        verb._filler = kept


def measure_gaps(options: argparse.Namespace) -> None:
    """Prints the table of missing slices."""
    rows: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
    for kind, _, whole, _ in hosts(options.data):
        scale = Scale(whole.array[0])
        for gap in GAPS:
            for depth in DEPTHS:
                start = max(0, int(whole.shape[2] * depth) - AROUND)
                z = int(whole.shape[2] * depth) - start
                volume = replace(whole, array=whole.array[..., start : start + z + gap + AROUND])
                truth, inside = volume.array[0], body(volume)
                mask = np.zeros(volume.shape, np.uint8)
                mask[:, :, z : z + gap] = 1
                made = medgan.fill(volume, Volume(mask[None], volume.affine), method="smooth", report=True)
                assert made[1].missing_slices == gap
                here, where = slice(z, z + gap), inside[:, :, z : z + gap]
                ways = (linear(truth, z, gap), cubic(truth, z, gap), made[0].array[0][:, :, here])
                scores = [scale.psnr(way, truth[:, :, here], where) for way in ways]
                rows.setdefault((kind, gap), []).append((scores[0], scores[1], scores[2]))
    print("| tissue | missing slices | n | linear | cubic | medgan | medgan against linear |")
    print("|---|---|---|---|---|---|---|")
    for (kind, gap), scores in rows.items():
        table = np.array(scores)
        means = " | ".join(f"{mean:.2f}" for mean in table.mean(axis=0))
        print(f"| {kind} | {gap} | {len(table)} | {means} | {interval(table[:, 2] - table[:, 0])} |", flush=True)


def linear(truth: Array, z: int, gap: int) -> Array:
    """Between the slices on both sides."""
    t = (np.arange(gap) + 1) / (gap + 1)
    return np.asarray((1 - t) * truth[:, :, z - 1, None] + t * truth[:, :, z + gap, None])


def cubic(truth: Array, z: int, gap: int) -> Array:
    """A cubic through two slices on each side (Catmull-Rom, unevenly spaced)."""
    h, t = gap + 1, (np.arange(gap) + 1) / (gap + 1)
    a, b = truth[:, :, z - 1, None], truth[:, :, z + gap, None]
    rise_a, rise_b = ((b - truth[:, :, z - 2, None]) * h / (h + 1), (truth[:, :, z + gap + 1, None] - a) * h / (h + 1))
    return np.asarray((2 * t**3 - 3 * t**2 + 1) * a + (t**3 - 2 * t**2 + t) * rise_a + (3 * t**2 - 2 * t**3) * b
                      + (t**3 - t**2) * rise_b)


def figure(options: argparse.Namespace) -> None:
    """Draws before, mask and after: lesions of a FLAIR taken out, a void in a T1, and missing slices from the side."""
    found = {kind: (volume, lesions) for kind, _, volume, lesions in hosts(options.data) if kind in ("T1", "FLAIR ms")}
    flair, lesions = found["FLAIR ms"]
    assert lesions is not None
    t1 = found["T1"][0]
    ball, slices = (np.zeros(t1.shape, bool) for _ in range(2))
    middle = np.array(t1.shape) // 2 + (20, 25, 15)
    at = np.stack(np.meshgrid(*map(np.arange, t1.shape), indexing="ij")) - middle[:, None, None, None]
    ball[((at * np.array(t1.spacing_mm)[:, None, None, None]) ** 2).sum(axis=0) < 9**2] = True
    slices[:, :, middle[2] : middle[2] + 3] = True
    most = int(lesions.sum(axis=(0, 1)).argmax())
    rows = []
    for volume, mask, margin, axis, place in ((flair, lesions, 2.0, 2, most), (t1, ball, 0.0, 2, int(middle[2])),
                                              (t1, slices, 0.0, 0, int(middle[0]))):
        made = medgan.fill(volume, Volume(mask[None].astype(np.uint8), volume.affine), method="smooth", margin=margin,
                           report=True)[0].array[0]
        scale = Scale(volume.array[0])
        view = [np.take(a, place, axis) for a in (volume.array[0], mask.astype(np.float32), made)]
        grey = [np.clip((a - scale.low) / (scale.high - scale.low), 0, 1) for a in (view[0], view[2])]
        marked = np.repeat(np.where(view[1] > 0, 0.25, grey[0])[..., None], 3, axis=2)
        marked[view[1] > 0, 0] = 0.85
        inside = np.argwhere(volume.array[0].take(place, axis) != np.median(volume.array[0].take(place, axis)[:3]))
        box = tuple(slice(a, b + 1) for a, b in zip(inside.min(axis=0), inside.max(axis=0), strict=True))
        panels = [np.repeat(grey[0][..., None], 3, axis=2), marked, np.repeat(grey[1][..., None], 3, axis=2)]
        pictures = [Image.fromarray(np.uint8(255 * np.flip(p[box].swapaxes(0, 1), 0))) for p in panels]
        rows.append([p.resize((240, round(240 * p.height / p.width)), Image.Resampling.BICUBIC) for p in pictures])
    sheet = Image.new("RGB", (3 * 246, sum(row[0].height + 6 for row in rows)), (255, 255, 255))
    top = 0
    for row in rows:
        for number, panel in enumerate(row):
            sheet.paste(panel, (number * 246, top))
        top += row[0].height + 6
    sheet.quantize(64, dither=Image.Dither.NONE).save(options.figure, optimize=True)


def main() -> None:
    """Prints both tables, or draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with brain-t1, ms, glioma, ct")
    parser.add_argument("--run", type=Path, help="a lesion run on MR of one channel, for the method gan")
    parser.add_argument("--only", choices=("voids", "gaps"), help="one table only")
    parser.add_argument("--figure", type=Path, help="draw the figure here instead")
    options = parser.parse_args()
    if options.figure is not None:
        figure(options)
        return
    if options.only != "gaps":
        measure_voids(options)
    if options.only != "voids":
        measure_gaps(options)


if __name__ == "__main__":
    main()
