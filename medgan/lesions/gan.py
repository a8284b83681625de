"""The drawn lesion: a trained generator behind the makers' interface."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from medgan.errors import Refused
from medgan.learning.checkpoints import Run
from medgan.learning.loop import pick_device
from medgan.learning.networks import LesionGenerator
from medgan.learning.tasks.lesion import paint
from medgan.lesions.crops import Grid, encode
from medgan.lesions.makers import levelled
from medgan.lesions.placement import Site
from medgan.lesions.scans import Scan
from medgan.lesions.textures import Textures

#: Slices drawn at once.
BATCH = 16
#: Noise of neighbouring slices is shared over about this many millimetres, so that a lesion hangs together.
COHERENCE_MM = 6.0


class Gan:
    """Draws lesions with a run's generator: slice by slice with coherent noise in 2D, at once in 3D."""

    name = "gan"
    cores = False

    def __init__(self, run: Run, device: str = "auto", *, cluster: int | Literal["donor", "drawn"] = "donor") -> None:
        """Loads the generator.

        Args:
            run: A finished lesion run.
            device: `auto`, `cpu` or `cuda`.
            cluster: The texture cluster of every lesion: that of its donor, drawn as training lesions of its size have
                it, or the one of this number.

        Raises:
            Refused: `RUN_UNFINISHED`, `CKPT_*`, or `CFG_VALUE` for a cluster that the run does not have.
        """
        self.config = run.config
        self.labels = len(run.interface["labels"])
        self.device = pick_device(device)
        generator = run.generator(self.device)
        assert isinstance(generator, LesionGenerator)
        self.generator = generator
        self.textures, self.cluster = Textures.of(run.interface), cluster
        if isinstance(cluster, int) and not 0 <= cluster < max(1, len(self.textures)):
            raise Refused("CFG_VALUE", "cluster", f"the run has {len(self.textures)} texture clusters, counted from 0",
                          "Name one of them")

    def cluster_of(self, site: Site, seed: int) -> int:
        """The texture cluster of a request."""
        if isinstance(self.cluster, int):
            return self.cluster
        if self.cluster == "drawn":
            return self.textures.draw(site.size_mm, np.random.default_rng([seed, 7]))
        return self.textures.of_lesion(site.donor)

    def draw(self, scan: Scan, site: Site, seed: int) -> NDArray[np.float32]:
        """The generator's drawing at the working spacing, brought to the scan's grid as a change of its values.

        The change, not the drawing, is interpolated, so that the scan keeps its own finer detail. Where the texture is
        that of a donor, the contrast is at least the donor's.
        """
        drawn = self._drawn(scan, site, seed)
        return levelled(drawn, scan, site) if self.cluster == "donor" else drawn

    def _drawn(self, scan: Scan, site: Site, seed: int) -> NDArray[np.float32]:
        before = scan.image[(slice(None), *site.box)]
        if self.config.data.dims == 3:
            step = site.spacing_mm / scan.spacing_mm
            grid = Grid(site.centre, step, (self.config.data.crop,) * 3)
            return before + self._change_3d(scan, site, grid, seed)
        change = np.zeros_like(before)
        inside = np.flatnonzero((site.labels > 0).any(axis=(0, 1)))
        drawn = self._changes_2d(scan, site, inside, seed)
        for k in range(before.shape[3]):
            # Slices of the rim above and below the lesion go on with the change of the nearest one that has it.
            change[..., k] = drawn[int(np.abs(inside - k).argmin())]
        return before + change

    def _changes_2d(self, scan: Scan, site: Site, inside: NDArray[np.intp], seed: int) -> list[NDArray[np.float32]]:
        size, step = self.config.data.crop, site.spacing_mm / scan.spacing_mm
        step[2] = 1.0
        rows, grids = [], []
        cluster = self.cluster_of(site, seed)
        for k in inside:
            centre = np.array([site.centre[0], site.centre[1], site.box[2].start + k], float)
            grid = Grid(centre, step, (size, size, 1))
            rows.append(self._row(scan, site, grid, cluster))
            grids.append(grid)
        noise = self._noise(len(rows), COHERENCE_MM / float(scan.spacing_mm[2]), seed)
        changes = []
        for first in range(0, len(rows), BATCH):
            part = slice(first, first + BATCH)
            made = self._paint(rows[part], [level[part] for level in noise])
            for row, image, grid in zip(rows[part], made, grids[part], strict=True):
                box = (*site.box[:2], slice(int(grid.centre[2]), int(grid.centre[2]) + 1))
                change = image - row["image"]
                changes.append(np.stack([grid.back(c[..., None], box)[..., 0] for c in change]))
        return changes

    def _change_3d(self, scan: Scan, site: Site, grid: Grid, seed: int) -> NDArray[np.float32]:
        row = self._row(scan, site, grid, self.cluster_of(site, seed))
        generator = torch.Generator().manual_seed(seed)
        noise = [torch.randn(1, *shape, generator=generator) for shape in self.generator.noise_shapes(grid.shape)]
        change = self._paint([row], noise)[0] - row["image"]
        return np.stack([grid.back(channel, site.box) for channel in change])

    def _row(self, scan: Scan, site: Site, grid: Grid, cluster: int = 0) -> dict[str, NDArray[np.float32]]:
        """What the generator is given for one crop: only the new lesion is in the mask, of a texture cluster."""
        image = np.stack([grid.cut(channel, order=1) for channel in scan.image])
        # Label and weight live in the site's box; the crop is cut from the box with everything else empty.
        inner = Grid(grid.centre - [s.start for s in site.box], grid.step, grid.shape)
        labels = _cut_padded(inner, site.labels, order=0).astype(np.uint8)
        weight = _cut_padded(inner, site.weight, order=1)
        if grid.shape[2] == 1:
            image, labels, weight = image[..., 0], labels[..., 0], weight[..., 0]
        told = encode(labels, self.labels, site.spacing_mm, len(self.textures), cluster)
        return {"image": image.astype(np.float32), "void": weight[None].astype(np.float32), "labels": told.labels,
                "distance": told.distance, "condition": told.condition}

    def _paint(self, rows: list[dict[str, NDArray[np.float32]]], noise: list[torch.Tensor]) -> NDArray[np.float32]:
        """What the generator wants in the void; it is blended by the site's own soft mask, on the scan's grid."""
        batch = {name: torch.from_numpy(np.stack([row[name] for row in rows])).to(self.device) for name in rows[0]}
        # Rows without a lesion may leave the clusters out: all of their condition is 0.
        batch["condition"] = F.pad(batch["condition"],
                                   (0, self.labels + len(self.textures) + 2 - batch["condition"].shape[1]))
        with torch.no_grad():
            made = paint(self.generator, batch, [level.to(self.device) for level in noise], blend=False)
        return made.cpu().numpy()

    def _noise(self, slices: int, coherence: float, seed: int) -> list[torch.Tensor]:
        """Noise for each level (slices, noise, ...): of unit variance in a slice, changing slowly across slices."""
        generator = torch.Generator().manual_seed(seed)
        keep = float(np.exp(-1 / max(coherence, 1e-3)))
        size = (self.config.data.crop,) * 2
        levels: list[Any] = []
        for shape in self.generator.noise_shapes(size):
            fresh = torch.randn(slices, *shape, generator=generator)
            # What varies the lesion as a whole is the same in all of its slices.
            stays = 1.0 if max(shape[1:]) == 1 else keep
            for k in range(1, slices):
                fresh[k] = stays * fresh[k - 1] + (1 - stays**2) ** 0.5 * fresh[k]
            levels.append(fresh)
        return levels


def _cut_padded(grid: Grid, array: NDArray[Any], *, order: int) -> NDArray[Any]:
    """Samples an array on a grid that may reach beyond it; beyond, it is 0."""
    padded = np.pad(array, 1)
    return Grid(grid.centre + 1, grid.step, grid.shape).cut(padded, order=order)
