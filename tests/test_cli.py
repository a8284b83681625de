"""The command line: exit codes, messages, JSON, and that a refusal writes nothing."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dataset_makers as make
import pytest
from cli_makers import REFUSAL, everything, sets

from medgan import __version__, cli

#: Exit code, standard output, standard error.
Done = tuple[int, str, str]
Command = Callable[..., Done]


@pytest.fixture
def medgan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Runs `medgan ARGUMENTS` in this process, in an empty folder of its own."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["medgan", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


def test_version_and_help(medgan: Command) -> None:
    assert medgan("--version") == (0, f"{__version__}\n", "")
    code, out, _ = medgan("--help")
    assert code == 0 and all(verb in out for verb in ("train", "augment", "synthesize", "upsample", "inspect",
                                                           "run"))


@pytest.mark.parametrize("arguments", [
    (), ("frobnicate",), ("augment",), ("train", "--nope"), ("train", "--minutes", "soon"), ("train", "--seed", "-1"),
    ("synthesize", "run"), ("synthesize", "run", "--count", "0", "--out", "x")], ids=" ".join)  # fmt: skip
def test_a_wrong_command_line_is_exit_code_2(arguments: tuple[str, ...], medgan: Command) -> None:
    code, out, err = medgan(*arguments)
    assert code == 2 and "Traceback" not in err and (out + err)
    assert everything(Path()) == []


def unlabelled(root: Path) -> Path:
    return Path(make.nifti(root / "a.nii.gz", make.image(1))).parent


def half_labelled(root: Path) -> Path:
    make.nnunet(root)
    (root / "labelsTr/glioma_0004.nii.gz").unlink()
    return root


def other_grid(root: Path) -> Path:
    make.nnunet(root)
    moved = make.AFFINE.copy()
    moved[0, 3] += 5
    make.nifti(root / "labelsTr/glioma_0004.nii.gz", make.mask((1, 2)), moved)
    return root


def no_lesions(root: Path) -> Path:
    make.nnunet(root)
    for path in (root / "labelsTr").iterdir():
        make.nifti(path, make.mask(()))
    return root


def nothing(root: Path) -> Path:
    return root


def empty(root: Path) -> Path:
    root.mkdir()
    return root


REFUSED: dict[str, tuple[tuple[str, ...], Callable[[Path], Path], str]] = {
    "no data set and no modality": (("train",), nothing, "CFG_VALUE"),
    "an unknown modality": (("train", "--modality", "magic"), nothing, "CFG_VALUE"),
    "an unknown task": (("train", "DATA", "--task", "segment"), make.nnunet, "CFG_VALUE"),
    "an unknown setting": (("train", "DATA", "--modality", "mr", "--set", "training.bach=8"), make.nnunet,
                           "CFG_UNKNOWN"),
    "an impossible setting": (("train", "DATA", "--modality", "mr", "--set", "training.batch=0"), make.nnunet,
                              "CFG_VALUE"),
    "an unknown device": (("train", "DATA", "--modality", "mr", "--device", "tpu"), make.nnunet, "CFG_VALUE"),
    "a missing settings file": (("train", "DATA", "--modality", "mr", "--config", "no.toml"), make.nnunet,
                                "FILE_MISSING"),
    "a missing data set": (("train", "DATA", "--modality", "mr"), nothing, "FILE_MISSING"),
    "an empty data set": (("train", "DATA", "--modality", "mr"), empty, "DATASET_UNKNOWN"),
    "a missing mask": (("train", "DATA", "--modality", "mr"), half_labelled, "LABEL_MISSING"),
    "a mask on another grid": (("train", "DATA", "--modality", "mr"), other_grid, "LABEL_GRID"),
    "masks without a lesion": (("train", "DATA", "--modality", "mr"), no_lesions, "DATASET_EMPTY"),
    "masks wanted where there are none": (("train", "DATA", "--modality", "mr", "--task", "lesion"), unlabelled,
                                          "LABEL_MISSING"),
    "resuming nothing": (("train", "--resume", "--out", "DATA"), nothing, "RUN_NOT_FOUND"),
    "resuming without a name": (("train", "--resume"), nothing, "CFG_VALUE"),
    "augmenting a missing data set": (("augment", "DATA"), nothing, "FILE_MISSING"),
    "augmenting without labels": (("augment", "DATA", "--modality", "mr"), unlabelled, "LABEL_MISSING"),
    "a factor below one": (("augment", "DATA", "--factor", "0.5"), make.nnunet, "FACTOR_RANGE"),
    "a factor that is no number": (("augment", "DATA", "--factor", "nan"), make.nnunet, "FACTOR_RANGE"),
    "an unknown method": (("augment", "DATA", "--method", "magic"), make.nnunet, "CFG_VALUE"),
    "no workers": (("augment", "DATA", "--workers", "0"), make.nnunet, "CFG_VALUE"),
    "a model that is none": (("augment", "DATA", "--model", "none"), make.nnunet, "RUN_NOT_FOUND"),
    "augmenting into the data set": (("augment", "DATA", "--out", "DATA", "--method", "paste"), make.nnunet,
                                     "OUT_EXISTS"),
    "augmenting below the data set": (("augment", "DATA", "--out", "DATA/x2", "--method", "paste"), make.nnunet,
                                      "OUT_EXISTS"),
    "copying on another grid": (("augment", "DATA", "--method", "paste", "--out", "new"), other_grid, "LABEL_GRID"),
    "a setting misspelt for augment": (("augment", "DATA", "--method", "paste", "--set", "augment.trys=3"), make.nnunet,
                                       "CFG_UNKNOWN"),
    "a run that is none": (("synthesize", "DATA", "--count", "1", "--out", "new"), nothing, "RUN_NOT_FOUND"),
    "sharpening what is not there": (("upsample", "DATA", "new.nii.gz"), nothing, "FILE_MISSING"),
    "sharpening by too much": (("upsample", "DATA/a.nii.gz", "new.nii.gz", "--factor", "99"), unlabelled,
                               "FACTOR_RANGE"),
    "an unknown slice profile": (("upsample", "DATA/a.nii.gz", "new.nii.gz", "--profile", "magic"), unlabelled,
                                 "CFG_VALUE"),
    "writing what is not written": (("upsample", "DATA/a.nii.gz", "new.jpg"), unlabelled, "FILE_FORMAT"),
    "sharpening into its own source": (("upsample", "DATA/a.nii.gz", "DATA/a.nii.gz"), unlabelled, "OUT_EXISTS"),
    "sharpening a folder that holds nothing": (("upsample", "DATA", "new"), empty, "DATASET_UNKNOWN"),
    "sharpening a folder into a file": (("upsample", "DATA", "new.nii.gz"), unlabelled, "FILE_FORMAT"),
    "sharpening a folder into itself": (("upsample", "DATA", "DATA/new"), unlabelled, "OUT_EXISTS"),
    "sharpening a folder by too much": (("upsample", "DATA", "new", "--factor", "99"), unlabelled, "FACTOR_RANGE"),
    "sharpening a folder without workers": (("upsample", "DATA", "new", "--workers", "0"), unlabelled, "CFG_VALUE"),
    "workers for one scan": (("upsample", "DATA/a.nii.gz", "new.nii.gz", "--workers", "2"), unlabelled, "CFG_VALUE"),
    "a sharpness above one": (("upsample", "DATA/a.nii.gz", "new.nii.gz", "--sharpness", "2"), unlabelled,
                              "CFG_VALUE"),
    "adapting without a network": (("upsample", "DATA/a.nii.gz", "new.nii.gz", "--method", "linear", "--adapt"),
                                   unlabelled, "CFG_VALUE"),
    "labels without an output": (("upsample", "DATA/a.nii.gz", "new.nii.gz", "--labels", "DATA/a.nii.gz"), unlabelled,
                                 "CFG_VALUE"),
    "labels for a folder": (("upsample", "DATA", "new", "--labels", "DATA/a.nii.gz", "--labels-out", "l.nii.gz"),
                            unlabelled, "CFG_VALUE"),
    "an unknown pipeline": (("run", "magic"), nothing, "PIPELINE_UNKNOWN"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_what_is_wrong_and_writes_nothing(name: str, tmp_path: Path, medgan: Command) -> None:
    arguments, maker, code = REFUSED[name]
    data = maker(tmp_path / "data")
    before = everything(tmp_path)
    status, out, err = medgan(*(text.replace("DATA", str(data)) for text in arguments))
    last = err.splitlines(keepends=True)[-1]
    match = REFUSAL.fullmatch(last)
    assert match is not None, f"not a refusal: {last!r}"
    assert (status, match[1], out) == (3, code, "")
    assert everything(tmp_path) == before


def test_an_output_that_holds_something_else_is_refused_and_left_alone(mr_set: Path, lesion_run: Path, tmp_path: Path,
                                                                       medgan: Command) -> None:
    thesis = make.text(tmp_path / "out/thesis.txt", "years")
    for arguments in (("train", mr_set, "--modality", "mr"), ("augment", mr_set, "--method", "paste"),
                      ("augment", mr_set, "--model", lesion_run), ("synthesize", lesion_run, "--count", 1)):
        status, _, err = medgan(*arguments, "--out", thesis.parent)
        assert (status, REFUSAL.fullmatch(err.splitlines(keepends=True)[-1])[1]) == (3, "OUT_EXISTS")  # type: ignore[index]
    assert everything(thesis.parent) == ["thesis.txt"] and thesis.read_text() == "years"


def test_a_run_of_another_task_or_other_channels_or_labels_is_refused(
        mr_set: Path, xray_classes: Path, lesion_run: Path, image_run: Path, tmp_path: Path, medgan: Command) -> None:
    two_channels = make.nnunet(tmp_path / "two")
    described = json.loads((mr_set / "dataset.json").read_text())
    other_labels = Path(shutil.copytree(mr_set, tmp_path / "labels"))
    make.described(other_labels, {**described, "labels": {"background": 0, "lesion": 1, "cyst": 2}})
    for data, run, code in ((mr_set, image_run, "RUN_TASK"), (xray_classes, lesion_run, "RUN_TASK"),
                            (two_channels, lesion_run, "RUN_CHANNELS"), (other_labels, lesion_run, "LABEL_UNKNOWN")):
        status, _, err = medgan("augment", data, "--model", run, "--out", "new")
        assert status == 3 and f"error[{code}] {run}" in err
    assert everything(Path()) == []


def test_train_augment_synthesize_and_inspect_go_together(mr_set: Path, tiny: dict[str, object],
                                                          medgan: Command) -> None:
    before = make.tree(mr_set)
    status, out, err = medgan("train", mr_set, "--modality", "mr", "--json", *sets(tiny))
    assert status == 0, err
    told = json.loads(out)
    run = Path(told["run"])
    assert run == Path("runs") / f"{mr_set.name}-lesion" and told["task"] == "lesion"
    assert "training" in err, "where there is no terminal, each stage is one line"

    status, out, err = medgan("augment", mr_set, "--out", "twice", "--json")
    assert status == 0, err
    told = json.loads(out)
    assert Path(told["run"]) == run, "the newest run on this data is taken"
    assert told["originals"] == 3 and len(told["synthetic"]) == 3 and told["skipped"] == {}
    assert len(list(Path("twice/imagesTr").glob("*.nii.gz"))) == len(list(Path("twice/labelsTr").iterdir())) == 6

    status, out, err = medgan("synthesize", run, "--count", 2, "--out", "two", "--label", "lesion", "--json",
                              "--seed", 3)
    assert status == 0, err
    cases = json.loads(out)["cases"]
    assert len(cases) == 2 and all(case["synthetic"] is True for case in cases)

    for path, kind in ((run, "run"), ("twice", "dataset"), ("two", "dataset")):
        status, out, _ = medgan("inspect", path, "--json")
        assert (status, json.loads(out)["kind"]) == (0, kind)
    assert json.loads(medgan("inspect", run, "--json")[1])["summary"]["finished"] is True
    assert make.tree(mr_set) == before, "the data set itself is never changed"


def test_upsample_writes_a_sharper_scan_and_says_how(tmp_path: Path, medgan: Command) -> None:
    source = make.nifti(tmp_path / "a.nii.gz", make.image(1))
    status, out, err = medgan("upsample", source, "b.nii.gz", "--method", "linear", "--json")
    assert status == 0, err
    assert json.loads(out)["method"] == "linear"
    told = json.loads(medgan("inspect", "b.nii.gz", "--json")[1])["volumes"][0]
    assert told["shape"] == [9, 10, 19] and told["orientation"] == "LPS"
    assert told["spacing_mm"] == pytest.approx([0.8, 0.8, 0.8], abs=0.02)


def test_upsample_brings_labels_along(tmp_path: Path, medgan: Command) -> None:
    source = make.nifti(tmp_path / "a.nii.gz", make.image(1))
    labels = make.nifti(tmp_path / "l.nii.gz", make.mask((2,)))
    status, out, err = medgan("upsample", source, "b.nii.gz", "--method", "linear", "--labels", labels, "--labels-out",
                              "m.nii.gz")
    assert status == 0 and out.startswith("b.nii.gz: 0.8 x 0.8 x 0.8 mm, linear method"), err
    image, mask = (json.loads(medgan("inspect", name, "--json")[1])["volumes"][0] for name in ("b.nii.gz", "m.nii.gz"))
    assert mask["shape"] == image["shape"] and mask["spacing_mm"] == image["spacing_mm"]
    assert mask["dtype"] == "uint8" and mask["range"] == [0, 2]


def test_upsample_does_every_case_of_a_folder_and_names_what_it_skips(tmp_path: Path, medgan: Command) -> None:
    source = make.images(tmp_path / "in")
    status, out, err = medgan("upsample", source, "new", "--method", "linear", "--json")
    assert status == 0, err
    assert json.loads(out) == {"out": "new", "done": ["a", "b"], "skipped": {}, "table": "new/upsample.csv"}
    make.text(source / "a.nii.gz", b"\x1f\x8b\x08")
    for _ in range(2):
        status, out, err = medgan("upsample", source, "other", "--method", "linear")
        assert status == 4 and out == "other: 1 of 2 cases, described in other/upsample.csv\n"
        assert "skipped a: error[FILE_" in err and "skipped b" not in err
    status, _, err = medgan("upsample", source, "other", "--method", "linear", "--thickness", 3)
    assert status == 3 and "error[OUT_EXISTS] other: it was begun with another thickness" in err


def test_upsample_takes_one_dicom_series_as_one_volume(tmp_path: Path, medgan: Command) -> None:
    make.dicom_series(tmp_path / "study/series", 1, "P1")
    for name in ("study", "study/series"):
        status, _, err = medgan("upsample", tmp_path / name, f"new-{name[-3:]}", "--method", "linear")
        assert status == 0, err
        assert {path.suffix for path in Path(f"new-{name[-3:]}").iterdir()} == {".dcm"}


def test_cases_that_found_no_place_are_exit_code_4_and_each_is_named(mr_set: Path, medgan: Command) -> None:
    status, out, err = medgan("augment", mr_set, "--method", "paste", "--out", "new", "--set", "augment.sigmas=1e-9",
                              "--json")
    assert status == 4
    assert json.loads(out)["synthetic"] == [] and len(json.loads(out)["skipped"]) == 3
    assert all(f"skipped {case.id}: " in err for case in _planned(mr_set))


def _planned(root: Path) -> list[Any]:
    from medgan.datasets.layouts import open_dataset
    from medgan.verbs.augment import plan_cases

    return [new for _, new in plan_cases(open_dataset(root), 2)]


@pytest.mark.parametrize("maker", [make.nnunet, make.decathlon, make.bids, make.manifest, make.npz, make.pairs,
                                   make.classes, make.dicom, make.images])
def test_inspect_describes_a_data_set_of_every_layout(maker: Callable[[Path], Path], tmp_path: Path,
                                                      medgan: Command) -> None:
    status, out, err = medgan("inspect", maker(tmp_path / "data"), "--json")
    told = json.loads(out)
    assert status == 0 and told["kind"] == "dataset" and err == ""
    assert told["summary"]["cases"] == len(told["volumes"]) > 0
    assert set(told) == {"status", "codes", "kind", "volumes", "notes", "summary"}


def test_inspect_describes_a_volume_and_a_series(tmp_path: Path, medgan: Command) -> None:
    make.nifti(tmp_path / "a.nii.gz", make.image(1))
    told = json.loads(medgan("inspect", tmp_path / "a.nii.gz", "--json")[1])
    assert (told["status"], told["kind"]) == ("ok", "volume")
    assert told["volumes"][0] | {"range": None, "modality": None} == {
        "shape": list(make.SHAPE), "channels": 1, "spacing_mm": [0.8, 1.0, 2.5], "orientation": "LPS",
        "origin_mm": [40.0, 30.0, -10.0], "modality": None, "dtype": "int16", "range": None}
    make.dicom_series(tmp_path / "series", 1, "CANARY")
    status, out, _ = medgan("inspect", tmp_path / "series", "--json")
    told = json.loads(out)
    assert (status, told["kind"], told["volumes"][0]["shape"], told["volumes"][0]["modality"]) == (
        0, "series", [8, 6, 4], "ct")
    assert "CANARY" not in out and "Canary" not in out
    text = medgan("inspect", tmp_path / "series")[1]
    assert text.splitlines()[0] == f"{tmp_path / 'series'}: series, {told['status']}" and "shape [8, 6, 4]" in text


@pytest.mark.parametrize("as_json", [True, False])
def test_inspect_of_what_cannot_be_read_is_exit_code_3(as_json: bool, tmp_path: Path, medgan: Command) -> None:
    broken = make.text(tmp_path / "a.nii.gz", b"\x1f\x8b\x08")
    status, out, _ = medgan("inspect", broken, *["--json"] * as_json)
    assert status == 3
    if as_json:
        told = json.loads(out)
        assert told["status"] == "refused" and told["codes"] == [told["notes"][0]["code"]]
        assert set(told["notes"][0]) == {"level", "code", "where", "why", "fix"}
    else:
        assert re.search(r"error\[FILE_[A-Z]+\] .*a\.nii\.gz: ", out)
    assert everything(tmp_path) == ["a.nii.gz", "cwd"]


def test_a_pipeline_gets_its_arguments_and_its_exit_code_is_kept(tmp_path: Path, medgan: Command) -> None:
    script = make.text(tmp_path / "mine.py", "import sys\nprint(sys.argv[1:], __name__)\nsys.exit(7)\n")
    assert medgan("run", script, "--", "--fast", "a b") == (7, "['--fast', 'a b'] __main__\n", "")


def test_a_full_disk_is_told_without_a_traceback(tmp_path: Path, mr_set: Path, medgan: Command,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "scan.nii.gz")

    monkeypatch.setattr("medgan.verbs.plans.write_json", full)
    status, _, err = medgan("augment", mr_set, "--method", "paste", "--out", tmp_path / "new")
    assert status == 3 and err.splitlines()[-1].startswith("error[OUT_FULL] scan.nii.gz: ")
