"""The data set layouts medgan reads and writes back, and opening a data set whichever of them it has."""

from __future__ import annotations

import os
from pathlib import Path

from medgan.datasets.cases import Dataset
from medgan.datasets.layout_base import Layout
from medgan.datasets.layout_npz import Npz
from medgan.datasets.layouts_bids import Bids
from medgan.datasets.layouts_folders import ClassFolders, DicomSeries, Images, Pairs
from medgan.datasets.layouts_nifti import Decathlon, NnUNet
from medgan.datasets.layouts_tables import Manifest
from medgan.datasets.tables import read_json
from medgan.errors import Refused

#: Name -> layout, in the order in which they are tried: what describes itself comes before what must be guessed.
LAYOUTS: dict[str, Layout] = {
    "nnunet": NnUNet(),
    "decathlon": Decathlon(),
    "bids": Bids(),
    "manifest": Manifest(),
    "npz": Npz(),
    "pairs": Pairs(),
    "dicom": DicomSeries(),
    "classes": ClassFolders(),
    "images": Images(),
}


def open_dataset(root: str | Path) -> Dataset:
    """Opens a data set of any known layout; no voxel of an image is read.

    Args:
        root: A folder, a `.csv` manifest, a MedMNIST-style `.npz`, or a `dataset.json`.

    Raises:
        Refused: `FILE_MISSING`, `DATASET_UNKNOWN` (naming what was looked for), `DATASET_*`, `TAB_*`, `LABEL_MISSING`,
            `SPLIT_LEAK` or `CFG_UNSAFE`.
    """
    root = Path(root)
    if "\0" in str(root) or not root.exists():
        raise Refused("FILE_MISSING", root, "there is no such folder or file", "Check the path")
    if root.name in ("", ".."):
        root = Path(os.path.abspath(root))  # "." has no name to call the data set by
    if (root / "config.json").is_file() and (root / "log.jsonl").is_file():
        raise Refused("DATASET_UNKNOWN", root, "it is a run folder, not a data set",
                      "Name the data set; a run is given with --model")
    for layout in LAYOUTS.values():
        if layout.detect(root):
            return layout.open(root)
    description = root if root.suffix == ".json" else root / "dataset.json"
    if description.is_file():
        read_json(description)  # says first what is wrong with it as JSON
        raise Refused("DATASET_JSON", description, "it has neither channel_names (nnU-Net) nor training (Decathlon)",
                      "Complete it; docs/formats.md shows both")
    looked = "; ".join(layout.looked_for for layout in LAYOUTS.values())
    raise Refused("DATASET_UNKNOWN", root, f"no known layout was found. Looked for: {looked}",
                  "Bring the data into one of these layouts (docs/formats.md), or name the files in a manifest.csv")
