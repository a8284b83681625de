"""A study of arms: results that are kept, trainings that go on, differences that are those of the results."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from medgan.datasets.layouts import open_dataset
from medgan.metrics import segmentation, study
from medgan.metrics.examples import OUTSIDE, Examples
from medgan.metrics.labelled import Labelled
from medgan.metrics.study import Effort, Known, Ledger, Part, compare_study, run_fold
from medgan.resources import resource

EFFORT = Effort(steps=2, crop=16, batch=2)
SLICES = 6


def known(patient: str, seed: int, contrast: float = 0.8) -> Known:
    """A disc of tissue with a lesion in the middle slices."""
    rng = np.random.default_rng(seed)
    x, y, z = np.indices((24, 24, SLICES))
    tissue = (x - 12) ** 2 + (y - 12) ** 2 < 110
    middle = rng.integers(9, 16, 2)
    lesion = ((x - middle[0]) ** 2 + (y - middle[1]) ** 2 < 16) & (z >= 2) & (z < 5)
    image = np.where(tissue, rng.normal(0, 0.05, x.shape) + contrast * lesion, OUTSIDE)[None].astype(np.float32)
    pictures = Examples(np.ascontiguousarray(np.moveaxis(image, -1, 0)), lesion.any(axis=(0, 1)),
                        np.full(SLICES, patient), np.arange(SLICES))
    return Known(f"case-{patient}", patient, pictures, Labelled(
        image, lesion.astype(np.uint8), case=f"case-{patient}", patient=patient,
        tissue=tuple(int(n) for n in tissue.sum(axis=(0, 1)))))


def reads(cases: Sequence[Known]) -> Callable[[], Sequence[Known]]:
    return lambda: cases


def segmented(dice: float, lesions: int = 1, found: int = 1, false: int = 0) -> dict[str, Any]:
    slices = [0.1, 0.2, 0.9, 0.8, 0.7, 0.3]
    return {"dice": dice, "lesions": lesions, "found": found, "false_positives": false, "slices": slices}


def parts(folder: Path, arms: Mapping[str, float], patients: str, folds: int, seeds: int) -> list[Part]:
    """Parts whose Dice is 0.5 for the first patient, 0.6 for the second, ..., and what an arm adds; no noise."""
    made = []
    cases = [known(patient, n) for n, patient in enumerate(patients)]
    for fold in range(folds):
        ledger = Ledger(folder / f"{fold}.jsonl")
        for arm, more in arms.items():
            for seed in range(seeds):
                ledger.add("segmenter", arm, 1000 * fold + seed, tests={
                    "x": [segmented(0.5 + 0.1 * n + more) for n in range(len(cases))]})
                ledger.add("classifier", arm, 1000 * fold + seed, tests={
                    "x": [[0.1, 0.2, 0.9, 0.8, 0.7, 0.3] for _ in cases]})
        made.append(Part(cases, ledger, "x", [1000 * fold + seed for seed in range(seeds)]))
    return made


def test_a_planted_difference_is_found_and_equal_arms_differ_by_nothing(tmp_path: Path) -> None:
    found = compare_study(parts(tmp_path, {"real": 0.0, "same": 0.0, "more": 0.08}, "abcd", 2, 3),
                          ["real", "same", "more"], [("same", "real"), ("more", "real")], study.MODELS)
    assert found["resampled_cases"] == "patients" and found["resampled"] == "patients"
    same, more = (found["differences"][f"{arm} - real"] for arm in ("same", "more"))
    assert all((change["mean"], change["low"], change["high"]) == (0, 0, 0) for change in same.values())
    assert set(same) == {"dice", "sensitivity", "false_positives", "slice_auroc", "auroc", "balanced_accuracy"}
    assert (more["dice"]["low"], more["dice"]["mean"], more["dice"]["high"]) == pytest.approx((0.08, 0.08, 0.08))
    assert found["by_fold"]["more - real"] == pytest.approx([0.08, 0.08])
    real = found["arms"]["real"]
    assert real["dice"]["mean"] == pytest.approx(0.65) and real["dice"]["low"] < 0.6 < 0.7 < real["dice"]["high"]
    assert real["auroc"]["mean"] == real["slice_auroc"]["mean"] == 1.0
    assert found["lesions"] == 2 * 4, "in both folds"


@pytest.mark.parametrize("patients, folds, resampled", [("abc", 1, "patients"), ("a", 3, "folds"), ("ab", 2, "seeds")])
def test_what_an_interval_comes_from(tmp_path: Path, patients: str, folds: int, resampled: str) -> None:
    found = compare_study(parts(tmp_path, {"real": 0.0}, patients, folds, 2), ["real"], [], ["segmenter"])
    assert found["resampled_cases"] == resampled
    dice = found["arms"]["real"]["dice"]
    assert (dice["low"] < dice["high"]) == (resampled == "patients"), "only patients differ here"


def test_lesions_found_and_false_positives_are_measured_a_patient(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "x.jsonl")
    ledger.add("segmenter", "real", 0, tests={"x": [segmented(0.5, 4, 1, 3), segmented(0.7, 2, 2, 0),
                                                    segmented(0.3, 0, 0, 6)]})
    cases = [known(patient, n) for n, patient in enumerate("abc")]
    found = compare_study([Part(cases, ledger, "x", [0])], ["real"], [], ["segmenter"])["arms"]["real"]
    assert found["sensitivity"]["mean"] == pytest.approx((0.25 + 1) / 2), "without the one who has no lesion"
    assert found["false_positives"]["mean"] == pytest.approx(3)


def test_slices_of_one_class_have_no_auroc_but_their_volumes_have_dice(tmp_path: Path) -> None:
    cases = [known(patient, n) for n, patient in enumerate("abc")]
    every = [Known(case.case, case.patient, case.pictures, Labelled(
        case.volume.image[..., 2:5], case.volume.labels[..., 2:5], tissue=case.volume.tissue[2:5]))
        for case in cases if case.volume is not None]
    ledger = Ledger(tmp_path / "x.jsonl")
    ledger.add("segmenter", "real", 0, tests={"x": [segmented(0.5) | {"slices": [0.9, 0.8, 0.7]} for _ in every]})
    found = compare_study([Part(every, ledger, "x", [0])], ["real"], [], ["segmenter"])
    assert "slice_auroc" not in found["arms"]["real"] and found["arms"]["real"]["dice"]["mean"] == 0.5


def test_a_ledger_keeps_what_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "fold" / "results.jsonl"
    ledger = Ledger(path)
    ledger.add("segmenter", "real", 0, tests={"x": [segmented(0.5)]})
    ledger.add("segmenter", "real", 1, tests={"x": [segmented(0.6)]})
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    again = Ledger(path)
    assert again.get("segmenter", "real", 0) == ledger.get("segmenter", "real", 0)
    assert again.pending(["real"], ["segmenter"], [0, 1]) == [(1, "real", "segmenter")]
    again.add("segmenter", "real", 1, tests={"x": [segmented(0.6)]})
    assert path.read_bytes() == whole
    with pytest.raises(ValueError):
        again.add("segmenter", "real", 2, tests={"x": [segmented(float("nan"))]})


def test_a_killed_study_goes_on_to_the_same_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = {"real": reads([known("a", 0)]), "more": reads([known("a", 0), known("b", 1)])}
    tests = {"x": [known("c", 2)]}

    def fold(name: str) -> None:
        run_fold(Ledger(tmp_path / name), arms, tests, study.MODELS, [5, 6], EFFORT)

    fold("whole")
    real = study.train_and_test
    done: list[Any] = []

    def killed(*given: Any, **more: Any) -> Any:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(given)
        return real(*given, **more)

    monkeypatch.setattr(study, "train_and_test", killed)
    with pytest.raises(KeyboardInterrupt):
        fold("cut")
    assert (tmp_path / "cut").read_bytes() != (tmp_path / "whole").read_bytes()
    monkeypatch.setattr(study, "train_and_test", real)
    fold("cut")
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()
    # Done is done: nothing is read and trained again.
    monkeypatch.setattr(study, "train_and_test", killed)
    arms["more"] = lambda: pytest.fail("read again")
    fold("cut")


def test_arms_differ_in_nothing_but_their_cases_and_one_has_no_augmentation(tmp_path: Path,
                                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    real = segmentation.train_segmenter

    def spy(training: Sequence[Labelled], labels: int, **more: Any) -> segmentation.SmallUNet:
        asked.append((len(training), labels, more))
        return real(training, labels, **more)

    monkeypatch.setattr(segmentation, "train_segmenter", spy)
    one = known("a", 0)
    ledger = Ledger(tmp_path / "x.jsonl")
    run_fold(ledger, {"nothing": reads([one]), "real": reads([one]), "duplicated": reads([one] * 3)},
             {"x": [known("c", 2)]}, study.MODELS, [7], EFFORT)
    assert [cases for cases, _, _ in asked] == [1, 1, 3]
    assert [more.pop("augmentation") for _, _, more in asked] == ["none", "geometric", "geometric"]
    assert asked[0][2] == asked[1][2] == asked[2][2] and asked[0][2]["steps"] == EFFORT.steps
    plain, augmented = (ledger.get("classifier", arm, 7) for arm in ("nothing", "real"))
    assert plain is not None and augmented is not None and plain["tests"] != augmented["tests"]
    counted = ledger.get("arm", "duplicated")
    assert counted is not None
    assert (counted["cases"], counted["images"], counted["free_share"], counted["lesions_per_case"]) == (3, 18, 0.5, 1)


def test_cases_that_show_what_the_test_holds_help(tmp_path: Path) -> None:
    bright, dark = known("a", 0), known("b", 1, contrast=-0.7)
    ledger = Ledger(tmp_path / "x.jsonl")
    tests = {"x": [known(patient, 10 + n, contrast=-0.7) for n, patient in enumerate("cde")]}
    arms = {"real": reads([bright]), "more": reads([bright, dark])}
    run_fold(ledger, arms, tests, ["segmenter"], [0], Effort(steps=40, crop=24, batch=4))
    found = compare_study([Part(tests["x"], ledger, "x", [0])], list(arms), [("more", "real")], ["segmenter"])
    assert found["differences"]["more - real"]["dice"]["low"] > 0.2


@pytest.fixture(scope="module")
def benchmark() -> dict[str, Any]:
    """The functions of the benchmark script, without running it."""
    script = Path(__file__).resolve().parents[1] / "benchmarks" / "lesion_classifier.py"
    if not script.is_file():
        pytest.skip("no benchmarks beside the tests")
    return runpy.run_path(str(script), run_name="not main")


def test_every_study_asks_for_what_the_pipeline_knows(benchmark: dict[str, Any]) -> None:
    program = runpy.run_path(str(resource("pipelines", "lesion_classifier.py")), run_name="not main")
    command = typer.main.get_command(program["app"])
    for study_ in benchmark["STUDIES"].values():
        with command.make_context("x", ["data", *benchmark["COMMON"].split(), *study_.asked.split()]) as context:
            assert context.params["factor"] == 4
            assert sum(context.params[name] is not None for name in ("train_patients", "test_patients")) == 1


def test_a_data_set_on_a_coarser_grid_is_the_same_but_coarser(benchmark: dict[str, Any], mr_set: Path,
                                                              tmp_path: Path) -> None:
    there = benchmark["prepared"](mr_set.name, 5.0, mr_set.parent, tmp_path)
    fine, coarse = open_dataset(mr_set), open_dataset(there)
    assert coarse.labels == fine.labels and coarse.channels == fine.channels
    assert [case.id for case in coarse.cases] == [case.id for case in fine.cases]
    for one, other in zip(fine.cases, coarse.cases, strict=True):
        (image, mask), (small, labels) = fine.load(one), coarse.load(other)
        assert mask is not None and labels is not None and small.spacing_mm == pytest.approx((5, 5, 5))
        assert np.isin(labels.array, mask.array).all()
        assert small.array.mean() == pytest.approx(image.array.mean(), rel=0.05)
    assert benchmark["prepared"](mr_set.name, 5.0, tmp_path / "nowhere", tmp_path) == there, "written once"
    assert benchmark["prepared"]("ms", None, mr_set.parent, tmp_path) == mr_set.parent / "ms"
