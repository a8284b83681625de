"""`evaluate`: who is compared with whom, one reading for both sides, the figures, the words and the report."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import dataset_makers as make
import numpy as np
import pytest
from cli_makers import REFUSAL, everything
from numpy.typing import NDArray
from test_page import fetched, probed

import medgan
from medgan import cli
from medgan.config import Config
from medgan.datasets.layouts import open_dataset
from medgan.errors import Refused
from medgan.verbs import looking, measuring
from medgan.verbs.evaluate import FIGURES, REPORT
from medgan.verbs.judging import roles

SIZE = 16
#: Settings with which an evaluation takes seconds.
QUICK = ("evaluate.features=random", "evaluate.seeds=1", "evaluate.steps=3", "evaluate.resamples=100",
         "evaluate.most=40")
CONFIG = Config.resolve("xray", "image", settings=QUICK)
#: Training images planted among the synthetic ones of each class.
COPIED = 6


def pictures(count: int, kind: int, seed: int, blur: float = 0.0) -> NDArray[np.uint8]:
    """Bright discs (0) or bars (1) at random places on noise."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    made: list[NDArray[np.float64]] = []
    for _ in range(count):
        (row, column), size = rng.uniform(4, 12, 2), rng.uniform(2, 4)
        shape = np.hypot(rows - row, columns - column) < size if kind == 0 else np.abs(rows - row) < size / 2
        image = 60 + 110 * shape + rng.normal(0, 14, shape.shape)
        made.append(ndimage.gaussian_filter(image, blur) if blur else image)
    return np.asarray(np.clip(np.stack(made), 0, 255), np.uint8)


def npz(path: Path, **splits: tuple[int, int, int]) -> Path:
    """A MedMNIST-style file: split -> (of class 0, of class 1, seed)."""
    arrays: dict[str, NDArray[Any]] = {}
    for split, (zeros, ones, seed) in splits.items():
        arrays[f"{split}_images"] = np.concatenate([pictures(n, k, seed + k) for k, n in ((0, zeros), (1, ones))
                                                    if n])
        arrays[f"{split}_labels"] = np.repeat([0, 1], [zeros, ones]).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return npz(tmp_path_factory.mktemp("real") / "chestmnist.npz", train=(60, 60, 1), test=(24, 24, 11))


@pytest.fixture(scope="module")
def blurred(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blurred images of other seeds, and some training images as they are."""
    path = tmp_path_factory.mktemp("made") / "made.npz"
    train = np.load(real)["train_images"]
    halves = [np.concatenate([pictures(40, k, 21 + k, blur=1.2), train[60 * k : 60 * k + COPIED]]) for k in (0, 1)]
    np.savez(path, train_images=np.concatenate(halves), train_labels=np.repeat([0, 1], 40 + COPIED))
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["medgan", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


@pytest.fixture(scope="module")
def judged(real: Path, blurred: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished evaluation."""
    out = tmp_path_factory.mktemp("judged") / "out"
    made = medgan.evaluate(real, blurred, out=out, modality="xray", settings=QUICK)
    assert made.out == out and made.report == out / REPORT
    return out


def figures(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / FIGURES).read_text(encoding="utf-8")))


def test_everything_is_measured_at_equal_n_and_written(judged: Path) -> None:
    found = figures(judged)
    assert sorted(path.name for path in judged.iterdir()) == [FIGURES, REPORT]
    assert list(found["classes"]) == [measuring.ALL, "0", "1"]
    for entry in found["classes"].values():
        assert set(entry["measures"]) == {"mmd2", "frechet", "kid", "realness", "precision", "recall", "density",
                                          "coverage", "vendi_ratio", "ms_ssim"}
        for name, value in entry["measures"].items():
            assert value["n_real"] == value["n_made"] or name == "ms_ssim"
            assert None not in (value["value"], value["floor"], value["floor_sd"], value["low"], value["high"])
    assert found["images"]["real"] == {"0": 60, "1": 60} and found["images"]["synthetic"] == {"0": 46, "1": 46}
    assert set(found["utility"]["arms"]) == {"real", "classic", "oversampled", "duplicated", "synthetic added",
                                             "synthetic only"}
    assert found["utility"]["trained_on"] | {"real": 0} == {
        "real": 0, "classic": 120, "oversampled": 120, "duplicated": 212, "synthetic added": 212, "synthetic only": 92}
    assert found["utility"]["n"] == 48 and found["heldout"]["from"] == "its own test split"
    for change in found["utility"]["differences"].values():
        assert change["auroc"]["detectable"] > 0 and change["delong"]["p_holm"] >= change["delong"]["p"]
    assert found["settings"]["evaluate"]["steps"] == 3 and found["real"]["fingerprint"] and found["versions"]["torch"]


