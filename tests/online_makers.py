"""Small data sets and what is made of them online."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from monai.transforms import (
    LoadImaged,
)

import medgan
from medgan.datasets.cases import Dataset
from medgan.datasets.layouts import open_dataset
from medgan.transforms import RandSyntheticLesiond

KEYS = ("image", "label")
#: Lesions are found wherever there is a place: what is judged here is not how they look.
EASY = {"augment.visibility": -1e9, "augment.sigmas": 1e9, "augment.lesions_per_case": [1, 2], "augment.tries": 3}


def online(root: Path | Dataset, **options: Any) -> medgan.OnlineLesions:
    given = {"method": "paste", "modality": "mr", "settings": EASY, "seed": 4, "share": 1.0} | options
    return medgan.OnlineLesions(given.pop("run", None), root, **given)


def transform(root: Path | Dataset, **options: Any) -> RandSyntheticLesiond:
    given = {"method": "paste", "modality": "mr", "settings": EASY, "prob": 1.0} | options
    return RandSyntheticLesiond(dataset=root, **given).set_random_state(2)


def files(root: Path, number: int = 0) -> dict[str, str]:
    case = open_dataset(root).cases[number]
    return {"image": str(case.images[0]), "label": str(case.mask)}


def load(root: Path, number: int = 0) -> dict[str, Any]:
    return dict(LoadImaged(keys=KEYS, ensure_channel_first=True)(files(root, number)))


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(torch.equal(one[key].as_tensor(), other[key].as_tensor()) for key in KEYS)
