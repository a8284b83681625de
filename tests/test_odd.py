"""The refusal policy over the collection of odd files, through every verb: the same code, and nothing written."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import SHARED, TINY

import medgan
from medgan import cli, notices
from medgan.errors import EXIT_REFUSED, EXIT_SKIPPED, Refused

ODD = SHARED / "odd"
pytestmark = pytest.mark.skipif(not ODD.is_dir(), reason=f"the collection of odd files is not at {ODD}")

#: Lesions are put anywhere, and a run is over at once: this is about what is read, not what is made of it.
QUICK = TINY | {"training.images": 8, "training.batch": 4, "training.report_images": 8, "data.crop": 16,
                "network.width": 4, "data.crops_per_case": 2}
SETTINGS = [text for key, value in QUICK.items() for text in ("--set", f"{key}={json.dumps(value)}")]
STATUS = {"accept": {"ok", "warning"}, "accept_warn": {"warning"}, "refuse": {"refused"},
          "accept_warn_or_refuse": {"warning", "refused"}, "refuse_or_accept": {"ok", "warning", "refused"},
          "refuse_or_warn": {"warning", "refused"}, "accept_or_refuse": {"warning", "refused"},
          "accept_split": {"warning"}, "accept_no_leak": {"warning"}, "accept_escaped": {"ok", "warning"},
          "accept_2d_or_refuse_3d": {"warning", "refused"}}
#: The folder of the tables holds the images of all of them, which is said of each table.
BESIDE = {"TAB_UNMATCHED"}


def cases(kinds: str, *expect: str) -> list[Any]:
    table = ODD / "cases.json"
    found = json.loads(table.read_text(encoding="utf-8")) if table.is_file() else []
    return [pytest.param(case, id=case["id"]) for case in found
            if case["id"][0] in kinds and (not expect or case["expect"] in expect)]


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def codes(self) -> list[str]:
        return re.findall(r"(?:error|warning)\[([A-Z0-9_]+)\]", self.err)


@pytest.fixture
def medgan_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
                   caplog: pytest.LogCaptureFixture) -> Iterator[Any]:
    """Runs the command in an empty folder, as in a process of its own."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")

    def run(*arguments: object) -> Ended:
        notices.forget()
        monkeypatch.setattr(sys, "argv", ["medgan", *map(str, arguments)])
        capfd.readouterr()
        caplog.clear()
        code: Any = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code or 0
        told = capfd.readouterr()
        # pytest takes log records before they reach stderr; in a process of its own they stand there first.
        return Ended(code, told.out, "".join(f"{message}\n" for message in caplog.messages) + told.err)

    yield run


def refused_alike(ended: Ended, code: str, *outputs: Path) -> None:
    """Exit 3, one line that names the code, and not a file."""
    assert ended.code == EXIT_REFUSED and ended.out == "" and "Traceback" not in ended.err, ended
    last = ended.err.splitlines()[-1]
    assert re.fullmatch(rf"error\[{code}\] .+: .+\. [A-Z0-9`].+\.", last), last
    assert not list(Path().iterdir()) and not any(output.exists() for output in outputs)


# --- inspect ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases("dnmts"))
def test_inspect_says_what_the_policy_says(case: dict[str, str]) -> None:
    found = medgan.inspect(ODD / case["path"])
    assert found.status in STATUS[case["expect"]], f"{found.status} {found.codes}"
    codes = set(found.codes) - BESIDE
    assert case["code"] in codes if case["code"] != "OK" else not codes
    assert found.kind in {"d": ("series", "dataset"), "n": ("volume",), "m": ("dataset",), "t": ("dataset",),
                          "s": ("weights",)}[case["id"][0]]
    assert all(note["where"] and note["why"] and note["fix"] for note in found.notes)
    assert [note["level"] for note in found.notes].count("error") == (found.status == "refused")
    if found.status != "refused":
        assert found.volumes and all(len(volume["spacing_mm"]) == len(volume["shape"]) for volume in found.volumes)


def test_two_series_are_two_volumes() -> None:
    found = medgan.inspect(ODD / "dicom/d_mixed_series")
    assert sorted(volume["shape"] for volume in found.volumes) == [[40, 48, 8], [40, 48, 12]]


