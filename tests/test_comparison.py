"""The report's words follow from its intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medgan.reports.comparison import finding, markdown, primary, verdict
from medgan.reports.forest import BETTER, OPEN, WORSE, forest, ticks


def estimate(mean: float, low: float, high: float) -> dict[str, Any]:
    return {"mean": mean, "seed_sd": 0.01, "low": low, "high": high, "per_seed": [mean], "detectable": 0.0}


def compared(change: dict[str, Any], against: dict[str, Any], **more: Any) -> dict[str, Any]:
    figure = {"auroc": estimate(0.8, 0.7, 0.9), "balanced_accuracy": estimate(0.7, 0.6, 0.8)}
    better = {**figure, "auroc": estimate(0.85, 0.7, 0.9)}
    changes = {"gan - real": change, "gan - duplicated": estimate(0.1, 0.05, 0.2), "gan - paste": against}
    return {"scans": {"arms": {"nothing": figure, "real": figure, "duplicated": figure, "paste": better, "gan": figure},
                      "differences": {pair: {"auroc": value, "balanced_accuracy": value}
                                      for pair, value in changes.items()},
                      "patients": 8, "images": 50, "positive": 20, "left_out": 3, "resampled": "blocks",
                      "trivial": {"slice number": 0.6, "tissue area": 0.5}, **more}}


@pytest.mark.parametrize("low, high, said", [(0.01, 0.1, "better"), (-0.1, -0.01, "worse"),
                                             (-0.01, 0.1, "no difference shown"), (0, 0, "no difference shown")])
def test_what_an_interval_allows_to_say(low: float, high: float, said: str) -> None:
    assert finding(estimate((low + high) / 2, low, high)) == said
    turned = {"better": "worse", "worse": "better"}.get(said, said)
    assert finding(estimate((low + high) / 2, low, high), "false_positives") == turned, "fewer are better"


def test_where_nothing_was_drawn_anew_nothing_is_claimed() -> None:
    assert finding(estimate(0.3, 0.3, 0.3)) == "no difference shown"


def test_masks_are_judged_by_dice_and_what_would_go_unseen_is_said() -> None:
    tests = compared(estimate(0.0, -0.1, 0.1), estimate(0.0, -0.1, 0.1))
    dice = estimate(0.04, -0.02, 0.10) | {"detectable": 0.086}
    for measures in (*tests["scans"]["arms"].values(), *tests["scans"]["differences"].values()):
        measures["dice"] = dice
    assert primary(tests["scans"]) == "dice"
    text = verdict(tests, "gan")
    assert "were not shown to help: Dice +0.040" in text and "a difference under 0.086 would mostly go unseen" in text
    assert "slice number" not in text, "the hint of the place is one to the question about slices"


def test_the_verdict_names_the_best_control() -> None:
    text = verdict(compared(estimate(0.05, 0.01, 0.09), estimate(-0.01, -0.05, 0.03)), "gan")
    assert text == ("On scans, gan images helped: AUROC +0.050 [+0.010, +0.090] against real images with the usual "
                    "augmentation; against the best control (paste) -0.010 [-0.050, +0.030]: no difference shown.")


@pytest.mark.parametrize("low, high, said", [(0.01, 0.05, "helped"), (-0.05, -0.01, "hurt"),
                                             (-0.01, 0.05, "were not shown to help")])
def test_no_is_an_answer(low: float, high: float, said: str) -> None:
    assert f"gan images {said}" in verdict(compared(estimate(0, low, high), estimate(0, -1, 1)), "gan")


@pytest.mark.parametrize("patients, claims", [(5, False), (6, True)])
def test_few_patients_allow_no_claim(patients: int, claims: bool) -> None:
    text = verdict(compared(estimate(0.05, 0.01, 0.09), estimate(0, -1, 1), patients=patients), "gan")
    assert ("too few to claim" in text) != claims
    silent = verdict(compared(estimate(0.05, -0.01, 0.09), estimate(0, -1, 1), patients=patients), "gan")
    assert "too few" not in silent


def test_a_task_that_real_images_solve_alone_is_called_so() -> None:
    tests = compared(estimate(0.0, -0.01, 0.01), estimate(0.0, -0.1, 0.1))
    assert "nothing left to gain" not in verdict(tests, "gan")
    tests["scans"]["arms"]["real"] = {"auroc": estimate(0.995, 0.99, 1)}
    assert verdict(tests, "gan").endswith("With 0.995 for real images alone there was nothing left to gain.")


def test_a_task_that_the_slices_place_solves_is_called_so() -> None:
    change = estimate(0.0, -0.01, 0.01)
    assert "says little" not in verdict(compared(change, change), "gan")
    text = verdict(compared(change, change, trivial={"slice number": 0.5, "tissue area": 0.79}), "gan")
    assert text.endswith("The tissue area alone reaches 0.790, so this says little about lesions.")


def report(**more: Any) -> dict[str, Any]:
    tests = compared(estimate(0.0, -0.1, 0.1), estimate(0.0, -0.1, 0.1), **more)
    return {"command": "medgan run lesion_classifier -- scans", "data": [{"name": "scans", "patients": 7}],
            "plan": {"factor": 2.0, "minutes": None, "settings": []},
            "models": {"names": ["segmenter", "classifier"], "size": 64, "seeds": 3, "steps": 250, "pictures": 32,
                       "crop": 96, "batch": 8, "spacing_mm": 2.0, "channels": ["FLAIR"],
                       "positive": "it shows a lesion"},
            "folds": [{"training_patients": ["a", "b"], "held_back": [f"p{n}" for n in range(5)],
                       "arms": {"real": {"cases": 10, "free_share": 0.6}, "gan": {"cases": 12, "free_share": 0.5},
                                "paste": {"cases": 12, "free_share": 0.48}},
                       "made": {"gan": {"cases": 2, "skipped": {"x": "no place"}, "places": ["a 1, 2, 3", "a 9, 9, 9"]},
                                "paste": {"cases": 2, "skipped": {}, "places": ["a 1, 2, 3", "a 4, 5, 6", "b"]}}}],
            "tests": tests, "verdict": {"gan": verdict(tests, "gan")}}


def test_the_report_says_what_the_intervals_rest_on() -> None:
    blocks = markdown(report())
    assert "**not from patients**" in blocks and "3 with too little lesion" in blocks
    assert "p0, p1, p2, p3 and 1 more" in blocks
    assert "| real + usual augmentation | 0.800 (0.010) [0.700, 0.900] |" in blocks
    assert "all folds: gan 2 (and 1 that failed), paste 2." in blocks
    assert "at most by 2.0% between the ways of making them and, with the real cases, from that of the real ones by " \
        "-12.0%" in blocks
    assert "Of at most 3 lesions 1 lie at the same places in paste, gan." in blocks
    few = markdown(report(resampled="patients", patients=4, left_out=0))
    assert "too narrow" in few and "too little lesion" not in few
    assert "too narrow" not in markdown(report(resampled="patients", patients=40))


def test_folds_are_told_apart() -> None:
    tests = report(by_fold={"gan - real": [0.1, -0.2], "gan - paste": [0.0, 0.0]})
    for measures in (*tests["tests"]["scans"]["arms"].values(), *tests["tests"]["scans"]["differences"].values()):
        measures["dice"] = estimate(0.0, -0.1, 0.1)
    text = markdown(tests)
    assert "| gan - real | +0.100 | -0.200 |" in text and "| gan - paste | +0.000 | +0.000 |" not in text


@pytest.mark.parametrize("low, high", [(-0.31, 0.04), (-2e-3, 2e-3), (0.0, 250.0), (-0.999, -0.7)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 6 and low <= min(found) and max(found) <= high
    assert (0 in found) == (low <= 0 <= high)
    assert np.allclose(np.diff(found), found[1] - found[0])


def test_the_figure_shows_what_each_interval_allows_to_say() -> None:
    colours = {}
    for low, high in ((0.01, 0.1), (-0.1, -0.01), (-0.1, 0.1), (0.1, 0.1)):
        change = estimate((low + high) / 2, low, high)
        pixels = forest(compared(change, change), {"real": "real"}).reshape(-1, 3)
        colours[low, high] = {name for name, colour in (("better", BETTER), ("worse", WORSE), ("open", OPEN))
                              if (pixels == colour).all(axis=1).sum() > 60}
    # A point that nothing was drawn anew for claims nothing.
    assert colours == {(0.01, 0.1): {"better"}, (-0.1, -0.01): {"worse"}, (-0.1, 0.1): {"open"}, (0.1, 0.1): {"open"}}


def test_what_auto_chose_is_said() -> None:
    made = report()
    made["folds"][0]["made"]["auto"] = {"cases": 0, "skipped": {}, "factor": 1.0}
    made["folds"][0]["arms"]["auto"] = {"cases": 10, "free_share": 0.6}
    assert "auto 0, where auto chose a factor of 1 in the folds." in markdown(made)
