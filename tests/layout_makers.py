"""What the tests of layouts share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medgan.datasets.cases import Case, Dataset
from medgan.datasets.layouts import LAYOUTS
from medgan.datasets.provenance import Provenance
from medgan.errors import Refused


def add_one(dataset: Dataset, out: Path, *, records: bool = True) -> tuple[list[Case], Case]:
    """Writes the originals and one synthetic case, a parent with its values turned round, into `out`."""
    layout = LAYOUTS[dataset.layout]
    placed = [layout.place(out, dataset, case) for case in dataset.cases]
    for case, there in zip(dataset.cases, placed, strict=True):
        layout.copy(case, there)
    parent = dataset.split("train")[0]
    new = layout.place(out, dataset, replace(parent, id=f"{parent.id}_syn0001"))
    image, mask = dataset.load(parent)
    made = image.with_array(image.array.max() - image.array.astype(np.float32))
    record = Provenance(new.id, (parent.id,), parent.patient, parent.label, 7, "model", "abc", "gan")
    layout.save(dataset, new, made, mask, parent, provenance=record)
    if records:
        record.write(layout.sidecar(new))
    layout.finish(out, dataset, [*placed, new])
    return placed, new


def codes(caught: pytest.ExceptionInfo[Refused]) -> str:
    return caught.value.code