def test_planted_faults_are_found(judged: Path) -> None:
    found = figures(judged)
    assert found["memorisation"]["identical"] > COPIED  # of 80 of 92 that were looked at
    assert found["verdict"]["memorisation"]["answer"] == "copies"
    assert [pair["flagged"] for pair in found["memorisation"]["most_alike"][:COPIED]] == [True] * COPIED
    assert found["memorisation"]["most_alike"][0]["correlation"] == pytest.approx(1, abs=1e-3)
    assert found["verdict"]["fidelity"]["answer"] in ("fair", "bad") and found["verdict"]["fidelity"]["times"] > 1
    assert found["verdict"]["diversity"]["answer"] in ("fair", "bad")
    assert any("marked as synthetic" in text for text in found["warnings"])


def test_the_report_is_one_file_that_says_it_all(judged: Path) -> None:
    html = (judged / REPORT).read_text(encoding="utf-8")
    assert fetched(html) == [] and "<script" not in html
    found = figures(judged)
    for part in ("Some are copies", "Samples", "Do they help?", "Likeness and variety", "Copies", "Intensities",
                 "What was compared", "conventions of medgan", found["real"]["fingerprint"],
                 found["synthetic"]["fingerprint"], "ROC curves", "smallest detectable"):
        assert part in html, part
    assert html.count('src="data:image/png;base64,') == 2 * 2 + 12  # sheets of two classes, pairs
    for text in found["warnings"]:
        assert text in html


@pytest.mark.slow
def test_a_browser_draws_the_report(judged: Path, tmp_path: Path) -> None:
    html = (judged / REPORT).read_text(encoding="utf-8")
    found = probed(html, tmp_path)
    assert len(found["images"]) == 16 and min(found["images"]) > 0
    assert len(found["drawings"]) == html.count("<svg") and min(found["drawings"]) > 50
    assert found["loaded"] == [] and found["wide"] == 0


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(judged: Path, real: Path, blurred: Path, tmp_path: Path) -> None:
    medgan.evaluate(real, blurred, out=tmp_path / "again", modality="xray", settings=QUICK)
    assert make.tree(tmp_path / "again") == make.tree(judged)


