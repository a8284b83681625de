"""What is recorded of every synthetic case, as JSON beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medgan.datasets.tables import read_json
from medgan.errors import Note, Refused
from medgan.storage import write_json

NOTICE = "This image was made or altered by medgan: it is synthetic and not for diagnosis."

#: Codes of notes on a parent that hold for what is made of it: values or places are not as stored, or were assumed.
HANDED_ON = ("GEOM_RESAMPLED", "GEOM_NO_SPACING", "GEOM_NO_ORIENTATION", "GEOM_UNITS", "SPACING_FROM_POSITIONS",
             "PADDING_MASKED", "MONOCHROME1_INVERTED", "NO_RESCALE_ASSUMED_IDENTITY", "PIX_PRECISION_LOSS",
             "BURNED_IN_ANNOTATION")


def handed_on(notes: Iterable[Note]) -> tuple[str, ...]:
    """The codes of those notes on parents that hold for a synthetic case too, in the order of `HANDED_ON`."""
    found = {note.code for note in notes}
    return tuple(code for code in HANDED_ON if code in found)


@dataclass(frozen=True)
class Lesion:
    """One lesion that was put into a synthetic case.

    Args:
        label: Its mask label.
        centre_mm: Its centre in RAS+ millimetres.
        size_mm: Its extent: the diameter of the ball, or disc, of the same volume.
        voxels: How many voxels of the mask it covers.
        donor: The case a pasted lesion was cut from, if any.
    """

    label: str
    centre_mm: tuple[float, ...]
    size_mm: float
    voxels: int
    donor: str | None = None


@dataclass(frozen=True)
class Provenance:
    """Where a synthetic case comes from. Holds no clock time, so the same seed gives the same bytes.

    Args:
        id: The synthetic case's id.
        parents: Ids of the real cases it was made from.
        patient: The patient of the parent: splits must keep both together.
        label: What was asked for: a lesion label or a class.
        seed: The seed of this case.
        model: Name of the model, or an empty string where no model was used.
        model_hash: Hash of the model's weights.
        method: `gan`, `paste`, `procedural`, ...
        lesions: The lesions put in.
        gates: Scores of the checks it passed.
        settings: How it was made, where that can be chosen anew for each call.
        parent_notes: Codes of what was odd about its parents, or about the case whose grid it has, and holds for it.
    """

    id: str
    parents: tuple[str, ...]
    patient: str
    label: str | None
    seed: int
    model: str
    model_hash: str
    method: str
    lesions: tuple[Lesion, ...] = ()
    gates: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, float] = field(default_factory=dict)
    parent_notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The record as plain JSON values."""
        from importlib.metadata import PackageNotFoundError, version

        try:
            installed = version("medgan")
        except PackageNotFoundError:  # run from a checkout that was never installed
            installed = "unknown"
        return {
            "synthetic": True,
            "notice": NOTICE,
            "id": self.id,
            "parents": list(self.parents),
            "patient": self.patient,
            "label": self.label,
            "seed": int(self.seed),
            "model": {"name": self.model, "hash": self.model_hash},
            "method": self.method,
            "medgan": installed,
            "lesions": [
                {
                    "class": lesion.label,
                    "centre_mm": [round(float(x), 3) for x in lesion.centre_mm],
                    "size_mm": round(float(lesion.size_mm), 3),
                    "voxels": int(lesion.voxels),
                    "donor": lesion.donor,
                }
                for lesion in self.lesions
            ],
            "gates": {name: float(score) for name, score in sorted(self.gates.items())},
            **({"settings": {name: float(value) for name, value in sorted(self.settings.items())}}
               if self.settings else {}),
            **({"parent_notes": list(self.parent_notes)} if self.parent_notes else {}),
        }

    def write(self, path: Path) -> None:
        """Writes the record atomically."""
        write_json(path, self.as_json())

    @classmethod
    def read(cls, path: Path) -> Provenance:
        """Reads a record that `write` wrote.

        Raises:
            Refused: `TAB_BAD_JSON` when it is no such record.
        """
        data = read_json(path)
        try:
            if data["synthetic"] is not True:
                raise ValueError("it is not marked synthetic")
            return cls(
                id=str(data["id"]),
                parents=tuple(str(parent) for parent in data["parents"]),
                patient=str(data["patient"]),
                label=None if data["label"] is None else str(data["label"]),
                seed=int(data["seed"]),
                model=str(data["model"]["name"]),
                model_hash=str(data["model"]["hash"]),
                method=str(data["method"]),
                lesions=tuple(
                    Lesion(str(each["class"]), tuple(float(x) for x in each["centre_mm"]), float(each["size_mm"]),
                           int(each["voxels"]), None if each["donor"] is None else str(each["donor"]))
                    for each in data["lesions"]
                ),
                gates={str(name): float(score) for name, score in data["gates"].items()},
                settings={str(name): float(value) for name, value in data.get("settings", {}).items()},
                parent_notes=tuple(str(code) for code in data.get("parent_notes", ())),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Refused("TAB_BAD_JSON", path, f"it is not a medgan provenance record ({error!r})",
                          "Remove it, or make the synthetic case again") from None


def read_if_synthetic(path: Path) -> Provenance | None:
    """The record at `path`, or None where there is none or the file is another kind of side-car."""
    if not path.is_file():
        return None
    if read_json(path).get("synthetic") is not True:
        return None
    return Provenance.read(path)
