"""Measures `medgan.upsample` on volumes that its weights never learned from, beside its rivals, in one run.

    python benchmarks/upsample.py --data ../shared/data --out results.json [--adapt] [--figure docs/img/upsample.png]
    python benchmarks/upsample.py --data ../shared/data --quick --only "T1 sub-01"          # a look, in a minute

Volumes are cut to the box of their foreground and made thick in five ways (`INPUTS`). PSNR is taken in the foreground
over a fixed range (the 0.1 to the 99.9 percentile of the foreground). "Told" methods know the profile's name and
width, and nothing else of the truth; "auto" ones know nothing; "Tikhonov, best" is a deconvolution that is told the
profile and whose one constant is the best for that very volume. Intervals are 95 % bootstrap over people, all volumes
of a person drawn together, of gains paired by volume. Phantoms are shown and flagged, and enter no mean.
Peers with networks need environments of their own: see `upsample_peers.py`.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import upsample_peers as peers
import upsample_tables as tables
from numpy.typing import NDArray
from scipy import ndimage

import medgan
from medgan.datasets.phantoms import organs
from medgan.imaging.acquisition import simulate
from medgan.imaging.intensity import foreground
from medgan.imaging.slices import Acquisition, Profile
from medgan.imaging.volume import Volume

Array = NDArray[np.float32]
#: Voxels kept around the foreground, and the largest box of a quick look.
MARGIN, QUICK = 8, (72, 72, 72)
#: SSIM is taken in every so manyth plane that holds the slice axis.
SSIM_STEP = 8
#: Standard deviation of the Laplacian of HFEN, in voxels (Ravishankar & Bresler 2011).
HFEN_SIGMA = 1.5
#: Values of a T2-weighted scan for the organ map of the MR phantom, whose own contrast is FLAIR.
T2_VALUES = {"air": 0, "scalp": 500, "skull": 90, "csf": 1500, "grey": 620, "white": 430, "deep_grey": 480,
             "cerebellum": 560, "brainstem": 460, "muscle": 250, "eye": 1400, "sinus": 60}
#: Texture and noise of that scan, as a part of the value and as its standard deviation.
T2_TEXTURE, T2_NOISE = 0.04, 12.0


@dataclass(frozen=True)
class Scan:
    """A held-out volume: its name, whose it is, the file, and its slice axis."""

    name: str
    person: str
    path: str
    axis: int = 2
    phantom: bool = False


@dataclass(frozen=True)
class Input:
    """One way of making volumes thick.

    Args:
        title: What it is, for the table.
        factor: Fine voxels a slice.
        width: Full width at half maximum of the profile, in fine voxels.
        profile: Its shape.
        noise: Standard deviation of the noise added, as a part of the foreground's range.
        everywhere: Along all three axes, not the slice axis alone.
    """

    title: str
    factor: int
    width: float
    profile: Profile = "gaussian"
    noise: float = 0.0
    everywhere: bool = False

    def factors(self, axis: int) -> tuple[int, ...]:
        """The factor of each axis."""
        return tuple(self.factor if self.everywhere or a == axis else 1 for a in range(3))

    def told(self, truth: Volume, axis: int) -> dict[str, Any]:
        """The options of `medgan.upsample` for somebody who knows the profile."""
        if self.width == self.factor:
            return {"profile": self.profile}  # as wide as the slices are apart, along every axis
        return {"profile": self.profile, "thickness": self.width * truth.spacing_mm[axis]}


SCANS: tuple[Scan, ...] = (
    Scan("T1 sub-01", "sub-01", "brain-t1/sub-01/anat/sub-01_T1w.nii.gz"),
    Scan("T1 sub-02", "sub-02", "brain-t1/sub-02/anat/sub-02_T1w.nii.gz"),
    Scan("FLAIR ms_26", "ms_26", "ms/imagesTr/ms_26.nii.gz"),
    *(Scan(f"{kind} glioma_{n:04d}", f"glioma_{n:04d}", f"glioma/imagesTr/glioma_{n:04d}_{channel}.nii.gz")
      for n in (3, 4, 5, 6) for kind, channel in (("FLAIR", "0000"), ("T1c", "0001"))),
    Scan("FLAIR other scanner", "glioma_hg15", "glioma-other/imagesTr/glioma_hg15_0000.nii.gz"),
    Scan("CT aorta", "aorta", "ct/aorta_1.5mm.nii.gz"),
    Scan("CT body 3 mm", "totalsegmentator", "ct/totalsegmentator_3mm.nii.gz"),
    Scan("T2 phantom", "phantom", "", phantom=True),
)
INPUTS: dict[str, Input] = {
    "gauss3": Input("Gaussian, FWHM = 3 voxels, ×3", 3, 3),
    "rect3": Input("rectangle, ×3", 3, 3, "rect"),
    "gap3": Input("Gaussian FWHM 2, ×3 (gap)", 3, 2),
    "noise4": Input("Gaussian ×4, noise 2 %", 4, 4, noise=0.02),
    "iso2": Input("isotropic ×2", 2, 2, everywhere=True),
}
#: What is kept of a report, and what a warning says where the network was not used.
NOTED = ("method", "profile", "thickness_mm", "profile_from", "confidence", "noise", "consistency", "adapted",
         "warnings")
FELL_BACK = "the linear method was used"
#: The input for which SSIM and HFEN are taken too.
MAIN = "gauss3"


def parser(description: str | None) -> argparse.ArgumentParser:
    """What the scripts on the same volumes ask for."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, required=True, help="the folder with brain-t1, ms, glioma, ct, ...")
    made.add_argument("--quick", action="store_true", help="the middle of each volume only")
    made.add_argument("--only", nargs="+", default=[""], help="only volumes whose names start so")
    return made