@pytest.mark.parametrize("case", cases("dn", "refuse")[::7] + cases("dn", "accept_warn")[::5])
def test_inspect_on_the_command_line(case: dict[str, str], medgan_command: Any) -> None:
    ended = medgan_command("inspect", ODD / case["path"], "--json")
    found = json.loads(ended.out)
    assert case["code"] in found["codes"]
    assert ended.code == (EXIT_REFUSED if found["status"] == "refused" else 0)
    assert ended.err == ""  # all is in the JSON
    plain = medgan_command("inspect", ODD / case["path"])
    level = "error" if found["status"] == "refused" else "warning"
    assert f"{level}[{case['code']}]" in plain.out


# --- one image in, one image out --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases("dn", "refuse"))
def test_upsample_and_fill_refuse_what_inspect_refuses(case: dict[str, str], tmp_path: Path, medgan_command: Any
                                                       ) -> None:
    source, good = ODD / case["path"], ODD / "nifti/pairs/m_ok/label.nii.gz"
    if case["id"] != "d-empty":  # a folder without any image might have been meant as a data set
        refused_alike(medgan_command("upsample", source, tmp_path / "out.nii.gz", "--method", "linear"), case["code"],
                      tmp_path / "out.nii.gz")
    refused_alike(medgan_command("fill", source, good, tmp_path / "out.nii.gz", "--method", "smooth"), case["code"],
                  tmp_path / "out.nii.gz")
    if case["id"][0] == "n":
        refused_alike(medgan_command("fill", ODD / "nifti/n_ok.nii.gz", source, tmp_path / "out.nii.gz"), case["code"],
                      tmp_path / "out.nii.gz")
    with pytest.raises(Refused) as refused:
        medgan.read(source)
    assert refused.value.code == case["code"]


@pytest.mark.parametrize("case", cases("dn", "accept", "accept_warn", "accept_no_leak"))
def test_upsample_takes_what_is_good_and_says_what_is_odd(case: dict[str, str], tmp_path: Path, medgan_command: Any
                                                          ) -> None:
    ended = medgan_command("upsample", ODD / case["path"], tmp_path / "out.nii.gz", "--method", "linear")
    if case["id"] == "d-bad-charset":  # one slice, which has nothing to refine
        assert ended.code == EXIT_REFUSED and "DIM_UNSUPPORTED" in ended.codes
        return
    assert ended.code == 0, ended
    assert case["code"] in ended.codes if case["code"] != "OK" else not ended.codes
    again = medgan.inspect(tmp_path / "out.nii.gz")
    assert again.status == "ok" and again.volumes[0]["range"][0] < again.volumes[0]["range"][1]


# --- data sets --------------------------------------------------------------------------------------------------------


