"""JSON and CSV of strangers: what is refused, with which code, and what is written safely."""

from __future__ import annotations

import json
from pathlib import Path

import dataset_makers as make
import pytest

from medgan.datasets.layouts import open_dataset
from medgan.datasets.paths import patient_of, safe_name
from medgan.datasets.tables import read_json, read_table, write_table
from medgan.errors import Refused

ODD = Path(__file__).parents[2] / "shared" / "odd"
CASES = json.loads((ODD / "cases.json").read_text()) if (ODD / "cases.json").is_file() else []
TABULAR = [case for case in CASES if case["path"].startswith("tabular/")]


def refusal(path: Path) -> str:
    with pytest.raises(Refused) as caught:
        open_dataset(path)
    assert caught.value.fix and caught.value.why
    return caught.value.code


@pytest.mark.skipif(not TABULAR, reason="../shared/odd is not there")
@pytest.mark.parametrize("case", TABULAR, ids=lambda case: case["id"])
def test_every_odd_table_does_what_is_expected(case: dict[str, str], tmp_path: Path) -> None:
    path = ODD / case["path"]
    if case["expect"].startswith("refuse"):
        assert refusal(path) == case["code"]
        return
    dataset = open_dataset(path)
    codes = {note.code for note in dataset.notes}
    assert codes <= {case["code"], "TAB_UNMATCHED"}  # the folder holds images for all tables
    if case["code"] != "OK":
        assert case["code"] in codes
    assert dataset.load(dataset.cases[0])[0].dims == 3


@pytest.mark.skipif(not TABULAR, reason="../shared/odd is not there")
def test_nothing_was_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for case in TABULAR:
        if case["code"] == "CFG_UNSAFE":
            assert refusal(ODD / case["path"]) == "CFG_UNSAFE"
    assert not list(tmp_path.iterdir())


def table(folder: Path, content: str | bytes) -> Path:
    for name in "abc":
        make.nifti(folder / f"{name}.nii.gz", make.image(1))
    return make.text(folder / "manifest.csv", content)


@pytest.mark.parametrize(("content", "code"), [
    (b"", "TAB_EMPTY"),
    ("\n\n", "TAB_EMPTY"),
    ("id,image\n", "TAB_EMPTY"),
    ("c1,a.nii.gz\n", "TAB_COLUMNS"),
    ("id,picture\nc1,a.nii.gz\n", "TAB_COLUMNS"),
    ("id,image,id\nc1,a.nii.gz,c1\n", "TAB_COLUMNS"),
    ("id,image\nc1,a.nii.gz,0\n", "TAB_COLUMNS"),
    ("id,image\n,a.nii.gz\n", "TAB_COLUMNS"),
    ("id,image\nc1,a.nii.gz\nc1,b.nii.gz\n", "TAB_DUPLICATE_ID"),
    ("id,image,label\nc1,a.nii.gz,\n", "TAB_MISSING_LABEL"),
    ("id,image,label\nc1,a.nii.gz,nan\n", "TAB_BAD_LABEL"),
    ("id,image,label\nc1,a.nii.gz,-inf\n", "TAB_BAD_LABEL"),
    ("id,image,label\nc1,a.nii.gz,1e400\n", "TAB_BAD_LABEL"),
    ("id,image,label\nc1,a.nii.gz,99999999999999999999\n", "TAB_BAD_LABEL"),
    ("id,image,split\nc1,a.nii.gz,holdout\n", "TAB_BAD_SPLIT"),
    ("id,image\nc1,\n", "TAB_PATH_MISSING"),
    ("id,image\nc1,d.nii.gz\n", "TAB_PATH_MISSING"),
    ("id,image\nc1,a\x00.nii.gz\n", "TAB_BAD_PATH"),
    ("id,image\nc1," + "a" * 5000 + "\n", "TAB_BAD_PATH"),
    ("id,image\nc1,../d/a.nii.gz\n", "TAB_PATH_ESCAPE"),
    ("id,image,mask\nc1,a.nii.gz,/etc/passwd\n", "TAB_PATH_ESCAPE"),
    ("id,image,mask\nc1,a.nii.gz,b.nii.gz\nc2,c.nii.gz,\n", "LABEL_MISSING"),
    ("id,image\nc1,a.nii.gz\nc2,b.nii.gz|c.nii.gz\n", "TAB_UNMATCHED"),
    ("id,image,patient,split\nc1,a.nii.gz,p,train\nc2,b.nii.gz,p,val\n", "SPLIT_LEAK"),
    ("id,image,split\nc1,a.nii.gz,train\nc2,a.nii.gz,test\n", "SPLIT_LEAK"),
    ("id,image,note\nc1,a.nii.gz,h\xe9\n".encode("latin-1"), "TAB_ENCODING"),
    ("id,image\nc1,a.nii.gz\n".encode("utf-16"), "TAB_ENCODING"),
    ('id,image\nc1,"a.nii.gz\n', "TAB_DIALECT"),
])  # fmt: skip
def test_a_wrong_manifest_is_refused(content: str | bytes, code: str, tmp_path: Path) -> None:
    assert refusal(table(tmp_path, content)) == code


