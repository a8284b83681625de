"""medgan in a MONAI `Compose`: dictionary transforms over the verbs."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import ensure_tuple

from medgan.errors import Refused
from medgan.imaging.convert import is_bare, to_volume
from medgan.imaging.geometry import same_grid
from medgan.imaging.labels import refine_labels
from medgan.imaging.restoration import acquisitions
from medgan.imaging.slices import Acquisition, Profile
from medgan.imaging.volume import Volume
from medgan.verbs.upsample import Method, UpsampleReport, check_options, upsample


class Upsampled(MapTransform):  # type: ignore[misc]  # MONAI is untyped
    """Makes the voxels of scans smaller, as `medgan.upsample` does, and brings their label maps along.

    Example:
        >>> from monai.transforms import Compose, LoadImaged
        >>> from medgan.transforms import Upsampled
        >>> pipeline = Compose([
        ...     LoadImaged(keys=("image", "label"), ensure_channel_first=True),
        ...     Upsampled(keys=("image",), label_keys=("label",), spacing=(1, 1, 1)),
        ... ])
        >>> case = pipeline({"image": "scan.nii.gz", "label": "mask.nii.gz"})

    It belongs right behind the reader, before anything that crops, turns or scales: it expects the grid and the
    values that the scanner made. With a `CacheDataset` or `PersistentDataset` each scan is done once.

    Args:
        keys: Scans, (C, X, Y, Z): a `MetaTensor` with its affine, or a tensor or array with `input_spacing`.
        label_keys: Label maps on the grid of the first of `keys`, of whole numbers in any dtype. No mixed value
            comes out.
        spacing: The spacing wanted, in mm; with neither `spacing` nor `factor`, as for `medgan.upsample`.
        factor: How many times finer, instead of `spacing`.
        profile: As for `medgan.upsample`, and so are the following.
        thickness: In mm.
        method: `network` or `linear`.
        adapt: Train on each scan's own detail first.
        sharpness: 0, truest, to 1, sharpest.
        model: A run folder.
        device: Where the network runs; the result lies where the input did.
        seed: Of the adaptation.
        input_spacing: Voxel spacing of bare tensors and arrays, in mm.
        allow_missing_keys: Pass over keys that a case does not have.

    Raises:
        Refused: As `medgan.upsample`; `GEOM_NO_SPACING` for a bare tensor without `input_spacing`, `LABEL_*` for
            labels that do not belong to the scan. Within a `Compose`, MONAI wraps it in a `RuntimeError`.
    """

    def __init__(
        self, keys: KeysCollection = ("image",), label_keys: KeysCollection = (), *,
        spacing: Sequence[float] | float | None = None, factor: Sequence[float] | float | None = None,
        profile: Profile | Literal["auto"] = "auto", thickness: float | None = None, method: Method = "network",
        adapt: bool = False, sharpness: float = 0.0, model: str | Path | None = None, device: str = "auto",
        seed: int = 0, input_spacing: Sequence[float] | None = None, allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        check_options(profile=profile, method=method, model=model, adapt=adapt, sharpness=sharpness,
                      thickness=thickness, device=device)
        self.label_keys: tuple[Hashable, ...] = ensure_tuple(label_keys)
        self.input_spacing = input_spacing
        self.options: dict[str, Any] = {
            "spacing": spacing, "factor": factor, "profile": profile, "thickness": thickness, "method": method,
            "adapt": adapt, "sharpness": sharpness, "model": model, "device": device, "seed": seed,
        }  # fmt: skip

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """Upsamples one case.

        Args:
            data: Key -> (C, X, Y, Z).

        Returns:
            A new dictionary with the same kinds of images on finer grids.
        """
        result = dict(data)
        grid: tuple[Volume, tuple[Acquisition, ...]] | None = None
        for key in self.key_iterator(result):
            image = self._volume(result[key], str(key))
            result[key], report = self._upsampled(result[key])
            grid = grid or (image, acquisitions(image, report.factors, report.profile, None))
        for key in self.label_keys:
            if key not in result and self.allow_missing_keys:
                continue
            if key not in result or grid is None:
                raise KeyError(f"{key!r} cannot be up-sampled: {'it' if grid else 'its image'} is not in the data")
            result[key] = self._labels(result[key], str(key), *grid)
        return result

    def _upsampled(self, image: Any) -> tuple[Any, UpsampleReport]:
        made, report = upsample(image, report=True, maps=False, input_spacing=self.input_spacing, **self.options)
        for text in report.warnings:
            warnings.warn(text, stacklevel=3)
        return made, report

    def _volume(self, image: Any, key: str) -> Volume:
        if is_bare(image) and self.input_spacing is None:
            raise Refused("GEOM_NO_SPACING", key, "a plain tensor or array does not know its voxel spacing",
                          "Give input_spacing=(x, y, z) in mm, or load it as a MetaTensor")
        return to_volume(image, spacing_mm=self.input_spacing)[0]

    def _labels(self, labels: Any, key: str, image: Volume, scans: Sequence[Acquisition]) -> Any:
        spacing = self.input_spacing if self.input_spacing is not None else image.spacing_mm
        mask, back = to_volume(labels, spacing_mm=spacing)
        if not same_grid(mask, image):
            raise Refused("LABEL_GRID", key, f"the labels ({mask.shape}, {mask.orientation}) do not lie on the grid of "
                          f"the image ({image.shape}, {image.orientation})",
                          "Bring both onto one grid first, with nearest-neighbour interpolation for the labels")
        return back(refine_labels(replace(mask, source=Path(key)), scans))
