"""Where the upscale task learns from: sharp directions of real volumes, scanned again with thick slices."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medgan.config import Config
from medgan.datasets.cases import Dataset
from medgan.errors import Refused
from medgan.imaging.estimation import estimate_noise
from medgan.imaging.intensity import IntensityMap, intensity_maps
from medgan.imaging.slices import PROFILES, Acquisition, Profile
from medgan.imaging.volume import Volume
from medgan.learning.task import Batch

#: Planes that a 2D network sees: its own and one on either side.
PLANES = 3
#: Numbers in the condition: factor, anisotropy, thickness, noise, whether the profile is certain, and which it is.
CONDITION = 5 + len(PROFILES)
#: Factors that are learned.
LEARNED_FACTORS = (1.2, 8.0)
#: Thicknesses that are learned, in slice spacings, for each profile.
LEARNED_THICKNESS: dict[Profile, tuple[float, float]] = {
    "gaussian": (0.4, 1.5), "rect": (0.4, 1.3), "sinc": (0.8, 1.2)}
#: How wide a Gaussian is that blurs about as much as another profile of width one: what an estimate can find.
EQUIVALENT: dict[Profile, float] = {"gaussian": 1.0, "rect": 0.68, "sinc": 0.68}
#: How often the network is told an estimate instead of the truth, and how far that is off: the deviation of its log.
UNCERTAIN, MISTAKEN = 0.35, 0.15
#: How often each profile is drawn: the Gaussian is what is assumed of a scan that does not say.
SHARES: dict[Profile, float] = {"gaussian": 0.5, "rect": 0.35, "sinc": 0.15}
#: Axes no coarser than this many times the finest one are sharp enough to be learned from.
SHARP = 1.2
#: Thick slices a patch, and those of them on either side that only give context.
SLICES, CONTEXT = 24, 4
#: Fewest voxels of an axis to learn from, and fewest thick slices a patch.
SHORTEST, FEWEST_SLICES = 24, 6
#: Different acquisitions a batch.
ACQUISITIONS = 4
#: Largest noise added, in network values (half the foreground's range); some of the acquisitions get none.
NOISE, NOISELESS = 0.1, 0.4
#: How much finer and coarser than the volumes' own spacing voxels may be wanted: coarser ones are learned from
#: averaged pixels.
FINER, COARSER = 2.0, 4.0
#: How far the noise that is told is off: the deviation of its logarithm.
MISHEARD = 0.15
#: Voxels kept in memory in all, and cases at most.
VOXELS, CASES = 250_000_000, 200
#: A patch that varies less than this, in network values, is empty; how often another is drawn instead.
FLAT, TRIES = 0.05, 4
#: How often a patch is shown in another contrast, of how many straight pieces, and how often upside down then.
CONTRAST, PIECES, INVERTED = 0.5, 6, 0.2


def condition(scan: Acquisition, anisotropy: float, noise: float) -> list[float]:
    """What the network is told, scaled to about [-1, 1].

    Args:
        scan: How the slices were taken, as far as is known.
        anisotropy: Slice spacing over the in-plane spacing.
        noise: Standard deviation of the noise in the slices, in network values.
    """
    return [math.log2(scan.factor) / 3, math.log2(anisotropy) / 3, scan.thickness, 10 * noise, float(scan.certain),
            *(float(scan.profile == p) for p in PROFILES)]


@dataclass(frozen=True)
class _Scan:
    """One volume in memory.

    Args:
        array: (C, X, Y, Z) raw values.
        maps: One map a channel, linear between its ends.
        axes: Spatial axes that are sharp and long enough.
        noise: Standard deviation of each channel's own noise, in network values.
        spacing_mm: Of the sharp axes.
        dense: Whether neighbouring voxels of the third axis are at the pixels' distance though it is not sharp.
    """

    array: NDArray[np.float32]
    maps: tuple[IntensityMap, ...]
    axes: tuple[int, ...]
    noise: tuple[float, ...]
    spacing_mm: tuple[float, ...]
    dense: bool = False


@dataclass(frozen=True)
class UpscaleSource:
    """Batches of thick, linear and true patches; see `batch`.

    Args:
        scans: Volumes in memory.
        config: The run's settings.
        interface: What the model covers: factors, thicknesses, noise, spacing, modalities.
        plans: The shapes and acquisitions of the batches in turn, where one scan is to be learned; by default each
            batch has others.
    """

    scans: tuple[_Scan, ...]
    config: Config
    interface: Mapping[str, Any]
    plans: tuple[Plan, ...] = ()

    @classmethod
    def of(cls, dataset: Dataset, config: Config) -> UpscaleSource:
        """Loads the training cases of a data set.

        Raises:
            Refused: `DATASET_EMPTY`, or what is wrong with a file.
        """
        cases = dataset.split("train")
        if len(cases) > CASES:
            chosen = np.random.default_rng(config.seed).choice(len(cases), CASES, replace=False)
            cases = tuple(cases[i] for i in sorted(chosen))
        return cls.from_volumes((dataset.load(case)[0] for case in cases), config, count=len(cases),
                                where=str(dataset.root))

    @classmethod
    def from_volumes(cls, volumes: Iterable[Volume], config: Config, *, count: int = 1,
                     where: str = "volumes") -> UpscaleSource:
        """Takes volumes as they come; `count` of them share the memory.

        Raises:
            Refused: `DATASET_EMPTY` where no volume has two axes of 24 voxels that are sharp.
        """
        scans = [scan for scan in (_scan(volume, config, VOXELS // max(1, count)) for volume in volumes) if scan]
        if not scans:
            raise Refused("DATASET_EMPTY", where, f"no training volume has two sharp axes of {SHORTEST} voxels",
                          "Give volumes with a fine plane to learn from")
        finest = [mm for scan in scans for mm in scan.spacing_mm]
        interface = {"channels": 1, "modalities": [config.modality], "factors": list(LEARNED_FACTORS), "noise": NOISE,
                     "spacing_mm": [min(finest) / FINER, max(finest) * COARSER],
                     "thickness": {profile: list(LEARNED_THICKNESS[profile]) for profile in PROFILES}}
        return cls(tuple(scans), config, interface)

    @classmethod
    def of_one(cls, blocks: Sequence[NDArray[np.float32]], maps: Sequence[IntensityMap], axes: tuple[int, ...],
               plans: tuple[Plan, ...], config: Config, interface: Mapping[str, Any]) -> UpscaleSource:
        """Takes blocks (C, X, Y, Z) of one scan that are sharp along `axes` and dense along the third axis."""
        none = (0.0,) * len(maps)
        return cls(tuple(_Scan(block, tuple(maps), axes, none, (), dense=True) for block in blocks), config, interface,
                   plans)

    def batch(self, step: int) -> Batch:
        """The patches of one step, a pure function of the seed and the step.

        One factor and one in-plane spacing hold for the whole batch, a few profiles share it. Mostly the grid wanted
        is isotropic; sometimes the plane is coarser than that (both are to be refined, one after the other), or
        finer (the wanted slices are still thicker than the pixels are wide).

        Returns:
            `thick` (B, planes, T, P[, P]), `base` and `truth` (B, 1, N, P[, P]), `condition` (B, F), `position` (B, N),
            the same in every row, `matrix` (B, T, N) and `back` (B, N, T) of the acquisition as it is told, and
            `inside` (B, N), 1 where the slices are not only context, the same in every row.
        """
        rng = np.random.default_rng([self.config.seed, step])
        size, dims = self.config.training.batch, self.config.data.dims
        shortest = min(scan.array.shape[axis + 1] for scan in self.scans for axis in scan.axes)
        plan = (self.plans[step % len(self.plans)] if self.plans
                else Plan.draw(rng, shortest, self.config.data.crop, dims))
        items: dict[str, list[Any]] = {name: [] for name in ("thick", "base", "truth", "condition", "matrix", "back")}
        takes = [plan.take(rng) for _ in range(min(ACQUISITIONS, size))]
        for number in range(size):
            take = takes[number % len(takes)]
            for name, value in zip(items, self._patch(rng, plan, take), strict=True):
                items[name].append(value)
        batch = {name: torch.from_numpy(np.asarray(values, dtype=np.float32)) for name, values in items.items()}
        for name, row in (("position", plan.positions), ("inside", plan.inside)):
            batch[name] = torch.from_numpy(row.astype(np.float32)).expand(size, -1).contiguous()
        return batch

    def _patch(self, rng: np.random.Generator, plan: Plan, take: _Take) -> tuple[Any, ...]:
        """One patch: thick (planes, T, P[, P]), base and truth (1, N, P[, P]), condition, matrix, back."""
        for _ in range(TRIES):
            fine, mapping, own = self._fine(rng, plan)
            planar = fine if plan.pixel == 1 else _averaged(fine, plan)
            thick = np.tensordot(take.true.matrix.astype(np.float32), planar, 1)
            if mapping.forward(thick).std() > FLAT:
                break
        if take.noise:
            thick += rng.normal(0, take.noise * (mapping.raw[-1] - mapping.raw[0]) / 2, thick.shape)
        # What averaging leaves of the noise that the sharp volume has itself.
        left = own * np.linalg.norm(take.true.matrix[plan.slices // 2]) / plan.pixel
        noise = float(np.hypot(take.noise, left) * np.exp(rng.normal(0, MISHEARD)))
        middle = planar.shape[2] // 2
        meant = (slice(None), slice(None), slice(middle, middle + 1) if plan.dims == 2 else slice(None))
        base = np.tensordot(take.told.inverse.astype(np.float32), thick[meant], 1)
        truth = np.tensordot(plan.target, planar[meant], 1)
        base, truth, thick = (mapping.forward(part, np.float32) for part in (base, truth, thick))
        if plan.dims == 2:
            thick, base, truth = np.moveaxis(thick, 2, 0), base[None, ..., 0], truth[None, ..., 0]
        else:
            thick, base, truth = thick[None], base[None], truth[None]
        told = condition(take.told, plan.anisotropy, noise)
        return thick, base, truth, told, take.told.matrix, take.told.back

    def _fine(self, rng: np.random.Generator, plan: Plan) -> tuple[NDArray[np.float32], IntensityMap, float]:
        """A raw block (N, P pixel, Q pixel) from a random place: thick axis, in-plane axis, the third axis.

        With it come the intensity map and the noise that the volume has itself.
        """
        scan = self.scans[rng.integers(len(self.scans))]
        channel = int(rng.integers(len(scan.array)))
        axis, partner = (int(a) for a in rng.permutation(scan.axes)[:2])
        third = 3 - axis - partner
        block = scan.array[channel].transpose(axis, partner, third)
        sharp = scan.dense or third in scan.axes
        index = []
        for length, there in zip(plan.block, block.shape, strict=True):
            # Where the volume is narrower than the block, its edge is repeated.
            start = int(rng.integers(max(1, there - length + 1))) - max(0, (length - there) // 2)
            index.append(np.clip(np.arange(start, start + length), 0, there - 1))
        if not sharp or rng.random() < 0.1:
            # Planes far apart would teach what neighbours at the pixels' own distance do not look like.
            index[2][:] = index[2][len(index[2]) // 2]
        for along in (0, 1):
            if rng.random() < 0.5:
                index[along] = index[along][::-1]
        fine = block[np.ix_(*index)]
        if not self.plans and rng.random() < CONTRAST:
            fine = _contrast(rng, fine, scan.maps[channel])
        return fine, scan.maps[channel], scan.noise[channel]


@dataclass(frozen=True)
class Plan:
    """The shapes of one batch, and what its acquisitions are drawn from.

    Args:
        grid: Fine voxels a thick slice in the sharp volume.
        pixel: Fine voxels an in-plane pixel.
        factor: Voxels a thick slice on the wanted grid.
        slices: Thick slices.
        width: In-plane pixels.
        dims: 2 or 3.
        fixed: The acquisition of all takes; by default each is random.
    """

    grid: float
    pixel: float
    factor: float
    slices: int
    width: int
    dims: int
    fixed: Acquisition | None = None

    @classmethod
    def draw(cls, rng: np.random.Generator, shortest: int, crop: int, dims: int) -> Plan:
        low, high = LEARNED_FACTORS[0], min(LEARNED_FACTORS[1], shortest / FEWEST_SLICES)
        if rng.random() < 0.6:
            grid = float(rng.integers(2, int(high) + 1))
        else:
            grid = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        pixel, factor, kind = 1.0, grid, rng.random()
        if kind < 0.25:
            pixel = float(rng.uniform(1.0, grid))
        elif kind < 0.45:
            factor = float(rng.uniform(low, grid))
        width = max(8, min(crop, int(shortest / pixel)))
        return cls(grid, pixel, factor, min(SLICES, int(shortest / grid)), width, dims)

    @classmethod
    def fixed_to(cls, scan: Acquisition, grid: float, shortest: int, crop: int) -> Plan:
        """One acquisition in 2D, with slices `grid` voxels apart, in a volume whose shortest sharp axis is given."""
        slices = min(SLICES, int(shortest / grid))
        return cls(grid, 1.0, min(scan.factor, grid), slices, min(crop, shortest), 2, scan)

    @property
    def anisotropy(self) -> float:
        return self.grid / self.pixel

    @property
    def block(self) -> tuple[int, int, int]:
        planes = PLANES if self.dims == 2 else self.width
        return (round(self.slices * self.grid), round(self.width * self.pixel), round(planes * self.pixel))

    @property
    def positions(self) -> NDArray[np.float64]:
        """Of the wanted voxels, in slice spacings."""
        return Acquisition(self.slices, self.factor).positions

    @property
    def inside(self) -> NDArray[np.bool_]:
        """The wanted voxels within the slices that are not only context."""
        context = min(CONTEXT, self.slices // 4)
        return (self.positions > context) & (self.positions < self.slices - context)

    @property
    def target(self) -> NDArray[np.float32]:
        """Averages fine voxels into wanted ones."""
        wanted = round(self.slices * self.factor)
        if self.factor == self.grid:
            return np.eye(wanted, dtype=np.float32)
        box = Acquisition(wanted, self.grid / self.factor, 1.0, "rect", fine=self.block[0])
        return box.matrix.astype(np.float32)

    def take(self, rng: np.random.Generator) -> _Take:
        """A random profile and noise, and what is told of them."""
        if self.fixed is not None:
            fixed = self.fixed
            true = Acquisition(self.slices, self.grid, fixed.thickness, fixed.profile, fine=self.block[0])
            told = Acquisition(self.slices, self.factor, fixed.thickness, fixed.profile, fixed.noise,
                               certain=fixed.certain)
            return _Take(true, told, fixed.noise)
        profile = PROFILES[rng.choice(len(PROFILES), p=[SHARES[p] for p in PROFILES])]
        thickness = float(rng.uniform(*LEARNED_THICKNESS[profile]))
        if rng.random() < 0.3:
            thickness = 1.0
        noise = float(rng.uniform(0, NOISE**0.5) ** 2) if rng.random() > NOISELESS else 0.0
        return self._take(rng, profile, thickness, noise, rng.random() > UNCERTAIN)

    def _take(self, rng: np.random.Generator, profile: Profile, thickness: float, noise: float,
              certain: bool) -> _Take:
        true = Acquisition(self.slices, self.grid, thickness, profile, fine=self.block[0])
        if not certain:
            thickness *= EQUIVALENT[profile] * np.exp(rng.normal(0, MISTAKEN))
            profile = "gaussian" if rng.random() < 0.7 else "rect"
            low, high = LEARNED_THICKNESS[profile]
            thickness = float(np.clip(thickness / EQUIVALENT[profile], low, high))
        told = Acquisition(self.slices, self.factor, thickness, profile, noise * np.exp(rng.normal(0, MISHEARD)),
                           certain=certain)
        return _Take(true, told, noise)


@dataclass(frozen=True)
class _Take:
    """How the slices of a patch are taken from the fine grid, what is said of it, and the noise in network values."""

    true: Acquisition
    told: Acquisition
    noise: float


def _contrast(rng: np.random.Generator, raw: NDArray[np.float32], mapping: IntensityMap) -> NDArray[np.float32]:
    """Other grey values for the same tissue: edges stay where they are, and no contrast is learned by heart."""
    knots = np.linspace(-1, 1, PIECES + 1)
    strength = rng.uniform(0, 0.5)
    values = (1 - strength) * knots + strength * rng.uniform(-1, 1, knots.size)
    if rng.random() < INVERTED:
        values = -values
    return mapping.inverse(np.interp(mapping.forward(raw), knots, values), np.float32)


def _averaged(fine: NDArray[np.float32], plan: Plan) -> NDArray[np.float32]:
    """Coarser pixels in the plane and between the planes, with a Gaussian of their own width."""
    across = plan.block[2]
    planes = max(1, round(across / plan.pixel))
    inner = Acquisition(plan.width, plan.pixel, fine=plan.block[1]).matrix.astype(np.float32)
    outer = Acquisition(planes, plan.pixel, fine=across).matrix.astype(np.float32)
    return np.ascontiguousarray(np.einsum("npq,ap,bq->nab", fine, inner, outer, optimize=True))


def _scan(volume: Volume, config: Config, voxels: int) -> _Scan | None:
    """Keeps the part of a volume that shows something, or None when there is nothing to learn from."""
    maps = tuple(mapping.straight() for mapping in intensity_maps(volume.array, config.intensity))
    array = volume.array if volume.dims == 3 else volume.array[..., None]
    spacing = volume.spacing_mm
    array = array[(slice(None), *_shown(array, maps, voxels))]
    axes = tuple(axis for axis in range(volume.dims)
                 if spacing[axis] <= SHARP * min(spacing) and array.shape[axis + 1] >= SHORTEST)
    if len(axes) < 2:
        return None
    noise = tuple(2 * estimate_noise(channel) / (mapping.raw[-1] - mapping.raw[0])
                  for channel, mapping in zip(array, maps, strict=True))
    return _Scan(np.ascontiguousarray(array, dtype=np.float32), maps, axes, noise,
                 tuple(spacing[axis] for axis in axes))


def _shown(array: NDArray[Any], maps: tuple[IntensityMap, ...], voxels: int) -> tuple[slice, ...]:
    """The box around what is not background, cut down to its middle where all channels have more than `voxels`."""
    seen = np.zeros(array.shape[1:], dtype=bool)
    for channel, mapping in zip(array, maps, strict=True):
        seen |= channel > mapping.raw[0] + 0.05 * (mapping.raw[-1] - mapping.raw[0])
    box = []
    for axis in range(3):
        lines = np.flatnonzero(seen.any(axis=tuple(a for a in range(3) if a != axis)))
        box.append([int(lines[0]), int(lines[-1]) + 1] if lines.size else [0, array.shape[axis + 1]])
    while len(array) * np.prod([stop - start for start, stop in box]) > voxels:
        longest = max(box, key=lambda ends: ends[1] - ends[0])
        length = (longest[1] - longest[0]) * 9 // 10
        longest[0] += (longest[1] - longest[0] - length) // 2
        longest[1] = longest[0] + length
    return tuple(slice(start, stop) for start, stop in box)