def as_data_set(case: dict[str, str], root: Path, names: str = "abc") -> Path:
    """The image of a case as the second of three cases with masks; pairs and tables as they are."""
    source = ODD / case["path"]
    if case["id"][0] in "mt":
        return source
    rows = ["id,image,mask"]
    for name in names:
        folder = root / name
        folder.mkdir(parents=True)
        shutil.copyfile(ODD / "nifti/pairs/m_ok/label.nii.gz", folder / "label.nii.gz")
        image = folder / "image.nii.gz"
        if name != names[1]:
            shutil.copyfile(ODD / "nifti/pairs/m_ok/image.nii.gz", image)
        elif source.is_dir():
            image = folder / "series"
            shutil.copytree(source, image, copy_function=shutil.copyfile)
        else:
            image = folder / source.name
            for half in source.parent.glob(f"{source.stem}.*") if source.suffix == ".img" else [source]:
                shutil.copyfile(half, folder / half.name)
        if name == names[1] and "accept" in case["expect"]:
            _mask_for(image, folder / "label.nii.gz")
        rows.append(f"{name},{image.relative_to(root)},{name}/label.nii.gz")
    (root / "manifest.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


def _mask_for(image: Path, path: Path) -> None:
    """A mask with one lesion on the image's own grid."""
    volume = medgan.read(image)
    mask = np.zeros((1, *volume.shape), np.uint8)
    mask[(0, *(slice(n // 3, n // 3 + max(2, n // 6)) for n in volume.shape))] = 1
    medgan.write(replace(volume, array=mask), path)


#: What a layout says of an image before it is read.
BY_THE_LAYOUT = {"n-analyze": "FILE_FORMAT"}
#: Where no mask of a set can be read, its labels are not known, which is what is seen first of two sets.
NO_LABELS = {"m-float", "m-neg", "m-big"}


@pytest.mark.parametrize("case", cases("dnmt", "refuse"))
def test_every_verb_refuses_a_damaged_case_alike(case: dict[str, str], tmp_path: Path, medgan_command: Any) -> None:
    data, out, code = as_data_set(case, tmp_path / "data"), tmp_path / "out", case["code"]
    code = BY_THE_LAYOUT.get(case["id"], code)
    found = medgan.inspect(data)
    assert found.status == "refused" and code in found.codes
    if case["id"][0] in "dn" and case["id"] not in BY_THE_LAYOUT:
        assert found.summary["damaged"] == {"b": code} and [volume["id"] for volume in found.volumes] == ["a", "c"]
    refused_alike(medgan_command("train", data, "--modality", "ct", "--out", out, *SETTINGS), code, out)
    refused_alike(medgan_command("augment", data, "--method", "paste", "--modality", "ct", "--out", out), code, out)
    good = {"id": "n-ok", "path": "nifti/n_ok.nii.gz", "expect": "refuse"}  # with the mask that lies there
    made, heldout = as_data_set(good, tmp_path / "made", "def"), as_data_set(good, tmp_path / "heldout", "ghi")
    sides = data, made, "--heldout", heldout
    refused_alike(medgan_command("evaluate", *sides, "--modality", "ct", "--out", out),
                  "LABEL_UNKNOWN" if case["id"] in NO_LABELS else code, out)
    with pytest.raises(Refused) as refused:
        medgan.OnlineLesions(None, data, method="paste", modality="ct")
    assert refused.value.code == code


@pytest.mark.parametrize("case", cases("dn", "accept_warn", "accept_no_leak", "accept_warn_or_refuse")[::6] + cases(
    "mt", "accept", "accept_warn", "accept_or_refuse", "accept_escaped"))
def test_train_and_augment_say_what_is_odd(case: dict[str, str], tmp_path: Path, medgan_command: Any) -> None:
    data = as_data_set(case, tmp_path / "data")
    if case["id"][0] == "t":  # classes, and no masks
        ended = medgan_command("train", data, "--task", "image", "--modality", "ct", "--out", tmp_path / "run",
                               *SETTINGS)
    else:
        ended = medgan_command("augment", data, "--method", "paste", "--modality", "ct", "--out", tmp_path / "out",
                               *SETTINGS)
    told = set(ended.codes) - BESIDE
    if case["code"] == "LABEL_EMPTY":
        assert ended.code == EXIT_REFUSED and told == {"LABEL_EMPTY", "DATASET_EMPTY"}
        return
    assert ended.code in (0, EXIT_SKIPPED, EXIT_REFUSED), ended
    assert case["code"] in told if case["code"] != "OK" else ended.code != EXIT_REFUSED and not told, ended


# --- telling ----------------------------------------------------------------------------------------------------------


def test_a_note_is_told_once_and_by_inspect_not_at_all(caplog: pytest.LogCaptureFixture) -> None:
    notices.forget()
    assert medgan.inspect(ODD / "nifti/pairs/m_empty").status == "warning" and not caplog.messages
    from medgan.datasets.layouts import open_dataset

    opened = open_dataset(ODD / "nifti/pairs/m_empty")
    for _ in range(3):
        opened.load(opened.cases[0])
    assert [message.split()[0] for message in caplog.messages] == ["warning[LABEL_EMPTY]"]


def test_notes_reach_stderr_of_a_process(tmp_path: Path) -> None:
    source = ODD / "nifti/n_no_qform_no_sform.nii.gz"
    done = subprocess.run([sys.executable, "-m", "medgan.cli", "upsample", str(source), str(tmp_path / "out.nii.gz"),
                           "--method", "linear"], capture_output=True, text=True, check=True)
    assert done.stderr.count(f"warning[GEOM_NO_ORIENTATION] {source}: ") == 1
