"""The small classifier, AUROC and balanced accuracy, and intervals that resample patients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from medgan.errors import Refused
from medgan.metrics import utility
from medgan.metrics.examples import Examples
from medgan.metrics.utility import Scored, auroc, balanced_accuracy, compare, draw_units, resampling_units

#: Enough for the classifier to find a bright spot.
STEPS = 30


def blobs(count: int, seed: int, patients: int = 4) -> Examples:
    """Noise, and in every other picture a bright spot."""
    rng = np.random.default_rng(seed)
    images = rng.normal(0, 0.1, (count, 1, 24, 24)).astype(np.float32)
    positive = np.arange(count) % 2 == 0
    for n in np.flatnonzero(positive):
        x, y = rng.integers(2, 17, 2)
        images[n, 0, x : x + 5, y : y + 5] += 0.8
    return Examples(images, positive, np.array([f"p{n * patients // count}" for n in range(count)]), np.arange(count))


def scored(positive: list[int], patients: list[str], folds: list[int], **arms: list[list[float]]) -> Scored:
    return Scored(np.array(positive, bool), np.array(patients), np.zeros(len(folds), np.int64), np.array(folds),
                  np.linspace(0, 1, len(folds)), {arm: np.array(scores) for arm, scores in arms.items()})


def test_auroc_by_hand() -> None:
    # Of four pairs three are in order and one is a tie.
    assert auroc([1, 1, 0, 0], [0.9, 0.4, 0.4, 0.1]) == pytest.approx([0.875])
    assert auroc([1, 0], [0.2, 0.7]) == pytest.approx([0.0])
    assert auroc([0, 1, 0, 1], [0.5] * 4) == pytest.approx([0.5])


def test_auroc_is_the_share_of_ordered_pairs_and_weights_are_repetitions() -> None:
    rng = np.random.default_rng(0)
    positive, scores = rng.random(40) < 0.4, rng.integers(0, 12, 40) / 12
    weights = rng.integers(0, 4, (3, 40))
    for row, value in zip(weights, auroc(positive, scores, weights), strict=True):
        truth, score = np.repeat(positive, row), np.repeat(scores, row)
        above, below = score[truth][:, None], score[~truth][None]
        assert value == pytest.approx(((above > below) + 0.5 * (above == below)).mean())


def test_balanced_accuracy_by_hand() -> None:
    # Two of three positives and one of two negatives are called rightly; half counts as positive.
    assert balanced_accuracy([1, 1, 1, 0, 0], [0.5, 0.8, 0.4, 0.3, 0.6]) == pytest.approx([(2 / 3 + 1 / 2) / 2])
    assert balanced_accuracy([1, 0], [0.9, 0.9], [[3, 0], [1, 1]]) == pytest.approx([np.nan, 0.5], nan_ok=True)


@pytest.mark.parametrize("measure", [auroc, balanced_accuracy])
@pytest.mark.parametrize("positive", [[1, 1], [0, 0], []])
def test_one_class_has_no_measure(measure: utility.Measure, positive: list[int]) -> None:
    assert np.isnan(measure(positive, [0.3, 0.6][: len(positive)], None)).all()


def test_patients_are_drawn_whole_and_few_patients_as_blocks() -> None:
    many = scored([0] * 6, ["a", "b", "c", "a", "b", "c"], [0] * 6, real=[[0.0] * 6])
    units, strata = resampling_units(many)
    assert units.tolist() == [0, 1, 2, 0, 1, 2] and strata.tolist() == [0, 0, 0]
    few = scored([0] * 60, ["a"] * 25 + ["b"] * 5 + ["a"] * 25 + ["b"] * 5, [0] * 30 + [1] * 30, real=[[0.0] * 60])
    units, strata = resampling_units(few)
    assert strata.tolist() == [0, 0, 0, 1]
    # The same slices scored by another fold's classifiers are the same slices.
    assert units[:30].tolist() == [0] * 10 + [1] * 10 + [2] * 5 + [3] * 5 and (units[:30] == units[30:]).all()
    draws = draw_units(strata, 50, np.random.default_rng(0))
    assert (draws[:, :3].sum(axis=1) == 3).all() and (draws[:, 3] == 1).all()


def test_bootstrap_over_patients_by_hand() -> None:
    # Three patients, a fold each, of AUROC 1, 0 and 1. All three draws are the second one in 1 of 27 resamples, which
    # is more than 2.5 %, and none of them is in 8 of 27: the interval is all there is.
    test = scored([1, 0] * 3, ["a", "a", "b", "b", "c", "c"], [0, 0, 1, 1, 2, 2],
                  real=[[0.9, 0.1, 0.1, 0.9, 0.9, 0.1]], gan=[[0.9, 0.1] * 3])
    found = compare(test, [("gan", "real"), ("real", "real")])
    assert found["resampled"] == "patients"
    real = found["arms"]["real"]["auroc"]
    assert real["mean"] == pytest.approx(2 / 3) and (real["low"], real["high"]) == pytest.approx((0, 1))
    assert real["seed_sd"] is None and found["arms"]["gan"]["auroc"]["low"] == 1
    # The difference is 1 for the second patient and 0 for the others.
    change = found["differences"]["gan - real"]["auroc"]
    assert change["mean"] == pytest.approx(1 / 3) and (change["low"], change["high"]) == pytest.approx((0, 1))
    same = found["differences"]["real - real"]["auroc"]
    assert (same["mean"], same["low"], same["high"]) == (0, 0, 0)


def test_folds_weigh_by_their_patients_and_seeds_are_averaged() -> None:
    # Fold 0 has two patients and AUROC 1, fold 1 has one and AUROC 0; with the other seed it is 1 in both.
    test = scored([1, 0, 1, 0], ["a", "b", "c", "c"], [0, 0, 1, 1], real=[[0.9, 0.1, 0.1, 0.9], [0.9, 0.1, 0.9, 0.1]])
    real = compare(test, [])["arms"]["real"]["auroc"]
    assert real["per_seed"] == pytest.approx((2 / 3, 1)) and real["mean"] == pytest.approx(5 / 6)
    assert real["seed_sd"] == pytest.approx(np.std([2 / 3, 1], ddof=1))


def test_what_needs_no_look_at_a_lesion_is_measured_too() -> None:
    test = scored([1, 1, 0, 0], ["a"] * 4, [0] * 4, real=[[0.1] * 4])
    trivial = compare(replace(test, places=np.array([3, 8, 5, 8])), [])["trivial"]
    # Of four pairs one is a tie and one in order: turned round, 0.625. The pictures get fuller one after the other.
    assert trivial == pytest.approx({"slice number": 0.625, "tissue area": 1.0})


def test_a_test_set_of_one_class_is_refused() -> None:
    with pytest.raises(Refused, match="all of one class"):
        compare(scored([1, 1, 0, 0], ["a", "b", "c", "d"], [0, 0, 1, 1], real=[[0.1] * 4]), [])


def test_the_classifier_learns_and_repeats_itself() -> None:
    train, test = blobs(48, 1), blobs(48, 2)
    before = torch.get_rng_state()
    first, again = (utility.predict(utility.train_classifier(train, steps=STEPS, seed=3), test) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before), "torch's own generator is the caller's"
    assert auroc(test.positive, first)[0] > 0.9 and ((first >= 0) & (first <= 1)).all()
    assert np.array_equal(first, again)
    # Repeating every picture is no new information, but another order: how much that alone changes.
    repeated = utility.predict(utility.train_classifier(train.repeated(96), steps=STEPS, seed=3), test)
    assert not np.array_equal(first, repeated)


def test_the_classifier_needs_two_classes() -> None:
    whole = blobs(8, 1)
    positive = Examples(whole.images[::2], whole.positive[::2], whole.patients[::2], whole.places[::2])
    with pytest.raises(Refused, match="one class"):
        utility.train_classifier(positive, steps=2, seed=0)


def test_every_arm_gets_the_same_steps_and_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = utility.train_classifier

    def spy(examples: Examples, *, steps: int, seed: int, device: str) -> utility.SmallClassifier:
        model = real(examples, steps=steps, seed=seed, device=device)
        asked.append((len(examples), steps, seed))
        return model

    monkeypatch.setattr(utility, "train_classifier", spy)
    train, test = blobs(16, 1), blobs(12, 2)
    scores = utility.score_arms({"real": train, "more": train.repeated(40)}, {"x": test}, seeds=[4, 5], steps=3)
    assert asked == [(16, 3, 4), (16, 3, 5), (40, 3, 4), (40, 3, 5)]
    assert scores["x"]["real"].shape == (2, 12)
    test_set = Scored.gathered([(test, scores["x"])] * 2)
    assert test_set.scores["more"].shape == (2, 24) and test_set.folds.tolist() == [0] * 12 + [1] * 12
    rows = list(test_set.rows())
    assert len(rows) == 2 * 2 * 24 and rows[0]["arm"] == "real" and rows[0]["patient"] == "p0"
