"""A trained upscale generator at work: what it adds to a linear reconstruction, block by block."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medgan.config import Config
from medgan.errors import Refused
from medgan.imaging.intensity import IntensityMap
from medgan.imaging.slices import Acquisition
from medgan.learning.checkpoints import load_weights, open_run
from medgan.learning.loop import pick_device, pick_precision
from medgan.learning.tasks.upscale import BLOCKS, UpscaleGenerator, UpscaleTask
from medgan.learning.tasks.upscale_source import condition

#: The model that ships with medgan.
SHIPPED = Path(__file__).resolve().parents[1] / "weights" / "upscale-mr.safetensors"
#: How far the generator sees, in voxels of the thick grid: two a block, and one each for its ends.
REACH = 2 * BLOCKS + 2
#: Thick voxels that go through a generator of 2 or 3 dimensions at once: few keep to the cache; in 3D every block
#: needs a border of `REACH`, so it must be larger. The features then take up to 200 MB.
VOXELS = {2: 50_000, 3: 400_000}


@dataclass(frozen=True)
class Sharpener:
    """A generator with what it was trained for.

    Args:
        generator: In evaluation mode, on `device`.
        config: The settings it was trained with.
        interface: What it covers: `factors`, `thickness` of each profile, `modality`.
        hash: Short hash of the weights.
        device: Where it works.
    """

    generator: UpscaleGenerator
    config: Config
    interface: Mapping[str, Any]
    hash: str
    device: torch.device

    @classmethod
    def open(cls, run: str | Path | None = None, device: str = "auto") -> Sharpener:
        """Loads the generator of a run folder, or the one that ships with medgan.

        Raises:
            Refused: `RUN_NOT_FOUND`, `RUN_TASK`, `RUN_UNFINISHED`, `CKPT_*`, or `CFG_VALUE` for the device.
        """
        place = pick_device(device)
        if run is None:
            data = json.loads(SHIPPED.with_suffix(".json").read_text(encoding="utf-8"))
            config, interface = Config.checked(data["settings"], where=SHIPPED.name), data["interface"]
            generator = UpscaleTask(config, interface).generator
            load_weights(generator, SHIPPED)
            name = sha256(SHIPPED.read_bytes()).hexdigest()[:16]
        else:
            opened = open_run(run)
            config, interface = opened.config, opened.interface
            if config.task != "upscale":
                raise Refused("RUN_TASK", run, f"it is a run of the task {config.task}",
                              "Give a run of medgan train --task upscale")
            generator = opened.generator()  # type: ignore[assignment]
            name = opened.hash()
        generator = generator.to(place).eval().requires_grad_(False)
        return cls(generator, config, interface, name, place)

    def uncovered(self, scans: Sequence[Acquisition]) -> list[str]:
        """Says why the generator was not trained for these acquisitions; empty where it was.

        An axis that is refined by less than the smallest factor does not count: nothing is added to it.
        """
        reasons = []
        low, high = self.interface["factors"]
        for axis, scan in enumerate(scans):
            if scan.factor > high:
                reasons.append(f"axis {axis} is refined {scan.factor:.3g} times, and the model was trained for "
                               f"{low:g} to {high:g}")
            thin, wide = self.interface["thickness"][scan.profile]
            if scan.factor >= low and not thin <= scan.thickness <= wide:
                reasons.append(f"the {scan.profile} profile of axis {axis} is {scan.thickness:.3g} slice spacings "
                               f"wide, and the model was trained for {thin:g} to {wide:g}")
        return reasons

    def add(self, linear: NDArray[np.float32], thick: NDArray[np.float32], maps: Sequence[IntensityMap], axis: int,
            scan: Acquisition, position: NDArray[np.float64], spacing_mm: Sequence[float]) -> None:
        """Adds to a linear reconstruction, in place, what it lacks.

        A 2D generator looks along both in-plane axes, and the mean of the two is taken.

        Args:
            linear: (C, X, Y, Z) raw values, refined along `axis`.
            thick: (C, X, Y, Z) raw values it was made from.
            maps: One for each channel, from the whole volume.
            axis: The spatial axis that is refined, 0 to 2.
            scan: How it was acquired.
            position: Of the fine voxels, in slice spacings from the outer edge of the first slice in `thick`.
            spacing_mm: Spacing of `thick`.
        """
        if scan.factor < self.interface["factors"][0]:
            return
        rows = torch.from_numpy(position.astype(np.float32)).to(self.device)
        partners = [other for other in range(3) if other != axis]
        if self.generator.dims == 3:
            partners = partners[:1]
        for values, raw, mapping in zip(linear, thick, maps, strict=True):
            grey = mapping.forward(raw, np.float32)
            residual = np.zeros(values.shape, dtype=np.float32)
            for partner in partners:
                order = (axis, partner, 3 - axis - partner)
                # Steps along the finer pixels than wanted, or coarser ones than the slices, were not trained.
                anisotropy = float(np.clip(spacing_mm[axis] / spacing_mm[partner], 1.0, self.interface["factors"][1]))
                told = condition(scan.factor, anisotropy, scan.thickness, scan.profile)
                self._look(grey.transpose(order), residual.transpose(order), told, rows, 1 / len(partners))
            _add_mapped(values, residual, mapping)

    @torch.inference_mode()
    def _look(self, grey: NDArray[np.float32], residual: NDArray[np.float32], told: list[float], rows: torch.Tensor,
              weight: float) -> None:
        """Adds the weighted residual (N, P, Q) for thick network values (T, P, Q)."""
        precision = pick_precision("auto", self.device)
        slices, width, depth = grey.shape
        planar = self.generator.dims == 2
        # The planes are a batch in 2D and an axis in 3D; both are cut so that a block fits the memory meant for it.
        most = VOXELS[self.generator.dims]
        edge = max(16, most // slices) if planar else max(16, int((most / slices) ** 0.5))
        step = max(1, most // (slices * min(width, edge))) if planar else edge
        for across, wide in _tiles(width, edge, REACH):
            for deep, seen in _tiles(depth, step, 0 if planar else REACH):
                block = _stacked(grey, wide, seen, self.generator.planes) if planar else grey[None, None, :, wide, seen]
                batch = torch.from_numpy(np.ascontiguousarray(block)).to(self.device)
                vector = torch.tensor([told], device=self.device).expand(len(batch), -1)
                with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=precision is torch.bfloat16):
                    made = self.generator(batch, vector, rows)[:, 0].cpu().numpy()
                made = made.transpose(1, 2, 0) if planar else made[0]
                inner = slice(across.start - wide.start, across.stop - wide.start)
                low = slice(deep.start - seen.start, deep.stop - seen.start)
                residual[:, across, deep] += weight * made[:, inner, low]


def _tiles(length: int, edge: int, reach: int) -> Iterator[tuple[slice, slice]]:
    """Cuts an axis into tiles; gives each with what must be seen to compute it."""
    for start in range(0, length, edge):
        stop = min(length, start + edge)
        yield slice(start, stop), slice(max(0, start - reach), min(length, stop + reach))


def _stacked(grey: NDArray[np.float32], wide: slice, planes: slice, seen: int) -> NDArray[np.float32]:
    """Planes with their neighbours, (B, seen, T, P); the outermost one is its own neighbour."""
    offsets = np.arange(seen) - seen // 2
    index = np.clip(np.arange(planes.start, planes.stop)[:, None] + offsets, 0, grey.shape[2] - 1)
    return np.ascontiguousarray(np.moveaxis(grey[:, wide, index], (2, 3), (0, 1)))


def _add_mapped(values: NDArray[np.float32], residual: NDArray[np.float32], mapping: IntensityMap) -> None:
    """Adds a residual in network values to raw values, slope by slope, and loses nothing to the map's clipping."""
    if len(mapping.raw) == 2:
        values += residual * ((mapping.raw[1] - mapping.raw[0]) / (mapping.mapped[1] - mapping.mapped[0]))
        return
    for line, change in zip(values, residual, strict=True):
        before = mapping.forward(line)
        line += (mapping.inverse(before + change) - mapping.inverse(before)).astype(np.float32)
