"""A real DICOM server takes what medgan writes and gives it back equal; the lines of docs/pacs.md do it.

Orthanc runs on the loopback of a network namespace made for it: nothing outside can reach it, nor it anything outside.
`make system` installs it; where it or the namespace is missing these tests skip and say so.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from class_makers import image_run

import medgan
from medgan.datasets.phantoms import phantom
from medgan.imaging import files
from medgan.imaging.dicom_write import write_synthetic
from medgan.imaging.volume import Volume

ROOT = Path(__file__).parents[1]
MANUAL = ROOT / "docs" / "pacs.md"
SHAPE = (32, 32, 12)
#: Importing torch, making the series and the server's start take some ten seconds.
pytestmark = pytest.mark.slow
#: What the parents say of their patient; it may reach a derived series' patient module and nothing synthetic.
PATIENT, HOSPITAL = "Cänary^Zoë", "CANARY Hospital"


def real(image: Volume, folder: Path, patient: str) -> Path:
    """A scan of an identified patient, as a hospital has it: it does not say that it is synthetic."""
    for path in write_synthetic(image, folder, model_hash="", seed=0, derivation=""):
        item = pydicom.dcmread(path)
        item.PatientName, item.PatientID, item.InstitutionName = PATIENT, patient, HOSPITAL
        item.PatientBirthDate, item.PatientSex, item.StudyDate = "19600101", "F", "20240102"
        item.SeriesDescription, item.ImageType = "t1 tra", ["ORIGINAL", "PRIMARY", *list(item.ImageType)[2:]]
        for keyword in ("SyntheticData", "ContributingEquipmentSequence", "DerivationDescription",
                        "ContentQualification"):
            delattr(item, keyword)
        item.save_as(path)
    return folder


def augmented(root: Path) -> Path:
    """CT lesions, filled classes of radiographs, up-sampled MR, filled CT and ultrasound, below `augmented`."""
    for index in range(2):
        image, mask = phantom("ct", index, shape=SHAPE)
        files.write(mask, real(image, root / "ct" / f"patient{index}", f"CANARY-CT{index}") / "mask.nii.gz")
    for index in range(4):
        flat, _ = phantom("xray", index, dims=2, shape=(24, 28))
        folder = real(flat, root / "films" / f"{index}", f"CANARY-X{index}")
        (root / "xray" / f"class{index % 2}").mkdir(parents=True, exist_ok=True)
        (folder / "00001.dcm").rename(root / "xray" / f"class{index % 2}" / f"film{index}.dcm")
    out = medgan.augment(root / "ct", factor=2, out=root / "augmented", method="paste", modality="ct",
                         settings={"augment.seen": 0, "augment.visibility": -1e9}).out
    run = image_run(root / "xray", root / "run", "xray")
    medgan.augment(root / "xray", factor=2, model=run, modality="xray", out=out / "radiographs")
    thick, _ = phantom("mr", 7, shape=SHAPE)
    real(thick, root / "mr", "CANARY-MR")
    from medgan.verbs.fill import fill_file
    from medgan.verbs.upsample import upsample_file

    upsample_file(root / "mr", out / "sharp", factor=(1, 1, 2), method="linear")
    fill_file(root / "ct" / "patient0", root / "ct" / "patient0" / "mask.nii.gz", out / "filled", method="smooth")
    echo = np.random.default_rng(3).integers(0, 256, (1, 20, 24)).astype(np.uint8)
    write_synthetic(Volume(echo, np.diag([0.3, 0.3, 1, 1]), "us"), out / "ultrasound", model_hash="sha256:0", seed=1,
                    derivation="noise")
    return out


@cache
def namespace() -> list[str] | None:
    """The command that runs another one in a network of its own, if there is one; its children end with it."""
    for user in (["--map-root-user"], []):
        command = ["unshare", *user, "--net", "--pid", "--fork", "--kill-child"]
        try:
            if subprocess.run([*command, "true"], capture_output=True, timeout=30).returncode == 0:
                return command
        except (OSError, subprocess.TimeoutExpired):
            return None
    return None


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder in which one whole session was held, and what it told."""
    pytest.importorskip("pynetdicom")
    server = shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if server is None:
        pytest.skip("no Orthanc on this machine: nothing is sent to a DICOM server (make system)")
    if (command := namespace()) is None:
        pytest.skip("no network namespaces on this machine: Orthanc would have to listen on the real loopback")
    root = tmp_path_factory.mktemp("pacs")
    augmented(root)
    program = [sys.executable, str(ROOT / "tests" / "pacs_session.py"), str(root), str(MANUAL), server]
    done = subprocess.run([*command, *program], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return root, json.loads(done.stdout)


def by_uid(folder: Path) -> dict[str, Path]:
    """Every DICOM file below a folder under its SOP Instance UID."""
    found = {str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID): path for path in folder.rglob("*.dcm")}
    assert found
    return found


