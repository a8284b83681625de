"""No patient data out: canaries in every kind of DICOM element, searched for in every byte of every output."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import privacy_makers as canary
import pydicom
import pytest
from cli_makers import sets

import medgan
from medgan.datasets.layouts import open_dataset

NAMES = ("CANARYCASE_1", "CANARYCASE_2", "CANARYCASE_3")
#: So short a run draws nothing that could be seen; the gates have tests of their own.
FREE: dict[str, Any] = {"augment.seen": 0, "augment.visibility": -1e9, "augment.sigmas": 1e9}
TINY: dict[str, Any] = {"training.images": 16, "training.batch": 8, "training.report_images": 8, "data.crop": 32,
                        "network.width": 8, "data.crops_per_case": 8, "training.precision": "fp32", **FREE}


@dataclass
class Outputs:
    """What was made of the data, and what was said meanwhile."""

    root: Path
    data: Path
    said: dict[str, str] = field(default_factory=dict)

    @property
    def originals(self) -> set[str]:
        return canary.digests(self.data)


def cli(*arguments: object) -> str:
    """What the command prints on both streams; refusals and skipped cases are no failure here."""
    from medgan import notices
    from medgan.cli import main

    notices.forget()
    told, argv = io.StringIO(), sys.argv
    sys.argv = ["medgan", *map(str, arguments)]
    shown = logging.StreamHandler(told)  # pytest takes the place of what shows warnings otherwise
    logging.getLogger().addHandler(shown)
    try:
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told), contextlib.suppress(SystemExit):
            main()
    finally:
        sys.argv = argv
        logging.getLogger().removeHandler(shown)
    return told.getvalue()


def all_verbs(data: Path, root: Path, hashed: dict[str, Any]) -> Outputs:
    """Every verb once over a data set of masked series."""
    made = Outputs(root, data)
    lesion = ["--modality", "mr", "--seed", 3]
    free, tiny = sets({**FREE, **hashed}), sets({**TINY, **hashed})
    made.said["train"] = cli("train", data, *lesion, "--out", root / "run", *tiny)
    for method in ("paste", "procedural"):
        made.said[method] = cli("augment", data, *lesion, "--method", method, "--out", root / method, *free)
    run, free = root / "run", ["--json", *free]
    made.said["gan"] = cli("augment", data, "--seed", 3, "--model", run, "--out", root / "gan", *free)
    made.said["synthesize"] = cli("synthesize", run, "--count", 2, "--out", root / "synthesized", *free)
    return made


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Outputs:
    root = tmp_path_factory.mktemp("plain")
    return all_verbs(canary.masked_series(tmp_path_factory.mktemp("sets") / "data", NAMES), root, {})


@pytest.fixture(scope="module")
def hashed(tmp_path_factory: pytest.TempPathFactory, plain: Outputs) -> Outputs:
    root = tmp_path_factory.mktemp("hashed")
    made = all_verbs(plain.data, root, {"data.hash_ids": True})
    assert made.originals == plain.originals
    return made


def synthetic_files(made: Outputs) -> Iterator[Path]:
    """The DICOM files that are not copies."""
    from hashlib import sha256

    for path in sorted(made.root.rglob("*.dcm")):
        if sha256(path.read_bytes()).hexdigest() not in made.originals:
            yield path


def test_the_search_finds_what_is_there(plain: Outputs, tmp_path: Path) -> None:
    found = {line.rpartition(": ")[2] for line in canary.leaks(plain.data, canary.CANARIES)}
    assert found == set(canary.CANARIES)  # each canary is in the originals, and is seen there
    assert not canary.leaks(plain.data, canary.CANARIES, plain.originals)
    (tmp_path / "canaryname").mkdir()
    (tmp_path / "canaryname" / "x.nii.gz").write_bytes(b"\x1f\x8b" + b"")
    with contextlib.suppress(EOFError):
        assert canary.leaks(tmp_path, canary.CANARIES)


def test_every_verb_made_what_it_should(plain: Outputs, hashed: Outputs) -> None:
    for made in (plain, hashed):
        there = {path.name for path in made.root.iterdir()}
        assert {"run", "paste", "procedural", "gan", "synthesized"} <= there, made.said
        for out in ("paste", "procedural", "gan", "synthesized"):
            cases = open_dataset(made.root / out).cases
            assert sum(case.synthetic for case in cases) >= 2, (out, made.said)
        assert len(list(synthetic_files(made))) >= 8 * canary.SHAPE[2]


def test_nothing_of_a_patient_gets_out(plain: Outputs, hashed: Outputs) -> None:
    for made in (plain, hashed):
        assert canary.leaks(made.root, canary.CANARIES, made.originals) == []
        for verb, said in made.said.items():
            assert not [text for text in canary.CANARIES if text.lower() in said.lower()], (verb, said)


def test_ids_are_kept_unless_they_are_hashed_and_it_is_said(plain: Outputs, hashed: Outputs) -> None:
    named = canary.leaks(plain.root, NAMES, plain.originals)
    assert any("paste" in line for line in named) and any("gan" in line for line in named)
    assert canary.leaks(hashed.root, NAMES, hashed.originals) == []
    for made, word in ((plain, "kept"), (hashed, "hashed")):
        assert f"are {word}" in made.said["paste"]
        assert f"are {word}" in (made.root / "paste" / "DATA_CARD.md").read_text()
        assert json.loads(made.said["gan"][made.said["gan"].index("{") :])["hashed_ids"] is (word == "hashed")
    # What is odd about a file is told with its path, on the user's own terminal.
    told = "\n".join(line for said in hashed.said.values() for line in said.splitlines() if "warning[" not in line)
    assert not any(name in told for name in NAMES)


def test_hashed_ids_hang_together(plain: Outputs, hashed: Outputs) -> None:
    from medgan.datasets.hashing import hashed_case

    with (hashed.root / "paste" / "augmentation.csv").open() as file:
        rows = list(csv.DictReader(file))
    real = {row["id"] for row in rows if row["origin"] == "real"}
    assert real == {hashed_case(case.id) for case in open_dataset(plain.data).cases}
    assert all(row["parents"] in real for row in rows if row["origin"] == "paste")
    opened = open_dataset(hashed.root / "paste")
    patients = {case.patient for case in opened.cases if not case.synthetic}
    assert all(case.patient in patients for case in opened.cases if case.synthetic)
    # The same work under other names.
    for file in (plain.root / "run", hashed.root / "run"):
        assert (file / "weights.safetensors").is_file()
    one, other = (json.loads((made.root / "run" / "config.json").read_text())["dataset"] for made in (plain, hashed))
    assert one["fingerprint"] == other["fingerprint"]


def test_synthetic_series_say_that_they_are(plain: Outputs) -> None:
    for path in synthetic_files(plain):
        item = pydicom.dcmread(path)
        assert item.SyntheticData == "YES" and item.ImageType[:2] == ["DERIVED", "SECONDARY"]
        assert item.ContentQualification == "RESEARCH" and "NOT FOR DIAGNOSIS" in item.SeriesDescription
        assert item.ContributingEquipmentSequence[0].PurposeOfReferenceCodeSequence[0].CodeValue == "109100"
        assert item.PatientName == "SYNTHETIC^MEDGAN" and not any(element.tag.is_private for element in item.iterall())


def test_text_in_the_pixels_is_warned_of(plain: Outputs) -> None:
    assert "BURNED_IN_ANNOTATION" in plain.said["paste"]
    assert "BURNED_IN_ANNOTATION" in (plain.root / "paste" / "DATA_CARD.md").read_text()
    for path in (plain.root / "paste").rglob("*.provenance.json"):
        assert "BURNED_IN_ANNOTATION" in json.loads(path.read_text())["parent_notes"]


def test_a_derived_series_keeps_its_patient_and_nothing_else(plain: Outputs, tmp_path: Path) -> None:
    series, mask = plain.data / NAMES[0] / "series", plain.data / NAMES[0] / "label.nii.gz"
    said = cli("upsample", series, tmp_path / "fine", "--method", "linear", "--factor", 2)
    said += cli("fill", series, mask, tmp_path / "filled")
    said += cli("upsample", series, tmp_path / "fine.nii.gz", "--method", "linear", "--factor", 2)
    assert len(list(tmp_path.rglob("*.dcm"))) >= 2 * canary.SHAPE[2], said
    assert canary.leaks(tmp_path, canary.NEVER) == []
    assert not canary.leaks(tmp_path / "fine.nii.gz", canary.CANARIES)
    assert not [text for text in canary.CANARIES if text.lower() in said.lower()]
    for path in tmp_path.rglob("*.dcm"):
        item = pydicom.dcmread(path)
        assert item.PatientID == "CANARYID1" and item.SyntheticData == "YES" and "DERIVED" in item.SeriesDescription
        assert not any(element.tag.is_private for element in item.iterall())


def test_inspection_and_refusals_name_files_and_no_patient(plain: Outputs, tmp_path: Path) -> None:
    values, _ = canary.scan(1)
    odd = canary.save(canary.instances(1, values)[:4] + canary.instances(1, values)[6:], tmp_path / "hole")
    said = cli("inspect", plain.data, "--json") + cli("inspect", plain.data / NAMES[0] / "series") + cli("inspect", odd)
    said += cli("upsample", odd, tmp_path / "out") + cli("inspect", odd, "--json")
    assert "GEOM_MISSING_SLICE" in said and "PHI_NOT_COPIED" in said
    assert not [text for text in canary.CANARIES if text.lower() in said.lower()]


def test_a_crash_shows_no_values(plain: Outputs) -> None:
    import subprocess

    program = ("import sys, pydicom, medgan.imaging.dicom as dicom\n"
               "def read(path, *_, **__):\n"
               "    held = [pydicom.dcmread(each) for each in sorted(path.iterdir())]\n"
               "    raise KeyError('a bug')\n"
               "dicom.read_series = read\n"
               "from medgan.cli import main\n"
               f"sys.argv = ['medgan', 'inspect', {str(plain.data / NAMES[0] / 'series')!r}]\n"
               "main()\n")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and "a bug" in done.stderr
    assert not [text for text in canary.CANARIES if text.lower() in (done.stdout + done.stderr).lower()]


def test_class_folders_of_series_and_their_evaluation(tmp_path: Path) -> None:
    names = tuple(f"CANARYCASE_{number:02d}" for number in range(1, 29))
    data = canary.classed_series(tmp_path / "data", names)
    whole = {**TINY, "data.dims": 2, "data.hash_ids": True}
    out = tmp_path / "made"
    medgan.train(data, modality="mr", task="image", out=out / "run", settings=whole)
    medgan.augment(data, modality="mr", model=out / "run", out=out / "x2")
    medgan.synthesize(out / "run", 2, out=out / "synthesized")
    few = {"evaluate.seeds": 1, "evaluate.resamples": 100, "evaluate.steps": 2, "evaluate.size": 16}
    said = cli("evaluate", data, out / "x2", "--out", out / "evaluation", "--modality", "mr", *sets(few))
    assert (out / "evaluation" / "report.html").is_file(), said
    assert not [text for text in canary.CANARIES if text.lower() in said.lower()]
    originals = canary.digests(data)
    assert sum(case.synthetic for case in open_dataset(out / "x2").cases) == len(names)
    assert canary.leaks(out, (*canary.CANARIES, *names), originals) == []
