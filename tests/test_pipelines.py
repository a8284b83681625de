"""The pipelines, run as the programs they are, on phantoms, with settings that make them quick."""

from __future__ import annotations

import csv
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medgan.datasets import phantoms
from medgan.datasets.layouts import open_dataset
from medgan.errors import Refused
from medgan.metrics.utility import auroc
from medgan.verbs.run import run_pipeline

QUICK = ["--seeds", "2", "--steps", "6", "--size", "32", "--crop", "16", "--batch", "2", "--device", "cpu"]
#: A generator of a few steps draws nothing that a gate would pass.
OPEN_GATES = {"augment.sigmas": 1000, "augment.visibility": -1000, "augment.seen": 0}


def settings(values: dict[str, Any]) -> list[str]:
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]


def classify(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        run_pipeline("lesion_classifier", [str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def other_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantoms.write_phantoms(tmp_path_factory.mktemp("other") / "mr", "mr", count=2, seed=77, shape=(56, 64, 28))


@pytest.fixture(scope="module")
def study(mr_set: Path, other_set: Path, tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds of three patients, and a data set held out."""
    out = tmp_path_factory.mktemp("study") / "out"
    assert classify(*command(mr_set, other_set, tiny, out)) == 0
    return out


def command(data: Path, heldout: Path, tiny: dict[str, Any], out: Path) -> list[str | Path]:
    return [data, "--heldout", heldout, "--test-patients", "2", "--method", "gan", "--method", "paste", "--method",
            "gan+paste", *QUICK,
            *settings(tiny | OPEN_GATES), "--out", out]


def read(study: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    report = json.loads((study / "report.json").read_text(encoding="utf-8"))
    with (study / "scores.csv").open(encoding="utf-8", newline="") as file:
        return report, list(csv.DictReader(file))


def test_held_back_patients_are_in_no_folder_that_anything_learns_from(study: Path, mr_set: Path) -> None:
    report, _ = read(study)
    everyone = {case.id for case in open_dataset(mr_set).cases}
    assert sorted(name for fold in report["folds"] for name in fold["held_back"]) == sorted(everyone)
    for number, fold in enumerate(report["folds"], 1):
        assert set(fold["training_patients"]) == everyone - set(fold["held_back"])
        files = [path for path in (study / f"fold-{number}").rglob("*") if path.is_file()]
        assert any(path.name == "weights.safetensors" for path in files)
        for name in fold["held_back"]:
            assert not [path for path in files if name in path.name]
            texts = [path for path in files if path.suffix in (".json", ".csv", ".md", ".jsonl")]
            assert any(path.name == "results.jsonl" for path in texts)
            assert not [path for path in texts if name in path.read_text(encoding="utf-8")]


def test_the_figures_are_those_of_the_scores(study: Path, mr_set: Path, other_set: Path) -> None:
    report, rows = read(study)
    with (study / "cases.csv").open(encoding="utf-8", newline="") as file:
        cases = list(csv.DictReader(file))
    assert set(report["tests"]) == {"held-back patients", other_set.name}
    for name, test in report["tests"].items():
        for arm, measures in test["arms"].items():
            found = measures["auroc"]
            assert len(found["per_seed"]) == 2 and found["mean"] == pytest.approx(np.mean(found["per_seed"]))
            assert 0 <= found["low"] <= found["high"] <= 1 and 0 <= found["mean"] <= 1
            for seed, value in enumerate(found["per_seed"]):
                mine = [row for row in rows if (row["test"], row["arm"], row["seed"]) == (name, arm, str(seed))]
                parts = []
                for fold in {row["fold"] for row in mine}:
                    part = [row for row in mine if row["fold"] == fold]
                    weight = len({row["patient"] for row in part})
                    parts.append((weight, auroc([int(row["positive"]) for row in part],
                                                [float(row["score"]) for row in part])[0]))
                assert value == pytest.approx(sum(w * v for w, v in parts) / sum(w for w, _ in parts), abs=1e-3)
            for seed, value in enumerate(measures["dice"]["per_seed"]):
                mine = [row for row in cases if (row["test"], row["arm"], row["seed"]) == (name, arm, str(seed))]
                assert len(mine) == (3 if name == "held-back patients" else 2 * 2), "each, in the folds that test it"
                assert value == pytest.approx(np.mean([float(row["dice"]) for row in mine]), abs=1e-5)
        for pair, change in test["differences"].items():
            one, other = pair.split(" - ")
            expected = test["arms"][one]["auroc"]["mean"] - test["arms"][other]["auroc"]["mean"]
            assert change["auroc"]["mean"] == pytest.approx(expected)
            assert all(measure["low"] <= measure["high"] and measure["detectable"] >= 0 for measure in change.values())
            assert set(change) == {"dice", "sensitivity", "false_positives", "slice_auroc", "auroc",
                                   "balanced_accuracy"}
        assert {f"{arm} - real" for arm in test["arms"] if arm != "real"} <= set(test["differences"])
        assert {"gan - paste", "gan+paste - paste", "gan - duplicated"} <= set(test["differences"])
    assert report["tests"]["held-back patients"]["resampled"] == "patients"
    assert report["tests"][other_set.name]["resampled"] == "blocks", "two patients are too few to resample"


def test_the_counts_are_those_of_the_data(study: Path, mr_set: Path, other_set: Path) -> None:
    report, rows = read(study)
    for name, path in (("held-back patients", mr_set), (other_set.name, other_set)):
        test = report["tests"][name]
        slices = {(row["patient"], row["slice"]): int(row["positive"]) for row in rows if row["test"] == name}
        assert (test["images"], test["positive"]) == (len(slices), sum(slices.values()))
        assert test["patients"] == len(open_dataset(path).cases)
        whole = open_dataset(path)
        for case in whole.cases:
            mask = whole.load(case)[1]
            assert mask is not None
            shown = mask.array[0].any(axis=(0, 1))
            assert all(shown[int(number)] == bool(positive) for (patient, number), positive in slices.items()
                       if patient == case.patient)


def test_arms_differ_in_nothing_but_their_cases(study: Path) -> None:
    report, _ = read(study)
    for fold in report["folds"]:
        arms, count = fold["arms"], len(fold["training_patients"])
        assert list(arms) == ["nothing", "real", "duplicated", "gan", "paste", "gan+paste"]
        assert {arm["steps"] for arm in arms.values()} == {6}
        assert [arm["cases"] for arm in arms.values()] == [count, count, *[2 * count] * 4]
        assert arms["nothing"] == {**arms["real"], "arm": "nothing"}
        assert arms["duplicated"]["images"] == 2 * arms["real"]["images"] < 2 * arms["gan"]["images"]
        assert arms["duplicated"]["free_share"] == pytest.approx(arms["real"]["free_share"])
        assert set(fold["made"]) == {"gan", "paste", "gan+paste"}
        assert {made["cases"] for made in fold["made"].values()} == {count}


def test_the_mixture_is_half_of_each(study: Path) -> None:
    report, _ = read(study)
    for number, fold in enumerate(report["folds"], 1):
        pools = {method: open_dataset(study / f"fold-{number}" / method) for method in ("gan", "paste")}
        found = {method: {pool.load(case)[0].array.tobytes() for case in pool.cases if case.synthetic}
                 for method, pool in pools.items()}
        assert all(len(images) == len(fold["training_patients"]) for images in found.values())
        assert fold["made"]["gan+paste"]["weights"] == fold["made"]["gan"]["weights"]
        share, alone = fold["arms"]["gan+paste"], [fold["arms"][method] for method in ("gan", "paste")]
        low, high = sorted(arm["lesions_per_case"] for arm in alone)
        if len(fold["training_patients"]) > 1:
            assert low - 1 <= share["lesions_per_case"] <= high + 1


def test_the_report_is_plain_and_there_is_a_picture(study: Path) -> None:
    from PIL import Image

    report, _ = read(study)
    text = (study / "report.md").read_text(encoding="utf-8")
    assert report["verdict"]["gan"] in text and report["command"] in text
    assert "not from patients" in text and "What this does not show" in text
    assert Image.open(study / "examples.png").size[0] > 100
    assert Image.open(study / "differences.png").size[0] > 1000 and "![differences](differences.png)" in text


def test_the_same_command_uses_the_generators_again_and_another_is_refused(
    study: Path, mr_set: Path, other_set: Path, tiny: dict[str, Any]
) -> None:
    weights = {path: path.stat().st_mtime_ns for path in study.rglob("weights.safetensors")}
    before = (study / "scores.csv").read_bytes()
    assert len(weights) == 2 and classify(*command(mr_set, other_set, tiny, study)) == 0
    assert {path: path.stat().st_mtime_ns for path in weights} == weights
    assert (study / "scores.csv").read_bytes() == before, "the same seeds give the same scores"
    with pytest.raises(Refused, match="OUT_EXISTS"):
        run_pipeline("lesion_classifier", [str(mr_set), "--factor", "3", "--out", str(study)])


def test_a_folder_of_someone_elses_is_refused(mr_set: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(Refused, match="OUT_EXISTS"):
        run_pipeline("lesion_classifier", [str(mr_set), "--out", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_images_with_classes(xray_classes: Path, tiny: dict[str, Any], tmp_path: Path) -> None:
    assert classify(xray_classes, "--modality", "xray", "--test-patients", "4", "--folds", "1", *QUICK,
                    *settings(tiny), "--out", tmp_path / "out") == 0
    report, _ = read(tmp_path / "out")
    assert list(report["folds"][0]["arms"]) == ["nothing", "real", "duplicated", "gan"]
    assert report["tests"]["held-back patients"]["images"] == 4 and report["models"]["positive"].endswith("opacity")
    assert report["models"]["names"] == ["classifier"] and not (tmp_path / "out" / "cases.csv").exists()
    for asked in (["--segmenter"], ["--no-classifier"], ["--method", "paste"]):
        with pytest.raises(Refused, match="CFG_VALUE"):
            run_pipeline("lesion_classifier", [str(xray_classes), "--modality", "xray", *asked, "--out",
                                               str(tmp_path / "other")])


def test_few_training_patients_and_a_patient_held_back_by_several_folds(mr_set: Path, tmp_path: Path) -> None:
    assert classify(mr_set, "--train-patients", "1", "--method", "procedural", *QUICK, *settings(OPEN_GATES), "--out",
                    tmp_path / "out") == 0
    report, rows = read(tmp_path / "out")
    assert [len(fold["training_patients"]) for fold in report["folds"]] == [1, 1, 1]
    assert [len(fold["held_back"]) for fold in report["folds"]] == [2, 2, 2]
    test = report["tests"]["held-back patients"]
    slices = {(row["patient"], row["slice"]) for row in rows}
    assert (test["patients"], test["images"]) == (3, len(slices)), "each counts once, though two folds scored it"


def test_folds_may_be_shared_out_and_more_arms_follow(mr_set: Path, tmp_path: Path) -> None:
    asked: list[str | Path] = [mr_set, "--train-patients", "1", "--method", "procedural", "--no-classifier",
                               "--spacing", "4", *QUICK, "--seeds", "1", *settings(OPEN_GATES)]
    assert classify(*asked, "--out", tmp_path / "whole") == 0
    for fold in ("3", "1"):
        assert classify(*asked, "--only-fold", fold, "--out", tmp_path / "shared") == 0
        assert not (tmp_path / "shared" / "report.json").exists()
    assert classify(*asked, "--only-fold", "2", "--out", tmp_path / "shared") == 0
    assert (tmp_path / "shared" / "cases.csv").read_bytes() == (tmp_path / "whole" / "cases.csv").read_bytes()
    with pytest.raises(Refused, match="4 of 3 folds"):
        run_pipeline("lesion_classifier", [str(word) for word in (*asked, "--only-fold", "4", "--out",
                                                                  tmp_path / "shared")])
    before = (tmp_path / "shared" / "fold-1" / "results.jsonl").read_bytes()
    assert classify(*asked, "--method", "paste", "--out", tmp_path / "shared") == 0
    after = (tmp_path / "shared" / "fold-1" / "results.jsonl").read_bytes()
    assert after.startswith(before) and b'"paste"' in after[len(before):]
    report = json.loads((tmp_path / "shared" / "report.json").read_text(encoding="utf-8"))
    assert report["models"]["names"] == ["segmenter"] and "by_fold" in report["tests"]["held-back patients"]


def test_without_a_data_set_phantoms_stand_in(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                              ) -> None:
    small = functools.partial(phantoms.write_phantoms, shape=(32, 36, 16))
    monkeypatch.setattr(phantoms, "write_phantoms", small)
    assert classify("--method", "procedural", *QUICK, "--seeds", "1", *settings(tiny | OPEN_GATES),
                    "--out", tmp_path / "out") == 0
    report, _ = read(tmp_path / "out")
    [fold], [test] = report["folds"], report["tests"].values()
    assert len(fold["training_patients"]) == 8 and fold["held_back"] == [] and test["patients"] == 6