def test_the_command_prints_the_verdict_and_refuses_to_overwrite(
        judged: Path, real: Path, blurred: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    done = medgan.verbs.evaluate.Evaluation(judged, figures(judged))
    monkeypatch.setattr("medgan.verbs.evaluate.evaluate", lambda *_, **__: done)
    assert run(monkeypatch, "evaluate", real, blurred, "--modality", "xray") == 0
    out, err = capsys.readouterr()
    assert "Are they copies? Copies. " in out and str(judged / REPORT) in out and "warning: Nothing in made" in err
    assert run(monkeypatch, "evaluate", real, blurred, "--modality", "xray", "--json") == 0
    assert set(json.loads(capsys.readouterr().out)) == {"out", "report", "verdict", "images", "warnings"}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "itself": ({"synthetic": "REAL"}, "DATASET_EMPTY"),
    "nothing there": ({"synthetic": "gone"}, "FILE_MISSING"),
    "no modality": ({"modality": None}, "CFG_VALUE"),
    "an encoder that is none": ({"settings": ("evaluate.features=magic",)}, "CFG_VALUE"),
    "too few images": ({"synthetic": {"train": (5, 5, 3)}}, "DATASET_EMPTY"),
    "the training images held out": ({"heldout": "REAL"}, "SPLIT_LEAK"),
    "an output that is taken": ({"out": "."}, "OUT_EXISTS"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_compared_is_refused_and_nothing_is_written(name: str, real: Path, tmp_path: Path) -> None:
    changes, code = REFUSED[name]
    kept = npz(tmp_path / "some/made.npz", train=(20, 20, 5))
    given: dict[str, Any] = {"synthetic": kept, "modality": "xray", "out": tmp_path / "out", "settings": QUICK,
                             **changes}
    here = npz(tmp_path / "mine/archive.npz", train=(30, 30, 1), test=(10, 10, 11))
    for key, value in given.items():
        if isinstance(value, dict):
            given[key] = npz(tmp_path / "other/made.npz", **value)
        elif value == "REAL":
            given[key] = here
        elif value == ".":
            given[key] = tmp_path
    before = everything(tmp_path)
    with pytest.raises(Refused) as refusal:
        medgan.evaluate(here, given.pop("synthetic"), **given)
    assert refusal.value.code == code and REFUSAL.fullmatch(f"{refusal.value}\n")
    assert everything(tmp_path) == before


def test_classes_that_only_the_synthetic_set_has_are_refused(real: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.npz"
    np.savez(made, train_images=pictures(24, 0, 3), train_labels=np.repeat([0, 7], 12))
    with pytest.raises(Refused, match=r"LABEL_UNKNOWN.*'7'"):
        roles(open_dataset(real), open_dataset(made), None, 0)


def test_of_an_augmented_set_only_the_synthetic_cases_are_looked_at(xray_classes: Path, image_run: Path, tmp_path: Path
                                                                    ) -> None:
    done = medgan.augment(xray_classes, factor=2, model=image_run, out=tmp_path / "twice", modality="xray")
    real, twice = open_dataset(xray_classes), open_dataset(done.out)
    found = roles(real, twice, None, 0)
    assert {case.id for case in found.made} == set(done.synthetic) and found.kind == "classes"
    train, held = ({case.id for case in cases} for cases in (found.train, found.heldout))
    assert not train & held and len(held) == round(0.25 * len(real.cases)) and len(train | held) == len(real.cases)
    assert "no --heldout was given" in " ".join(found.warnings)
    # What was augmented is no real data set either: its synthetic cases stay out.
    assert not any(case.synthetic for case in roles(twice, twice, None, 0).train)
    # No synthetic case in it: nothing to judge, though its cases would do.
    only = replace(twice, cases=tuple(case for case in twice.cases if not case.synthetic))
    with pytest.raises(Refused, match=r"DATASET_EMPTY.*no synthetic case"):
        roles(real, only, None, 0)


def test_a_named_patient_cannot_be_held_out_and_learned_from(tmp_path: Path) -> None:
    real, other = make.class_volumes(tmp_path / "real"), make.class_volumes(tmp_path / "held")
    made = make.class_volumes(tmp_path / "made")
    opened = [open_dataset(path) for path in (real, made, other)]
    renamed = replace(opened[1], cases=tuple(replace(case, id=f"m{case.id}", patient=f"m{case.id}")
                                             for case in opened[1].cases))
    with pytest.raises(Refused, match=r"SPLIT_LEAK.*person1"):
        roles(opened[0], renamed, opened[2], 0)


def test_both_sides_are_read_alike_whatever_their_layout(real: Path, tmp_path: Path) -> None:
    from PIL import Image

    held = np.load(real)
    for number, (pixels, label) in enumerate(zip(held["train_images"], held["train_labels"], strict=True)):
        folder = tmp_path / "png" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"i{number:03d}.png")
    found = roles(open_dataset(real), open_dataset(tmp_path / "png"), None, 0)
    read = looking.gather(found, CONFIG)
    assert read.lines_down and read.classes == ("0", "1")
    assert np.array_equal(read.made.images, read.train.images) and read.made.images.shape == (120, 1, SIZE, SIZE)
    assert read.made.images.min() == -1 and read.made.images.max() == 1
    smaller = looking.gather(found, Config.resolve("xray", "image", settings={"evaluate.size": 16}))
    assert smaller.made.images.shape[2:] == (16, 16)


def test_a_training_image_among_the_held_out_is_left_out_and_told(tmp_path: Path) -> None:
    path = npz(tmp_path / "real.npz", train=(20, 20, 1), test=(15, 15, 9))
    held = dict(np.load(path))
    held["test_images"][3] = held["train_images"][5]
    np.savez(path, **held)
    made = npz(tmp_path / "made.npz", train=(20, 20, 4))
    read = looking.gather(roles(open_dataset(path), open_dataset(made), None, 0), CONFIG)
    assert len(read.heldout) == 29 and any("1 held-out images are training images" in text for text in read.warnings)


def test_odd_values_and_missing_classes_are_told(tmp_path: Path) -> None:
    real = npz(tmp_path / "real.npz", train=(20, 20, 1), test=(15, 15, 9))
    dark = pictures(20, 0, 4) // 8
    dark[0] = 7
    np.savez(tmp_path / "made.npz", train_images=dark, train_labels=np.zeros(20, int))
    read = looking.gather(roles(open_dataset(real), open_dataset(tmp_path / "made.npz"), None, 0), CONFIG)
    said = " ".join(read.warnings)
    assert read.classes == ("0",) and "no synthetic image of class 1" in said
    assert "Stored values differ" in said and "1 of 20 synthetic images have one value everywhere" in said


def test_lesions_are_compared_as_crops_and_only_new_ones(mr_set: Path, tmp_path: Path) -> None:
    from medgan.datasets.layouts import LAYOUTS
    from medgan.datasets.provenance import Provenance

    done = medgan.augment(mr_set, factor=2, method="paste", out=tmp_path / "twice", modality="mr",
                          settings={"augment.removed": 0, "augment.cores": 0, "augment.seen": 0})
    real, twice = open_dataset(mr_set), open_dataset(done.out)
    found = roles(real, twice, None, 0)
    assert found.kind == "lesions" and 0 < len(found.made) <= len(done.synthetic)
    config = Config.resolve("mr", "image", settings={"evaluate.size": 24})
    reader = looking._Lesions(found, config)
    records = [Provenance.read(LAYOUTS[twice.layout].sidecar(case)) for case in found.made]
    crops = [list(reader.rows(twice, case)) for case in found.made]
    own = [list(reader.rows(twice, replace(case, synthetic=False))) for case in found.made]
    for record, new, all_of_them in zip(records, crops, own, strict=True):
        assert 0 < len(new) <= len(record.lesions) and len(new) < len(all_of_them)
        assert all(crop[0].shape == (1, 24, 24) and crop[1] in reader.classes for crop in new)
    # The lesion lies in the middle of its crop, and the crop shows more than the lesion.
    assert float(np.std(crops[0][0][0])) > 0.05


def changed(mean: float, low: float, high: float) -> dict[str, float]:
    return {"mean": mean, "low": low, "high": high, "detectable": 0.02}


@pytest.mark.parametrize(("low", "high", "without", "answer"), [
    (0.01, 0.03, (0.05, 0.2), "helps"), (-0.03, -0.01, (-0.2, -0.05), "hurts"), (-0.01, 0.03, (0.05, 0.2), "not shown"),
    # Oversampling does better than synthetic images, and these better than nothing: they do not hurt.
    (-0.03, -0.01, (0.05, 0.2), "not shown")])
def test_they_help_or_hurt_only_where_the_intervals_say_so(low: float, high: float, without: tuple[float, float],
                                                           answer: str) -> None:
    level = {"classic": 0.80, "oversampled": 0.90, "duplicated": 0.85, "synthetic added": 0.91, "synthetic only": 0.7}
    utility = {"asked": True, "n": 100, "seeds": 5,
               "arms": {arm: {key: {"mean": value} for key in ("auroc", "balanced_accuracy")}
                        for arm, value in level.items()},
               "differences": {f"synthetic added - {control}": {
                   key: changed(0.01, low, high) if control == "oversampled" else changed(0.1, *without)
                   for key in ("auroc", "balanced_accuracy")} for control in measuring.CONTROLS}}
    found = measuring._helps(utility)
    assert (found["answer"], found["against"]) == (answer, "oversampled") and not found["synthetic_only_enough"]
    assert ("That control does better" in found["text"]) == (answer == "not shown" and high < 0)
    assert re.search(r"0\.910 .* 0\.900 of the best control \(oversampled\)", found["text"])


def test_copies_are_called_so_only_beyond_chance() -> None:
    memory = {"share": 0.0, "low": 0.0, "high": 0.03, "control": 0.01, "n_synthetic": 100, "n_fresh": 300,
              "identical": 0}
    assert measuring._copies(memory)["answer"] == "none found"
    assert measuring._copies(memory | {"share": 0.03, "low": 0.006})["answer"] == "unclear"
    # As many are flagged of fresh real images, of which none is a copy.
    assert measuring._copies(memory | {"share": 0.03, "low": 0.006, "control": 0.04})["answer"] == "none found"
    assert measuring._copies(memory | {"share": 0.05, "low": 0.016, "control": 0.06})["answer"] == "none found"
    assert measuring._copies(memory | {"share": 0.05, "low": 0.016})["answer"] == "copies"
    assert measuring._copies(memory | {"identical": 1})["answer"] == "copies"
    # A few fresh images do not tell how alike two patients can be; identical ones need no telling.
    few = measuring._copies(memory | {"share": 0.9, "low": 0.8, "n_fresh": 8})
    assert few["answer"] == "unclear" and "8 fresh real images are too few" in few["text"]
    assert measuring._copies(memory | {"identical": 1, "n_fresh": 8})["answer"] == "copies"


def test_values_are_plain() -> None:
    told = measuring.plain({"a": np.float32(0.5), 1: [np.nan, np.int64(3)], "b": (np.bool_(True), np.array([np.inf]))})
    assert told == {"a": 0.5, "1": [None, 3], "b": [True, [None]]} and type(told["b"][0]) is bool
    json.dumps(told, allow_nan=False)
