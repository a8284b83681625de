"""A trained upscale generator at work: what it adds to a linear reconstruction, block by block."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from medgan.config import Config
from medgan.errors import Refused
from medgan.imaging.intensity import IntensityMap
from medgan.imaging.refine import Pass
from medgan.imaging.restoration import SAME_SPACING
from medgan.imaging.slices import Acquisition, along
from medgan.learning.checkpoints import load_weights, open_run
from medgan.learning.loop import pick_device, pick_precision
from medgan.learning.tasks.upscale import UpscaleGenerator, UpscaleTask
from medgan.learning.tasks.upscale_source import condition

#: The two ends of the model that ships with medgan: for fidelity, and for a sharp look.
SHIPPED, SHIPPED_SHARP = (Path(__file__).resolve().parents[1] / "weights" / f"{name}.safetensors"
                          for name in ("upscale", "upscale-sharp"))
#: Thick voxels that go through a generator of 2 or 3 dimensions at once: few keep to the cache; in 3D every block
#: needs a border as wide as the network's reach, so it must be larger. The features then take up to 200 MB.
VOXELS = {2: 50_000, 3: 400_000}
#: Blocks worked on at once, at most; each takes its own memory.
TOGETHER = 4
#: What lies this close to the darkest network value is background: nothing is drawn where there is nothing else.
DARK = 1e-4


@dataclass(frozen=True)
class Sharpener:
    """A generator with what it was trained for.

    Args:
        generator: In evaluation mode, on `device`.
        config: The settings it was trained with.
        interface: What it covers: `factors`, `thickness` of each profile, `noise`, `spacing_mm`, `modalities`.
        hash: Short hash of the weights.
        device: Where it works.
    """

    generator: UpscaleGenerator
    config: Config
    interface: Mapping[str, Any]
    hash: str
    device: torch.device

    @classmethod
    def open(cls, run: str | Path | None = None, device: str = "auto", sharpness: float = 0.0) -> Sharpener:
        """Loads the generator of a run folder, or the one that ships with medgan.

        Args:
            run: A run folder of the task upscale.
            device: `auto`, `cpu` or `cuda`.
            sharpness: 0 to 1, for the shipped model: from fidelity to a sharp look. The weights in between are
                interpolated (Wang et al. 2018, "ESRGAN").

        Raises:
            Refused: `RUN_NOT_FOUND`, `RUN_TASK`, `RUN_UNFINISHED`, `CKPT_*`, or `CFG_VALUE` for the device or the
                sharpness.
        """
        place = pick_device(device)
        if run is None:
            data = json.loads(SHIPPED.with_suffix(".json").read_text(encoding="utf-8"))
            config, interface = Config.checked(data["settings"], where=SHIPPED.name), data["interface"]
            generator = UpscaleTask(config, interface).generator
            load_weights(generator, SHIPPED)
            name = sha256(SHIPPED.read_bytes()).hexdigest()[:16]
            if sharpness:
                name = f"{name}+{sharpness:g}*{sha256(SHIPPED_SHARP.read_bytes()).hexdigest()[:16]}"
                _blend(generator, SHIPPED_SHARP, sharpness)
        else:
            if sharpness:
                raise Refused("CFG_VALUE", "sharpness", "only the model that ships with medgan has two ends to mix",
                              "Leave out the sharpness or the model")
            opened = open_run(run)
            config, interface = opened.config, opened.interface
            if config.task != "upscale":
                raise Refused("RUN_TASK", run, f"it is a run of the task {config.task}",
                              "Give a run of medgan train --task upscale")
            generator = opened.generator()  # type: ignore[assignment]
            name = opened.hash()
        generator = generator.to(place).eval().requires_grad_(False)
        return cls(generator, config, interface, name, place)

    @property
    def lowest(self) -> float:
        """The smallest factor it adds anything to; spacings rounded in a file's header make no difference."""
        return float(self.interface["factors"][0]) * (1 - SAME_SPACING)

    def uncovered(self, scans: Sequence[Acquisition], noise: float, spacing_mm: Sequence[float],
                  modality: str | None) -> list[str]:
        """Says why the generator was not trained for a scan; empty where it was.

        An axis that is refined by less than the smallest factor does not count: nothing is added to it.

        Args:
            scans: The acquisition of each axis.
            noise: In network values.
            spacing_mm: The spacing wanted.
            modality: Of the scan, where it is known.
        """
        reasons = []
        low, high = self.lowest, self.interface["factors"][1]
        if max(scan.factor for scan in scans) < low:
            reasons.append(f"no axis is refined more than {low:.3g} times, and the model adds nothing below that")
        for axis, scan in enumerate(scans):
            if scan.factor > high:
                reasons.append(f"axis {axis} is refined {scan.factor:.3g} times, and the model was trained for "
                               f"{low:g} to {high:g}")
            thin, wide = self.interface["thickness"][scan.profile]
            if scan.factor >= low and not thin <= scan.thickness <= wide:
                reasons.append(f"the {scan.profile} profile of axis {axis} is {scan.thickness:.3g} slice spacings "
                               f"wide, and the model was trained for {thin:g} to {wide:g}")
        if noise > self.interface["noise"]:
            reasons.append(f"the noise is {50 * noise:.2g} % of the intensity range, and the model was trained for "
                           f"{50 * self.interface['noise']:.2g} % at most")
        finest, coarsest = self.interface["spacing_mm"]
        if not finest <= min(spacing_mm) <= coarsest:
            reasons.append(f"voxels of {min(spacing_mm):.3g} mm are wanted, and the model was trained for "
                           f"{finest:.2g} to {coarsest:.2g} mm")
        known = self.interface["modalities"]
        if modality is not None and modality not in known:
            reasons.append(f"the scan is {modality}, and the model was trained for {', '.join(known)}")
        return reasons

    def add(self, linear: NDArray[np.float32], thick: NDArray[np.float32], mapping: IntensityMap, step: Pass, *,
            spread: bool = False) -> NDArray[np.float32] | None:
        """Adds to a linear reconstruction, in place, what it lacks.

        A 2D generator looks along both in-plane axes, and the mean of the two is taken. Then comes the step towards
        what agrees with the slices, as far as the generator trusts them.

        Args:
            linear: (X, Y, Z) raw values, refined along the axis of `step`.
            thick: (X, Y, Z) raw values it was made from.
            mapping: Raw to network values, from the whole volume; taken as linear between its ends.
            step: The axis, its acquisition and the part of it that is seen.
            spread: Whether to look again with the slices in the other order, and give the standard deviation of
                all looks.

        Returns:
            The spread, of the shape of `linear`, in raw values; None where it was not asked for or nothing was added.
        """
        if step.scan.factor < self.lowest:
            return None
        axis = step.axis
        partners = [other for other in range(3) if other != axis]
        if self.generator.dims == 3:
            partners = partners[:1]
        straight = mapping.straight()
        scale = (straight.raw[1] - straight.raw[0]) / (straight.mapped[1] - straight.mapped[0])
        grey = straight.forward(thick, np.float32)
        total = np.zeros_like(linear)
        # Of all looks, flipped ones too: their sum and the sum of their squares.
        sums = (np.zeros_like(linear), np.zeros_like(linear)) if spread else None
        trusts = []
        for partner in partners:
            order = (axis, partner, 3 - axis - partner)
            # Steps along finer pixels than wanted, or coarser ones than the slices, were not trained.
            ratio = step.spacing_mm[axis] / step.spacing_mm[partner]
            anisotropy = float(np.clip(ratio, 1.0, self.interface["factors"][1]))
            told = torch.tensor([condition(step.scan, anisotropy, step.scan.noise)], dtype=torch.float32,
                                device=self.device)
            with torch.inference_mode():
                trusts.append(float(self.generator.trusted(told)))
            seen = grey.transpose(order)
            if sums is None:
                self._look(seen, total.transpose(order), told, step.positions)
                continue
            for flipped in (False, True):
                look = np.zeros_like(linear)
                mirror = (slice(None, None, -1 if flipped else 1),)
                positions = seen.shape[0] - step.positions[::-1] if flipped else step.positions
                self._look(seen[mirror], look.transpose(order)[mirror], told, positions)
                for kept, values in zip(sums, (look, look**2), strict=True):
                    kept += values
                if not flipped:
                    total += look
        count = len(partners)
        # In place and given back at once: these are the largest arrays there are.
        total *= scale / count
        linear += total
        del total
        lacking = thick - along(step.matrix, linear, axis)
        linear += along(np.mean(trusts) * step.back, lacking, axis)
        if sums is None:
            return None
        mean, square = (kept / (2 * count) for kept in sums)
        deviation: NDArray[np.float32] = np.sqrt(np.maximum(square - mean**2, 0)) * np.float32(scale)
        return deviation

    def _look(self, grey: NDArray[np.float32], residual: NDArray[np.float32], told: torch.Tensor,
              positions: NDArray[np.float64]) -> None:
        """Adds the residual (N, P, Q) for thick network values (T, P, Q)."""
        precision = pick_precision("auto", self.device)
        rows = torch.from_numpy(positions.astype(np.float32)).to(self.device)
        slices, width, depth = grey.shape
        planar = self.generator.dims == 2
        reach = self.generator.reach
        shown = _shown(grey, reach, 1 if planar else reach)
        # The planes are a batch in 2D and an axis in 3D; both are cut so that a block fits the memory meant for it.
        most = VOXELS[self.generator.dims]
        edge = max(16, most // slices) if planar else max(16, int((most / slices) ** 0.5))
        step = max(1, most // (slices * min(width, edge))) if planar else edge
        blocks = []
        for deep, seen in _tiles(depth, step, 0 if planar else reach):
            columns = np.flatnonzero(shown[:, deep].any(axis=1))
            if columns.size:
                first, last = int(columns[0]), int(columns[-1]) + 1
                blocks += [(across, wide, deep, seen) for across, wide in _tiles(width, edge, reach, first, last)]

        @torch.inference_mode()
        def draw(block: tuple[slice, slice, slice, slice]) -> None:
            across, wide, deep, seen = block
            part = _stacked(grey, wide, seen, self.generator.planes) if planar else grey[None, None, :, wide, seen]
            batch = torch.from_numpy(np.ascontiguousarray(part)).to(self.device)
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=precision is torch.bfloat16):
                made = self.generator(batch, told, rows)[:, 0].cpu().numpy()
            made = made.transpose(1, 2, 0) if planar else made[0]
            inner = slice(across.start - wide.start, across.stop - wide.start)
            low = slice(deep.start - seen.start, deep.stop - seen.start)
            residual[:, across, deep] += made[:, inner, low] * shown[across, deep]

        _for_each(blocks, draw, torch.get_num_threads() if self.device.type == "cpu" else 1)


def _for_each(blocks: Sequence[Any], work: Callable[[Any], None], threads: int) -> None:
    """Works on several blocks at once, which small convolutions gain more from than from several threads each."""
    together = min(TOGETHER, threads, len(blocks))
    if together < 2:
        for block in blocks:
            work(block)
        return
    torch.set_num_threads(threads // together)
    try:
        with ThreadPoolExecutor(together) as pool:
            for _ in pool.map(work, blocks):
                pass
    finally:
        torch.set_num_threads(threads)


def _shown(grey: NDArray[np.float32], reach: int, planes: int) -> NDArray[np.bool_]:
    """Where in the plane (P, Q) the network can see anything but background."""
    seen = (grey > grey.dtype.type(DARK - 1)).any(axis=0)
    wide: NDArray[np.bool_] = ndimage.maximum_filter(seen, size=(2 * reach + 1, 2 * planes + 1), mode="nearest")
    return wide


def _blend(generator: UpscaleGenerator, path: Path, share: float) -> None:
    """Moves the weights towards those of a file."""
    other = deepcopy(generator)
    load_weights(other, path)
    with torch.no_grad():
        for mine, theirs in zip(generator.parameters(), other.parameters(), strict=True):
            mine.lerp_(theirs, share)


def _tiles(length: int, edge: int, reach: int, first: int = 0,
           last: int | None = None) -> Iterator[tuple[slice, slice]]:
    """Cuts an axis into tiles, from `first` to `last`; gives each with what must be seen to compute it."""
    end = length if last is None else last
    for start in range(first, end, edge):
        stop = min(end, start + edge)
        yield slice(start, stop), slice(max(0, start - reach), min(length, stop + reach))


def _stacked(grey: NDArray[np.float32], wide: slice, planes: slice, seen: int) -> NDArray[np.float32]:
    """Planes with their neighbours, (B, seen, T, P); the outermost one is its own neighbour."""
    offsets = np.arange(seen) - seen // 2
    index = np.clip(np.arange(planes.start, planes.stop)[:, None] + offsets, 0, grey.shape[2] - 1)
    return np.ascontiguousarray(np.moveaxis(grey[:, wide, index], (2, 3), (0, 1)))
