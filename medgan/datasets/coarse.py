"""A data set on coarser grids, for trials that need many volumes quickly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from medgan.datasets.cases import Dataset
from medgan.datasets.paths import safe_name
from medgan.datasets.splits import patient_key
from medgan.imaging import files
from medgan.imaging.geometry import reorient, resample
from medgan.imaging.volume import Volume
from medgan.storage import write_json

#: In-plane edge of the coarser volumes, in voxels: a head at 2 mm.
EDGE = 128
#: A grid that would become coarser by less than this factor stays as it is.
WORTH = 1.25


def coarse(dataset: Dataset, out: Path) -> Dataset:
    """The data set with its 3D volumes on grids of about `EDGE` voxels in the plane; 2D images stay as they are.

    No axis becomes finer. Axes that are coarse already, such as thick slices, are left alone. Cases are called by their
    number and id, as their files are; patients stay.

    Args:
        dataset: Any layout.
        out: Where the coarser volumes go, as NIfTI files; nothing is written where all stay as they are.

    Raises:
        Refused: What reading refuses.
    """
    if not dataset.cases or dataset.load(dataset.cases[0])[0].dims == 2:
        return dataset
    cases, modality = [], dataset.modality
    for number, case in enumerate(dataset.cases):
        image, mask = dataset.load(case)
        modality = modality or image.modality
        spacing = _spacing(image)
        name = f"{number:04d}-{safe_name(case.id)}"
        image = _resampled(image, spacing, order=1)
        paths = []
        for channel, values in enumerate(image.array):
            paths.append(out / "imagesTr" / f"{name}_{channel:04d}.nii")
            files.write(replace(image, array=values[None]), paths[-1])
        there = None
        if mask is not None:
            there = out / "labelsTr" / f"{name}.nii"
            files.write(_resampled(mask, spacing, order=0), there)
        cases.append(replace(case, id=name, patient=patient_key(case), images=tuple(paths), mask=there))
    described = {"name": dataset.name, "modality": modality or "", "file_ending": ".nii",
                 "channel_names": {str(n): channel for n, channel in enumerate(dataset.channels)},
                 "labels": {"background": 0} | {name: value for value, name in dataset.labels.items() if value}}
    write_json(out / "dataset.json", described)
    return replace(dataset, root=out, layout="nnunet", cases=tuple(cases), info=described)


def _spacing(volume: Volume) -> list[float]:
    """Spacing of the axes of the volume in RAS order; the first two lie in the plane."""
    turned = reorient(volume)
    own = np.array(turned.spacing_mm)
    wanted = float((own * turned.shape)[:2].max()) / EDGE
    return [wanted if wanted > WORTH * step else float(step) for step in own]


def _resampled(volume: Volume, spacing: Sequence[float], *, order: int) -> Volume:
    turned = reorient(volume)
    return turned if list(turned.spacing_mm) == list(spacing) else resample(turned, spacing, order=order)