def real_scans(only: Sequence[str]) -> list[Scan]:
    """The held-out volumes that are no phantoms."""
    return [scan for scan in SCANS if not scan.phantom and scan.name.startswith(tuple(only))]


def t2_phantom(size: int = 160) -> Volume:
    """A T2-weighted scan drawn on the organ map of an MR phantom, which is made twice as fine and averaged down."""
    from medgan.datasets.phantom_mr import ORGANS

    label = organs("mr", 77, shape=(2 * size,) * 3).array[0]
    values = np.zeros(max(ORGANS.values()) + 1, dtype=np.float32)
    values[[ORGANS[name] for name in T2_VALUES]] = list(T2_VALUES.values())
    fine = values[label].reshape(size, 2, size, 2, size, 2).mean(axis=(1, 3, 5))
    rng = np.random.default_rng(77)
    texture = ndimage.gaussian_filter(rng.standard_normal(fine.shape, dtype=np.float32), 1.5)
    fine *= 1 + T2_TEXTURE * texture / texture.std()
    noise = rng.normal(0, T2_NOISE, (2, *fine.shape)).astype(np.float32)
    return Volume(np.hypot(fine + noise[0], noise[1])[None], np.diag([1.2, 1.2, 1.2, 1.0]))


@dataclass(frozen=True)
class Scale:
    """How results are compared with the truth: over which range, and where."""

    truth: Array
    low: float
    high: float
    mask: NDArray[np.bool_]

    @classmethod
    def of(cls, truth: Array) -> Scale:
        """Range and foreground of a volume (X, Y, Z)."""
        low, high = (float(v) for v in np.percentile(foreground(truth), (0.1, 99.9)))
        return cls(truth, low, high, truth > low + 0.05 * (high - low))

    def psnr(self, image: Array) -> float:
        """Foreground PSNR in dB."""
        error = np.square(image[self.mask] - self.truth[self.mask], dtype=np.float64).mean()
        return float(10 * np.log10((self.high - self.low) ** 2 / error))

    def ssim(self, image: Array, axis: int) -> float:
        """Mean structural similarity in the foreground, in planes that hold the slice axis."""
        from skimage.metrics import structural_similarity

        across, found = (axis + 1) % 3, []
        planes = [np.moveaxis(a, across, 0) for a in (self.truth, image, self.mask)]
        for number in range(SSIM_STEP // 2, len(planes[0]), SSIM_STEP):
            truth, made, mask = (a[number] for a in planes)
            if mask.any():
                _, local = structural_similarity(truth, made, data_range=self.high - self.low, gaussian_weights=True,
                                                 use_sample_covariance=False, full=True)
                found.append(local[mask])
        return float(np.concatenate(found).mean())

    def hfen(self, image: Array) -> float:
        """High-frequency error norm: of the Laplacian of Gaussian of the error, over that of the truth."""
        norms = [np.linalg.norm(ndimage.gaussian_laplace(a, HFEN_SIGMA)[self.mask].astype(np.float64))
                 for a in (image - self.truth, self.truth)]
        return float(norms[0] / norms[1])


def truth_of(scan: Scan, data: Path, factors: tuple[int, ...], quick: bool = False, margin: int = MARGIN) -> Volume:
    """A volume cut to the box of its foreground with a margin and to whole thick voxels, as float32."""
    volume = t2_phantom() if scan.phantom else medgan.read(data / scan.path)
    volume = replace(volume, array=volume.array.astype(np.float32))
    where = np.argwhere(Scale.of(volume.array[0]).mask)
    boxes = []
    for axis, (first, last) in enumerate(zip(where.min(axis=0), where.max(axis=0), strict=True)):
        start, stop = max(0, int(first) - margin), min(volume.shape[axis], int(last) + 1 + margin)
        if quick and stop - start > QUICK[axis]:
            start = (start + stop - QUICK[axis]) // 2
            stop = start + QUICK[axis]
        boxes.append(slice(start, stop - (stop - start) % factors[axis]))
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [box.start for box in boxes]
    return replace(volume, array=np.ascontiguousarray(volume.array[(slice(None), *boxes)]), affine=affine)


def thicken(truth: Volume, axis: int, kind: Input, noise: float) -> Volume:
    """Scans a volume again with thick slices; `noise` in the volume's units."""
    thick = truth
    for refined in [a for a, factor in enumerate(kind.factors(axis)) if factor > 1]:
        fine = truth.spacing_mm[refined]
        thick = simulate(thick, axis=refined, spacing_mm=kind.factor * fine, thickness_mm=kind.width * fine,
                         profile=kind.profile)
    if noise:
        rng = np.random.default_rng(0)
        thick = replace(thick, array=thick.array + rng.normal(0, noise, thick.array.shape).astype(np.float32))
    return thick


def methods(truth: Volume, thick: Volume, axis: int, kind: Input, scale: Scale, options: argparse.Namespace,
            ) -> dict[str, Callable[[], tuple[Array, dict[str, Any]]]]:
    """What is compared: each gives its result on the fine grid and what it has to say."""
    factors, told = kind.factors(axis), kind.told(truth, axis)
    model = {"model": options.model, "device": options.device}

    def ours(**given: Any) -> tuple[Array, dict[str, Any]]:
        made, report = medgan.upsample(thick, factor=factors, report=True, **given)
        return made.array[0], {name: getattr(report, name) for name in NOTED if hasattr(report, name)}

    def drawn(**given: Any) -> tuple[Array, dict[str, Any]]:
        # Without the report, whose maps take the network twice as long; its warnings come as Python's.
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            made = medgan.upsample(thick, factor=factors, **given)
        told = [str(warning.message) for warning in caught]
        return made.array[0], {"warnings": told, "method": "linear" if any(FELL_BACK in t for t in told) else "network"}

    def tikhonov() -> tuple[Array, dict[str, Any]]:
        scans = [Acquisition(n, f, kind.width / kind.factor, kind.profile) for n, f in
                 zip(thick.shape, factors, strict=True)]
        made, smoothness = peers.best_tikhonov(thick.array[0], scans, scale.psnr)
        return made, {"smoothness": smoothness}

    def soupgan() -> tuple[Array, dict[str, Any]]:
        made = peers.soupgan(thick.array[0], kind.factor, options.soupgan_python, options.soupgan_weights,
                             options.threads)
        made, shift = peers.unshifted(made, truth.array[0], scale.mask, axis)
        return made, {"shift": shift}

    found: dict[str, Callable[[], tuple[Array, dict[str, Any]]]] = {
        "linear": lambda: (peers.spline(thick.array[0], factors, 1), {}),
        "cubic": lambda: (peers.spline(thick.array[0], factors, 3), {}),
        "Lanczos-3": lambda: (peers.lanczos(thick.array[0], factors), {}),
        "Tikhonov, best": tikhonov,
        "Tikhonov": lambda: ours(method="linear", **told), "Tikhonov auto": lambda: ours(method="linear"),
        "network": lambda: drawn(**told, **model), "network auto": lambda: drawn(**model),
    }
    if options.adapt:
        found["network adapt"] = lambda: ours(adapt=True, **told, **model)
    if options.soupgan_python and not kind.everywhere and axis == 2:
        found["SOUP-GAN"] = soupgan
    return {name: found[name] for name in found if not options.methods or name in options.methods}


def measure(scan: Scan, key: str, options: argparse.Namespace) -> dict[str, Any]:
    """One row: every method on one volume made thick in one way."""
    kind = INPUTS[key]
    truth = truth_of(scan, options.data, kind.factors(scan.axis), options.quick)
    scale = Scale.of(truth.array[0])
    thick = thicken(truth, scan.axis, kind, kind.noise * (scale.high - scale.low))
    row: dict[str, Any] = {"input": key, **asdict(scan), "shape": truth.shape, "methods": {}}
    for name, method in methods(truth, thick, scan.axis, kind, scale, options).items():
        started = time.perf_counter()
        try:
            made, notes = method()
        except TypeError as error:
            if "adapt" not in str(error):
                raise
            print(f"{name} is left out: medgan.upsample takes no adapt= yet", flush=True)
            options.adapt = False
            continue
        told = notes | {"seconds": time.perf_counter() - started, "psnr": scale.psnr(made)}
        if key == MAIN and not options.psnr_only:
            told |= {"ssim": scale.ssim(made, scan.axis), "hfen": scale.hfen(made)}
        row["methods"][name] = told
    return row


def main() -> None:
    """Measures, prints the tables, and draws the figure."""
    asked = parser(__doc__)
    asked.add_argument("--model", type=Path, help="a run folder; by default the model that ships")
    asked.add_argument("--device", default="auto")
    asked.add_argument("--inputs", nargs="+", choices=list(INPUTS), default=list(INPUTS))
    asked.add_argument("--methods", nargs="+", help="only these columns")
    asked.add_argument("--adapt", action="store_true", help="also adapt the network to each volume, which is slow")
    asked.add_argument("--psnr-only", action="store_true", help="leave out SSIM and HFEN")
    asked.add_argument("--threads", type=int, default=1, help="for peers; ours go by OMP_NUM_THREADS")
    asked.add_argument("--soupgan-python", type=Path)
    asked.add_argument("--soupgan-weights", type=Path)
    asked.add_argument("--out", type=Path, help="results as JSON, written after each volume")
    asked.add_argument("--resume", action="store_true", help="keep the rows that --out has, measure the others")
    asked.add_argument("--figure", type=Path)
    options = asked.parse_args()
    if bool(options.soupgan_python) != bool(options.soupgan_weights):
        asked.error("--soupgan-python and --soupgan-weights go together")
    rows: list[dict[str, Any]] = []
    if options.resume and options.out and options.out.exists():
        rows = json.loads(options.out.read_text(encoding="utf-8"))
    done = {(row["input"], row["name"]) for row in rows}
    for key in options.inputs:
        for scan in SCANS:
            if (key, scan.name) in done or not scan.name.startswith(tuple(options.only)):
                continue
            rows.append(measure(scan, key, options))
            told = ", ".join(f"{name} {of['psnr']:.2f}" for name, of in rows[-1]["methods"].items())
            print(f"{key} {scan.name}: {told}", flush=True)
            if options.out:
                options.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    titles = {key: kind.title for key, kind in INPUTS.items()}
    print(tables.everything(rows, titles, MAIN))
    if options.figure:
        from upsample_figure import figure

        figure(options)


if __name__ == "__main__":
    main()