def sent(root: Path) -> dict[str, Path]:
    """What should have been sent: files that say that they are synthetic."""
    return {uid: path for uid, path in by_uid(root / "augmented").items()
            if pydicom.dcmread(path, stop_before_pixels=True).get("SyntheticData") == "YES"}


def elements(path: Path) -> dict[int, Any]:
    """Tag -> VR and value of everything but the file's own group 2 and lengths of groups."""
    return {int(item.tag): (item.VR, item.value) for item in pydicom.dcmread(path) if item.tag.element != 0}


def test_the_server_answers_those_it_knows_and_takes_everything(session: tuple[Path, dict[str, Any]]) -> None:
    root, told = session
    assert told["echo"] and not told["stranger"]
    assert len(told["statuses"]) == len(sent(root)) > 40 and set(told["statuses"]) == {0x0000}
    assert told["printed"][0] == f"{len(sent(root))} of {len(sent(root))} stored"
    assert all(line.endswith(" 0x0") for line in told["printed"][1:])
    assert all(each["code"] == 0 for each in told["shell"]), told["shell"]
    assert len(told["shell"]) == 3 and "PatientID" in told["shell"][-1]["said"]


def test_what_comes_back_is_what_was_sent(session: tuple[Path, dict[str, Any]]) -> None:
    root, told = session
    outward = sent(root)
    for way in ("fetched", "moved"):
        back = by_uid(root / way)
        assert back.keys() == outward.keys()
        for uid, path in outward.items():
            before, after = elements(path), elements(back[uid])
            assert before.keys() == after.keys()
            assert [hex(tag) for tag in before if before[tag] != after[tag]] == []
            assert pydicom.dcmread(back[uid]).file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
    assert told["moved"] and all(each == {"status": 0, "failed": 0, "warned": 0} for each in told["moved"])


def test_a_fetched_series_reads_as_the_one_that_was_sent(session: tuple[Path, dict[str, Any]]) -> None:
    root, _ = session
    outward = sent(root)
    folders = sorted(path for path in (root / "fetched").iterdir())
    kinds = set()
    for folder in folders:
        first = pydicom.dcmread(min(folder.glob("*.dcm")), stop_before_pixels=True)
        source = outward[str(first.SOPInstanceUID)]
        before, after = medgan.read(source.parent), medgan.read(folder)
        assert before.array.dtype == after.array.dtype and before.modality == after.modality
        np.testing.assert_array_equal(before.array, after.array)
        np.testing.assert_array_equal(before.affine, after.affine)
        assert first.SyntheticData == "YES" and "NOT FOR DIAGNOSIS" in first.SeriesDescription
        kinds.add((str(first.SOPClassUID.keyword), str(first.Modality)))
    assert kinds == {("CTImageStorage", "CT"), ("MRImageStorage", "MR"), ("ComputedRadiographyImageStorage", "CR"),
                     ("SecondaryCaptureImageStorage", "US")}


def test_the_archive_holds_no_original_and_derived_series_stay_with_their_patient(
        session: tuple[Path, dict[str, Any]]) -> None:
    root, told = session
    patients = {series["SeriesInstanceUID"]: series for series in told["found"]}
    mr = pydicom.dcmread(min((root / "mr").glob("*.dcm")), stop_before_pixels=True)
    ct = pydicom.dcmread(min((root / "ct" / "patient0").glob("*.dcm")), stop_before_pixels=True)
    assert {each["PatientID"] for each in patients.values()} == {"MEDGAN-SYNTHETIC", "CANARY-MR", "CANARY-CT0"}
    assert not {str(mr.SeriesInstanceUID), str(ct.SeriesInstanceUID)} & patients.keys()
    for series in patients.values():
        if series["PatientID"] == "MEDGAN-SYNTHETIC":
            assert series["PatientName"] == "SYNTHETIC^MEDGAN"
            assert series["SeriesDescription"] == "SYNTHETIC - medgan - NOT FOR DIAGNOSIS"
        else:
            source = mr if series["PatientID"] == "CANARY-MR" else ct
            assert series["PatientName"] == PATIENT and series["StudyInstanceUID"] == source.StudyInstanceUID
            assert series["SeriesDescription"] == "DERIVED - medgan - NOT FOR DIAGNOSIS"
    studies = [each["StudyInstanceUID"] for each in patients.values()]
    assert len(set(studies)) == len(studies)  # every synthetic series has a study of its own
    for path in (root / "fetched").rglob("*.dcm"):
        content = path.read_bytes()
        assert HOSPITAL.encode() not in content
        assert (b"CANARY" in content) == (b"DERIVED - medgan" in content)
