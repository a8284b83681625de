"""`inspect` says what a path is, and a refusal is an answer, not a crash."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import medgan


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


def _cases(shared: Path) -> list[dict[str, str]]:
    return json.loads((shared / "odd" / "cases.json").read_text()) if (shared / "odd").is_dir() else []


SHARED = Path(__file__).resolve().parents[2] / "shared"
STATUS = {"accept": {"ok", "warning"}, "accept_warn": {"warning"}, "refuse": {"refused"},
          "accept_warn_or_refuse": {"warning", "refused"}, "refuse_or_accept": {"ok", "warning", "refused"},
          "refuse_or_warn": {"warning", "refused"}, "accept_or_refuse": {"ok", "warning", "refused"},
          "accept_split": {"warning"}, "accept_no_leak": {"ok", "warning"}, "accept_escaped": {"ok", "warning"},
          "accept_2d_or_refuse_3d": {"ok", "warning", "refused"}}


@pytest.mark.skipif(not (SHARED / "odd").is_dir(), reason="no ../shared/odd beside this checkout")
@pytest.mark.parametrize("case", [c for c in _cases(SHARED) if c["id"][0] in "dnmt"], ids=lambda c: c["id"])
def test_every_odd_input_gets_the_status_it_should(case: dict[str, str]) -> None:
    found = medgan.inspect(SHARED / "odd" / case["path"])
    assert found.status in STATUS[case["expect"]], f"{found.status} {found.codes}"
    if found.status == "refused" and case["code"] in medgan_codes():
        assert case["code"] in found.codes


def medgan_codes() -> set[str]:
    from medgan.errors import CODES

    return set(CODES)
