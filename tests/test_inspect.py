"""`inspect` says what a path is, and a refusal is an answer, not a crash."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import dataset_makers as make
import pytest
from dicom_makers import make_series, save

import medgan
from medgan.errors import CODES
from medgan.verbs.remedies import REMEDIES


def test_a_volume(mr_set: Path) -> None:
    path = next((mr_set / "imagesTr").glob("*.nii.gz"))
    found = medgan.inspect(path)
    assert (found.status, found.kind, len(found.volumes)) == ("ok", "volume", 1)
    volume = found.volumes[0]
    assert volume["shape"] == [56, 64, 28] and volume["orientation"] == "RAS" and len(volume["spacing_mm"]) == 3
    json.dumps(found.as_json())


def test_a_data_set(mr_set: Path, xray_classes: Path) -> None:
    found = medgan.inspect(mr_set)
    assert found.kind == "dataset" and found.summary["layout"] == "nnunet" and found.summary["cases"] == 3
    assert found.summary["labels"] == {"0": "background", "1": "lesion", "2": "tumour"}
    assert found.summary["splits"] == {"train": 3} and len(found.volumes) == 3
    classes = medgan.inspect(xray_classes)
    assert classes.summary["by_class"] == {"normal": 4, "opacity": 4}


def test_a_run(lesion_run: Path) -> None:
    found = medgan.inspect(lesion_run)
    assert found.kind == "run" and found.status == "ok"
    assert found.summary["task"] == "lesion" and found.summary["finished"] is True
    assert found.summary["last_report"]["images"] == 32
    json.dumps(found.as_json())


def test_refusals_are_findings(tmp_path: Path) -> None:
    (tmp_path / "empty.nii.gz").write_bytes(b"")
    found = medgan.inspect(tmp_path / "empty.nii.gz")
    assert found.status == "refused" and found.codes == ("FILE_EMPTY",) and found.notes[0]["fix"]
    assert medgan.inspect(tmp_path / "nowhere").codes == ("FILE_MISSING",)


# --- several things at once -------------------------------------------------------------------------------------------


def test_all_damaged_cases_are_named_and_the_others_described(mr_set: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    shutil.copytree(mr_set, root)
    first, second, third = sorted(path for path in (root / "imagesTr").iterdir() if path.name.endswith("_0000.nii.gz"))
    first.write_bytes(first.read_bytes()[:-9])
    third.write_bytes(b"")
    found = medgan.inspect(root)
    assert found.status == "refused" and found.kind == "dataset"
    errors = [note for note in found.notes if note["level"] == "error"]
    assert {Path(note["where"]).name: note["code"] for note in errors} == {
        first.name: "FILE_TRUNCATED", third.name: "FILE_EMPTY"}
    assert list(found.summary["damaged"].values()) == ["FILE_TRUNCATED", "FILE_EMPTY"]
    assert [volume["id"] for volume in found.volumes] == [second.name.removesuffix("_0000.nii.gz")]
    assert found.summary["cases"] == 3 and all(note["fix"] for note in found.notes)


def test_all_damaged_series_of_a_folder_are_named(tmp_path: Path) -> None:
    items = []
    for number, wrong in enumerate(("", "PixelSpacing", "", "RescaleSlope")):
        for item in make_series():
            item.SeriesInstanceUID, item.SOPInstanceUID = f"1.2.{number}", f"1.2.{number}.{item.InstanceNumber}"
            if wrong:
                setattr(item, wrong, [0, 0] if wrong == "PixelSpacing" else 0)
            items.append(item)
    found = medgan.inspect(save(items, tmp_path))
    assert found.status == "refused" and found.kind == "series" and len(found.volumes) == 2
    errors = [note["code"] for note in found.notes if note["level"] == "error"]
    assert sorted(errors) == ["GEOM_BAD_SPACING", "PIX_BAD_RESCALE"]
    assert "SERIES_SPLIT" in found.codes


def test_a_manifest(tmp_path: Path) -> None:
    found = medgan.inspect(make.manifest(tmp_path / "m"))
    assert found.kind == "dataset" and found.summary["layout"] == "manifest" and len(found.volumes) > 1
    make.text(tmp_path / "m/manifest.csv", "id,image\nx,../y.nii.gz\n")
    wrong = medgan.inspect(tmp_path / "m/manifest.csv")
    assert (wrong.status, wrong.kind, wrong.codes) == ("refused", "dataset", ("TAB_PATH_ESCAPE",))


def test_what_cannot_be_told_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert medgan.inspect(tmp_path / "empty").kind == "unknown"
    (tmp_path / "text.txt").write_text("hello")
    assert medgan.inspect(tmp_path / "text.txt").codes == ("FILE_FORMAT",)
    assert medgan.inspect("a\0b").codes == ("FILE_MISSING",)


# --- runs and weights -------------------------------------------------------------------------------------------------


@pytest.fixture
def run(lesion_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(lesion_run, tmp_path / "run"))


def _damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[8:40] = b"x" * 32
    path.write_bytes(bytes(content))


def test_an_unfinished_run(run: Path) -> None:
    (run / "weights.safetensors").unlink()
    found = medgan.inspect(run)
    assert (found.status, found.kind, found.codes) == ("warning", "run", ("RUN_UNFINISHED",))
    assert "--resume" in found.notes[0]["fix"] and found.summary["finished"] is False


@pytest.mark.parametrize("name", ["weights.safetensors", "state/state.safetensors"])
def test_damaged_weights_of_a_run(run: Path, name: str) -> None:
    _damage(run / name)
    found = medgan.inspect(run)
    assert (found.status, found.codes) == ("refused", ("CKPT_CORRUPT",)) and found.summary["task"] == "lesion"
    assert found.notes[0]["where"] == str(run / name)


@pytest.mark.parametrize(("content", "code"), [
    ("", "CKPT_CORRUPT"), ("[]", "CKPT_CORRUPT"), ("{}", "CKPT_CORRUPT"), ("[" * 9999, "CKPT_CORRUPT"),
    ('{"settings": {}, "interface": {}, "dataset": 7}', "CKPT_CORRUPT"),
    ('{"settings": {"modality": "ct", "task": "lesion"}, "interface": {}, "dataset": {}}', "CKPT_MISMATCH"),
])
def test_a_damaged_description_of_a_run(run: Path, content: str, code: str) -> None:
    (run / "config.json").write_text(content)
    found = medgan.inspect(run)
    assert found.status == "refused" and found.kind == "run" and code in found.codes


def test_a_damaged_log_is_no_reason_to_refuse_a_run(run: Path) -> None:
    (run / "log.jsonl").write_bytes(b'{"images": 16}\nnot json\n{"images": \xff')
    found = medgan.inspect(run)
    assert found.status == "ok" and found.summary["last_report"] == {"images": 16}


def test_weights_alone(run: Path, tmp_path: Path) -> None:
    found = medgan.inspect(run / "weights.safetensors")
    assert (found.status, found.kind) == ("ok", "weights") and found.summary["parameters"] > 1000
    (tmp_path / "a.pt").write_bytes(b"PK\3\4" + b"\0" * 50)
    assert medgan.inspect(tmp_path / "a.pt").codes == ("CKPT_CORRUPT",)
    (tmp_path / "b.pkl").write_bytes(b"\x80\x04cos\nsystem\n(S'touch owned'\ntR.")
    for name in ("b.pkl", "b.joblib"):
        (tmp_path / name).write_bytes((tmp_path / "b.pkl").read_bytes())
        found = medgan.inspect(tmp_path / name)
        assert (found.kind, found.codes) == ("weights", ("CKPT_UNSAFE",))
    assert not (tmp_path / "owned").exists()


# --- fixes ------------------------------------------------------------------------------------------------------------


def test_every_note_that_the_package_gives_has_a_remedy() -> None:
    package = Path(medgan.__file__).parent
    given = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Note", "PassedOver") and node.args:
                given |= {each.value for each in ast.walk(node.args[0]) if isinstance(each, ast.Constant)}
    assert len(given & set(CODES)) > 20
    assert not sorted((given & set(CODES)) - set(REMEDIES))
    assert not sorted(set(REMEDIES) - set(CODES))