@pytest.mark.parametrize(("content", "codes"), [
    ("id,image\nc1,a.nii.gz\nc2,b.nii.gz\nc3,c.nii.gz\n", []),
    ("id,image\nc1,a.nii.gz\nc3,c.nii.gz\n", ["TAB_UNMATCHED"]),
    ("\ufeffid,image\nc1,a.nii.gz\nc2,b.nii.gz\nc3,c.nii.gz\n", ["TAB_DIALECT"]),
    ("id;image\nc1;a.nii.gz\nc2;b.nii.gz\nc3;c.nii.gz\n", ["TAB_DIALECT"]),
    ("id,image\r\nc1,a.nii.gz\r\nc2,b.nii.gz\r\nc3,c.nii.gz\r\n", ["TAB_DIALECT"]),
    ("id,image,split\np1_t0,a.nii.gz,train\np1_t1,b.nii.gz,test\nc,c.nii.gz,train\n", ["SPLIT_LEAK"]),
])  # fmt: skip
def test_an_unusual_manifest_is_taken_with_a_note(content: str, codes: list[str], tmp_path: Path) -> None:
    dataset = open_dataset(table(tmp_path, content))
    assert [note.code for note in dataset.notes] == codes
    assert "a.nii.gz" in {case.images[0].name for case in dataset.cases}


def test_a_link_out_of_the_folder_is_refused_and_one_within_is_taken(tmp_path: Path) -> None:
    outside = make.nifti(tmp_path / "secret.nii.gz", make.image(1))
    path = table(tmp_path / "d", "id,image\nc1,link.nii.gz\n")
    link = tmp_path / "d/link.nii.gz"
    link.symlink_to(outside)
    assert refusal(path) == "TAB_PATH_ESCAPE"
    link.unlink()
    link.symlink_to("link.nii.gz")
    assert refusal(path) in ("TAB_BAD_PATH", "TAB_PATH_MISSING")
    link.unlink()
    link.symlink_to("a.nii.gz")
    assert len(open_dataset(path).cases) == 1


@pytest.mark.parametrize("cell", [
    "=1+1", "+x", "-x", "@x", "'=x", "''=x", "=cmd|' /C calc'!A0", "plain", "-5", "-5.2e3", "'quoted'", 'a "b", c',
    "n/a",
])  # fmt: skip
def test_formulas_are_written_dead_and_read_back_as_they_were(cell: str, tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", ["id", "x"], [{"id": "c1", "x": cell}])
    raw = (tmp_path / "t.csv").read_text().splitlines()[1].removeprefix("c1,").lstrip('"')
    assert not raw.startswith(("=", "+", "@")) and (not raw.startswith("-") or raw in ("-5", "-5.2e3"))
    assert read_table(tmp_path / "t.csv", required=("id",))[1] == [{"id": "c1", "x": cell}]


@pytest.mark.parametrize(("content", "code"), [
    ("[" * 100_000 + "]" * 100_000, "TAB_BAD_JSON"),
    ('{"a":' * 100 + "1" + "}" * 100, "TAB_BAD_JSON"),
    ('{"a": 1, "a": 2}', "TAB_BAD_JSON"),
    ('{"a": NaN}', "TAB_BAD_JSON"),
    ('{"a": 1', "TAB_BAD_JSON"),
    ("[1, 2]", "TAB_BAD_JSON"),
    ('{"a": ' + "9" * 5000 + "}", "TAB_BAD_JSON"),
    ("", "TAB_EMPTY"),
    (b'{"a": "\xe9"}', "TAB_ENCODING"),
    ('{"a": [{"b": "$import os"}]}', "CFG_UNSAFE"),
    ('{"a": {"_target_": "os.system"}}', "CFG_UNSAFE"),
])  # fmt: skip
def test_wrong_json_is_refused(content: str | bytes, code: str, tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        read_json(make.text(tmp_path / "dataset.json", content))
    assert caught.value.code == code


def test_brackets_within_strings_are_not_nesting(tmp_path: Path) -> None:
    content = json.dumps({"a": "[" * 200 + '\\"'})
    assert read_json(make.text(tmp_path / "x.json", content)) == json.loads(content)


@pytest.mark.parametrize(("case_id", "patient"), [
    ("glioma_0003", "glioma_0003"), ("ms_07", "ms_07"), ("sub-01_ses-2_T1w", "sub-01"),
    ("patient7_frame12", "patient7"),
    ("patient_007_t1", "patient_007"), ("BraTS-GLI-00005-101", "BraTS-GLI-00005"), ("case3_visit2", "case3"),
    ("case3_left", "case3"), ("brain_scan_1", "brain_scan_1"), ("person12_virus_3", "person12"), ("run_3", "run_3"),
    ("glioma_0003_syn0001", "glioma_0003"), ("train-00012", "train-00012"), ("ABD_LYMPH_001", "ABD_LYMPH_001"),
])  # fmt: skip
def test_patients_are_guessed_conservatively(case_id: str, patient: str) -> None:
    assert patient_of(case_id) == patient


def test_file_names_of_odd_ids_are_harmless_and_distinct() -> None:
    odd = ["a/b", "a\\b", "../x", "", ".hidden", "=cmd|' /C calc'!A0", "é", "x" * 300, "-rf"]
    names = [safe_name(each) for each in odd]
    assert len(set(names)) == len(odd)
    assert all(len(name) <= 140 and not set(name) & set("/\\ |'=!") and name[0] not in ".-" for name in names)
    assert safe_name("glioma_0003_syn0001") == "glioma_0003_syn0001"
