"""The study of enhanced volumes: its versions of a volume, its small U-Net, its Dice and intervals, its reports."""

from __future__ import annotations

import csv
import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medgan.datasets import phantoms
from medgan.datasets.cases import Case
from medgan.datasets.splits import patient_key
from medgan.errors import Refused
from medgan.imaging.volume import Volume
from medgan.metrics import segmentation as seg
from medgan.reports.enhancement import ARMS, markdown, verdict
from medgan.resources import resource
from medgan.verbs.run import run_pipeline

QUICK = ["--seeds", "2", "--steps", "3", "--crop", "16", "--device", "cpu"]


@pytest.fixture(scope="module")
def program() -> dict[str, Any]:
    """The pipeline's functions, without running it."""
    return runpy.run_path(str(resource("pipelines", "enhanced_classifier.py")), run_name="not main")


def study(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        run_pipeline("enhanced_classifier", [str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of four small phantoms."""
    folder = tmp_path_factory.mktemp("enhanced")
    data = phantoms.write_phantoms(folder / "mr", "mr", count=4, seed=3, shape=(28, 33, 20))
    assert study(data, *QUICK, "--out", folder / "out") == 0
    return folder / "out"


def read(out: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    with (out / "scores.csv").open(encoding="utf-8", newline="") as file:
        return json.loads((out / "report.json").read_text(encoding="utf-8")), list(csv.DictReader(file))


def cube(edge: int, seed: int) -> seg.Labelled:
    """Noise with a bright cube, which is labelled 1, and a dark one, labelled 2."""
    rng = np.random.default_rng(seed)
    image = rng.normal(0, 0.1, (1, edge, edge, edge - 3)).astype(np.float32)
    labels = np.zeros(image.shape[1:], np.uint8)
    for label, value in ((1, 0.8), (2, -0.8)):
        x, y = rng.integers(0, edge - 8, 2)
        z = 0 if label == 1 else edge // 2
        image[0, x : x + 8, y : y + 8, z : z + 6] += value
        labels[x : x + 8, y : y + 8, z : z + 6] = label
    return seg.Labelled(image, labels)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_version_lies_where_the_original_does(program: dict[str, Any], axis: int) -> None:
    grid = np.indices((30, 29, 31)).astype(np.float32)
    middle = (14.0, 15.0, 13.0)
    blob = 100 * np.exp(-sum((g - m) ** 2 for g, m in zip(grid, middle, strict=True)) / (2 * 4.0**2)) + 10
    made, said = program["versions"](Volume(blob[None].astype(np.float32), modality="mr"), axis, 3, "gaussian",
                                     device="cpu")
    assert list(made) == list(ARMS) and said.factors[axis] == pytest.approx(3)
    assert (made["original"] == blob[None].astype(np.float32)).all()
    for array in made.values():
        assert array.shape == (1, 30, 29, 31)
        weight = np.clip(array[0] - 12, 0, None)
        place = [float((g * weight).sum() / weight.sum()) for g in grid]
        assert place == pytest.approx(middle, abs=0.15)
    slabs = np.moveaxis(made["thick"][0], axis, 0)
    assert (slabs[0:3] == slabs[0]).all() and (slabs[12:15] == slabs[12]).all() and (slabs[12] != slabs[15]).any()
    errors = {arm: float(np.abs(array - made["original"]).mean()) for arm, array in made.items()}
    assert errors["linear"] < errors["cubic"] < errors["thick"], "this blob is smooth enough to be put back"


def test_steps_between_values_tell_scans_apart(program: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 300, 500)
    step = program["value_step"]
    assert step((counts * 7.31).astype(np.float32)) == pytest.approx(7.31, rel=1e-4)
    assert step(counts.astype(np.uint8)) == 1.0 and step(np.zeros(4, np.float32)) == 0.0
    cases = [Case(name, (), patient="") for name in ("h_03", "h_04", "h_05", "h_07", "h_08", "other")]
    people = [patient_key(case) for case in program["paired"](cases, [2.0, 2.00001, 2.0, 3.0, 3.1, 3.1])]
    assert people == ["h_03", "h_03", "h_05", "h_07", "h_08", "other"], "pairs, not chains, and neighbours only"


def test_dice_by_hand() -> None:
    wanted = np.array([[1, 1, 2, 0]])
    found = np.array([[1, 0, 0, 0]])
    assert seg.dice(found, wanted, 3) == pytest.approx([2 / 3, 0.0, np.nan], nan_ok=True)
    assert np.isnan(seg.dice(wanted, found, 2)[1]), "what nobody has counts for no arm, found or not"
    assert seg.dice(wanted, wanted, 2).tolist() == [1.0, 1.0]


def test_the_place_alone_is_the_commonest_label_over_the_middles() -> None:
    one, two = np.zeros((2, 4, 4, 4), np.uint8)
    one[1:3, 1:3, 1:3] = two[1:3, 1:3, 1:3] = 1
    two[0] = 2
    larger = np.zeros((6, 6, 6), np.uint8)
    larger[2:4, 2:4, 2:4] = 1
    found = seg.place_alone([one, two, larger], (6, 4, 2), 2)
    expected = np.zeros((6, 4, 2), np.uint8)
    expected[2:4, 1:3, :] = 1
    assert (found == expected).all()


def test_the_network_learns_two_cubes_and_the_same_seed_learns_the_same() -> None:
    training, tests = [cube(19, n) for n in range(6)], [cube(19, 100 + n) for n in range(3)]
    model = seg.train_segmenter(training, 2, steps=60, seed=1, crop=16)
    found = [seg.segment(model, test.image) for test in tests]
    assert all(one.shape == test.labels.shape for one, test in zip(found, tests, strict=True))
    reached = np.mean([seg.dice(one, test.labels, 2) for one, test in zip(found, tests, strict=True)], axis=0)
    assert (reached > 0.4).all(), "chance is 0.1"
    weights = [torch.cat([p.flatten() for p in seg.train_segmenter(training, 2, steps=2, seed=s, crop=16).parameters()])
               for s in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_what_cannot_be_learned_from_is_refused() -> None:
    empty = seg.Labelled(np.zeros((1, 8, 8, 8), np.float32), np.zeros((8, 8, 8), np.uint8))
    with pytest.raises(Refused, match="DATASET_EMPTY"):
        seg.train_segmenter([empty], 1, steps=1, seed=0)
    with pytest.raises(Refused, match="CFG_VALUE"):
        seg.train_segmenter([cube(19, 0)], 2, steps=1, seed=0, crop=18)


def test_arms_are_scored_on_the_versions_they_are_asked_about() -> None:
    arms = {"a": [cube(19, 0), cube(19, 1)], "b": [cube(19, 2)]}
    tests = {"a": [cube(19, 3), cube(19, 4)], "b": [cube(19, 4), cube(19, 3)]}
    scores, shown = seg.score_arms(arms, tests, {"a": ("a",), "b": ("b", "a")}, 2, seeds=[0, 1], steps=2, crop=16)
    assert set(scores) == set(shown) == {("a", "a"), ("b", "b"), ("b", "a")}
    assert all(values.shape == (2, 2, 2) for values in scores.values())
    assert (scores["b", "b"][:, ::-1] == scores["b", "a"]).all(), "the same volumes, the other way round"
    again = seg.dice(shown["b", "a"], tests["a"][0].labels, 2)
    assert scores["b", "a"][0, 0] == pytest.approx(again, nan_ok=True)


def test_intervals_by_hand_and_people_drawn_whole() -> None:
    # Three people of Dice 0.2, 0.5 and 0.8: in 1 of 27 resamples, more than 2.5 %, all three draws are the worst one.
    values = np.array([0.2, 0.5, 0.8])[None, :, None]
    test = seg.compare_dice({"one": values, "other": values - 0.1}, ["a", "b", "c"], ["x"], [("one", "other")])
    one, change = test["arms"]["one"]["x"], test["differences"]["one - other"]["x"]
    assert (one["mean"], one["low"], one["high"]) == pytest.approx((0.5, 0.2, 0.8))
    assert (change["mean"], change["low"], change["high"]) == pytest.approx((0.1, 0.1, 0.1)), "paired"
    assert change["detectable"] == pytest.approx(0) and test["people"] == 3
    twice = seg.compare_dice({"one": values.repeat(2, axis=1)}, [*"aabbcc"], ["x"], [])
    same = twice["arms"]["one"]["x"]
    assert (same["mean"], same["low"], same["high"]) == pytest.approx((one["mean"], one["low"], one["high"]))
    assert (twice["people"], twice["volumes"]) == (3, 6)


def test_the_detectable_difference_is_found_four_times_in_five() -> None:
    rng = np.random.default_rng(0)
    sd, people = 0.1, 40
    noise = rng.normal(0, sd, (1, people, 1))
    test = seg.compare_dice({"one": noise, "zero": np.zeros_like(noise)}, [str(n) for n in range(people)], ["x"],
                            [("one", "zero")])
    expected = 2.8 * float(noise.std()) / np.sqrt(people)
    assert test["differences"]["one - zero"]["x"]["detectable"] == pytest.approx(expected, rel=0.1)


def test_a_label_that_is_nowhere_counts_for_nobody() -> None:
    values = np.array([[[0.4, np.nan], [0.6, 0.2]]])
    values = np.concatenate([values, np.full((1, 2, 1), np.nan)], axis=2)
    test = seg.compare_dice({"one": values}, ["a", "b"], ["x", "y", "z"], [])["arms"]["one"]
    assert list(test) == ["x", "y", "mean"], "no volume has z"
    assert test["x"]["mean"] == pytest.approx(0.5) and test["y"]["mean"] == pytest.approx(0.2)
    assert test["mean"]["mean"] == pytest.approx((0.4 + 0.4) / 2)


def test_the_figures_are_those_of_the_scores(done: Path) -> None:
    report, rows = read(done)
    assert len(report["tests"]) == 2 and report["network"]["seeds"] == 2
    for question, test in report["tests"].items():
        assert list(test["arms"]) == list(ARMS) and (test["people"], test["volumes"]) == (4, 4)
        for arm, measures in test["arms"].items():
            assert list(measures)[-1] == "mean" and set(measures) - {"mean"} <= set(report["data"]["labels"])
            for label in list(measures)[:-1]:
                for seed, value in enumerate(measures[label]["per_seed"]):
                    mine = [float(row["dice"]) for row in rows if (row["test"], row["arm"], row["label"], row["seed"])
                            == (question, arm, label, str(seed))]
                    known = [dice for dice in mine if np.isfinite(dice)]
                    assert len(mine) == 4
                    assert value == pytest.approx(np.mean(known), abs=1e-5)
    both = [report["tests"][question]["arms"]["original"] for question in report["tests"]]
    assert json.dumps(both[0]) == json.dumps(both[1]), "the same networks on the same volumes"


def test_every_person_is_held_back_once(done: Path) -> None:
    report, rows = read(done)
    held = [name for fold in report["data"]["held_back"] for name in fold]
    assert len(held) == len(set(held)) == 4 == len({row["person"] for row in rows})
    assert all(report["data"]["held_back"])


def test_the_report_is_plain_and_there_is_a_picture(done: Path) -> None:
    from PIL import Image

    report, _ = read(done)
    text = (done / "report.md").read_text(encoding="utf-8")
    assert all(sentence in text for sentence in report["verdict"].values())
    assert report["command"] in text and "What this does not show" in text
    assert (report["model"] is None) == (report["uncovered"] == 4) and (report["model"] or "none") in text
    assert all(warning in text for warning in report["warnings"])
    assert Image.open(done / "slices.png").size[0] > 100


def test_the_verdict_follows_the_interval(done: Path) -> None:
    report, _ = read(done)
    question, test = next(iter(report["tests"].items()))
    for low, high, word in ((0.01, 0.03, "helped"), (-0.03, -0.01, "hurt"), (-0.01, 0.01, "was not shown to help")):
        changed = json.loads(json.dumps(test))
        changed["differences"]["network - thick"]["mean"].update(mean=(low + high) / 2, low=low, high=high)
        assert f"network {word}:" in verdict(question, changed)
    assert "rough" in verdict(question, test), "four people"
    assert "In 2 of 4 volumes" in markdown({**report, "uncovered": 2})


def test_what_is_refused(tmp_path: Path, mr_set: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(Refused, match="OUT_EXISTS"):
        run_pipeline("enhanced_classifier", [str(mr_set), "--out", str(tmp_path)])
    with pytest.raises(Refused, match="CFG_VALUE"):
        run_pipeline("enhanced_classifier", [str(mr_set), "--profile", "box", "--out", str(tmp_path / "out")])
    flat = phantoms.write_phantoms(tmp_path / "flat", "mr", count=2, seed=1, dims=2, shape=(32, 32))
    with pytest.raises(Refused, match="DIM_UNSUPPORTED"):
        run_pipeline("enhanced_classifier", [str(flat), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_real_crops_come_in_pairs(program: dict[str, Any], shared_data: Path) -> None:
    from medgan.datasets.layouts import open_dataset

    real = open_dataset(shared_data / "hippocampus")
    cases = [case for case in real.cases if case.id[-3:] in ("006", "007", "008", "011")]
    paired = program["paired"](cases, [program["value_step"](real.load(case)[0].array) for case in cases])
    people = [patient_key(case) for case in paired]
    assert people[1] == people[2] and len(set(people)) == 3


@pytest.mark.slow
def test_without_a_data_set_phantoms_stand_in(tmp_path: Path) -> None:
    assert study("--quick", "--profile", "rect", "--axis", "2", "--device", "cpu", "--out", tmp_path / "out") == 0
    report, _ = read(tmp_path / "out")
    assert report["network"]["quick"] and report["tests"] and report["data"]["people"] == 6
    assert report["thinned"] == {"axis": 2, "factor": 4, "profile": "rect"}
