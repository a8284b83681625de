"""The report's words follow from its intervals."""

from __future__ import annotations

from typing import Any

import pytest

from medgan.reports.comparison import finding, markdown, verdict


def estimate(mean: float, low: float, high: float) -> dict[str, Any]:
    return {"mean": mean, "seed_sd": 0.01, "low": low, "high": high, "per_seed": [mean]}


def compared(change: dict[str, Any], against: dict[str, Any], **more: Any) -> dict[str, Any]:
    figure = {"auroc": estimate(0.8, 0.7, 0.9), "balanced_accuracy": estimate(0.7, 0.6, 0.8)}
    better = {**figure, "auroc": estimate(0.85, 0.7, 0.9)}
    changes = {"gan - real": change, "gan - duplicated": estimate(0.1, 0.05, 0.2), "gan - paste": against}
    return {"scans": {"arms": {"real": figure, "duplicated": figure, "paste": better, "gan": figure},
                      "differences": {pair: {"auroc": value, "balanced_accuracy": value}
                                      for pair, value in changes.items()},
                      "patients": 8, "images": 50, "positive": 20, "left_out": 3, "resampled": "blocks",
                      "trivial": {"slice number": 0.6, "tissue area": 0.5}, **more}}


@pytest.mark.parametrize("low, high, said", [(0.01, 0.1, "better"), (-0.1, -0.01, "worse"),
                                             (-0.01, 0.1, "no difference shown"), (0, 0, "no difference shown")])
def test_what_an_interval_allows_to_say(low: float, high: float, said: str) -> None:
    assert finding(estimate((low + high) / 2, low, high)) == said


def test_the_verdict_names_the_best_control() -> None:
    text = verdict(compared(estimate(0.05, 0.01, 0.09), estimate(-0.01, -0.05, 0.03)), "gan")
    assert text == ("On scans, gan images helped: AUROC +0.050 [+0.010, +0.090] against real images alone; against the "
                    "best control (paste) -0.010 [-0.050, +0.030]: no difference shown.")


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
            "classifier": {"size": 64, "seeds": 3, "steps": 250, "batch": 32, "channels": ["FLAIR"],
                           "positive": "it shows a lesion"},
            "folds": [{"training_patients": ["a", "b"], "held_back": [f"p{n}" for n in range(5)],
                       "arms": {"real": {"images": 10, "positive": 4, "steps": 250}},
                       "made": {"gan": {"cases": 2, "skipped": {"x": "no place"}}}}],
            "tests": tests, "verdict": {"gan": verdict(tests, "gan")}}


def test_the_report_says_what_the_intervals_rest_on() -> None:
    blocks = markdown(report())
    assert "**not from patients**" in blocks and "3 with too little lesion" in blocks
    assert "p0, p1, p2, p3 and 1 more" in blocks and "| real images alone | 0.800 (0.010) [0.700, 0.900] |" in blocks
    assert "all folds: gan 2 (and 1 that failed)." in blocks
    few = markdown(report(resampled="patients", patients=4, left_out=0))
    assert "too narrow" in few and "too little lesion" not in few
    assert "too narrow" not in markdown(report(resampled="patients", patients=40))
