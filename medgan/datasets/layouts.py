"""The data set layouts medgan reads and writes back, and opening a data set whichever of them it has."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from medgan.datasets.cards import CARD, PLAN
from medgan.datasets.cases import Dataset
from medgan.datasets.layout_base import Layout
from medgan.datasets.layout_npz import Npz
from medgan.datasets.layouts_bids import Bids
from medgan.datasets.layouts_folders import ClassFolders, DicomSeries, Images, Pairs
from medgan.datasets.layouts_nifti import Decathlon, NnUNet
from medgan.datasets.layouts_tables import Manifest
from medgan.datasets.tables import read_json
from medgan.errors import Refused
from medgan.imaging.archives import refuse_unsafe
from medgan.imaging.checks import first_bytes
from medgan.imaging.rules import DEFAULT_RULES, Rules
from medgan.notices import tell

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


def open_dataset(root: str | Path, rules: Rules = DEFAULT_RULES) -> Dataset:
    """Opens a data set of any known layout; no voxel of an image is read.

    Args:
        root: A folder, a `.csv` manifest, a MedMNIST-style `.npz`, or a `dataset.json`.
        rules: How its images will be read; `Rules.of(config.data)` is as the settings say.

    Raises:
        Refused: `FILE_MISSING`, `DATASET_UNKNOWN` (naming what was looked for), `DATASET_*`, `TAB_*`, `LABEL_MISSING`,
            `SPLIT_LEAK`, `CFG_UNSAFE`, `CKPT_UNSAFE`, `ARCHIVE_ESCAPE` or `FILE_*`.
    """
    root = Path(root)
    if "\0" in str(root) or not root.exists():
        raise Refused("FILE_MISSING", root, "there is no such folder or file", "Check the path")
    if root.name in ("", ".."):
        root = Path(os.path.abspath(root))  # "." has no name to call the data set by
    if (root / "config.json").is_file() and (root / "log.jsonl").is_file():
        raise Refused("DATASET_UNKNOWN", root, "it is a run folder, not a data set",
                      "Name the data set; a run is given with --model")
    if (root / PLAN).is_file() and not (root / CARD).is_file():
        raise Refused("DATASET_UNFINISHED", root, "medgan augment has not finished it, so a synthetic image may lie "
                      "there without the record that says it is one", "Give the same command again: it goes on")
    if root.is_file() and root.suffix.lower() not in (".npz", ".csv", ".json"):
        refuse_unsafe(root, first_bytes(root))
    for layout in LAYOUTS.values():
        if layout.detect(root):
            dataset = replace(layout.open(root, rules), rules=rules)
            tell(dataset.notes)
            return dataset
    description = root if root.suffix == ".json" else root / "dataset.json"
    if description.is_file():
        read_json(description)  # says first what is wrong with it as JSON
        raise Refused("DATASET_JSON", description, "it has neither channel_names (nnU-Net) nor training (Decathlon)",
                      "Complete it; docs/formats.md shows both")
    looked = "; ".join(layout.looked_for for layout in LAYOUTS.values())
    raise Refused("DATASET_UNKNOWN", root, f"no known layout was found. Looked for: {looked}",
                  "Bring the data into one of these layouts (docs/formats.md), or name the files in a manifest.csv")
