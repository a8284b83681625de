"""Class-wise arms: what helps is seen to help and what hurts to hurt; tests of AUROCs against slow ones."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from medgan.errors import Refused
from medgan.metrics import arms as module
from medgan.metrics.arms import (
    Arm,
    compare_classes,
    delong,
    holm,
    macro_auroc,
    macro_recall,
    mcnemar,
    score_classes,
    usual_arms,
)
from medgan.metrics.utility import SmallClassifier, auroc

Images = NDArray[np.float32]
Labels = NDArray[np.intp]


def striped(counts: tuple[int, ...], seed: int, shape: tuple[int, ...] = (16, 16), contrast: float = 0.3
            ) -> tuple[Images, Labels]:
    """Noise with a wave whose length is the class."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    images = rng.normal(0, 0.3, (len(labels), 1, *shape)).astype(np.float32)
    place = np.arange(shape[1])
    for n, label in enumerate(labels):
        wave = contrast * np.sin((0.5 + 0.7 * label) * place + rng.uniform(0, 6))
        images[n, 0] += wave.reshape(1, -1, *[1] * (len(shape) - 2)).astype(np.float32)
    return images, labels


def test_duplicates_are_as_many_of_each_class_as_with_synthetic_images() -> None:
    images, labels = striped((2, 5), 0)
    made, made_labels = striped((7, 1), 1)
    arms = usual_arms(images, labels, made, made_labels)
    assert list(arms) == ["real", "classic", "oversampled", "duplicated", "synthetic added", "synthetic only"]
    for name in ("duplicated", "synthetic added"):
        assert np.bincount(arms[name].labels).tolist() == [9, 6]
    known = {image.tobytes() for image in images}
    assert all(image.tobytes() in known for image in arms["duplicated"].images)
    assert [arm.augmented for arm in arms.values()] == [False] + [True] * 5
    assert [name for name, arm in arms.items() if arm.evenly] == ["oversampled"]


@pytest.mark.parametrize("shape", [(20, 12), (16, 10, 16)])
def test_scores_are_probabilities_that_repeat_themselves(shape: tuple[int, ...]) -> None:
    images, labels = striped((4, 3, 5), 0, shape)
    before = torch.get_rng_state()
    first, again = (score_classes({"a": Arm(images, labels, evenly=True)}, images[:7], classes=4, seeds=[0, 1],
                                  steps=3)["a"] for _ in range(2))
    assert torch.equal(before, torch.get_rng_state()), "torch's own generator is the caller's"
    assert first.shape == (2, 7, 4) and np.allclose(first.sum(axis=2), 1) and np.array_equal(first, again)
    assert not np.array_equal(first[0], first[1])


@pytest.mark.parametrize(("evenly", "share"), [(False, 0.1), (True, 0.5)])
def test_batches_are_drawn_as_the_set_is_or_evenly(monkeypatch: pytest.MonkeyPatch, evenly: bool, share: float) -> None:
    images, labels = striped((10, 90), 0)
    images[:10] += 50
    seen = []
    whole = SmallClassifier.forward

    def spy(self: SmallClassifier, batch: torch.Tensor) -> torch.Tensor:
        seen.append(float((batch.mean(dim=(1, 2, 3)) > 25).float().mean()))
        return whole(self, batch)

    monkeypatch.setattr(SmallClassifier, "forward", spy)
    module._trained(Arm(images, labels, False, evenly), 2, 40, 0, "cpu")
    assert len(seen) == 40 and np.mean(seen) == pytest.approx(share, abs=0.05)


def test_the_same_seed_is_the_same_first_weights_in_every_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = []
    whole = torch.optim.AdamW.__init__

    def spy(self: torch.optim.AdamW, parameters: object, **settings: float) -> None:
        kept = list(parameters)  # type: ignore[call-overload]
        starts.append([p.detach().clone() for p in kept])
        whole(self, kept, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.optim.AdamW, "__init__", spy)
    images, labels = striped((6, 6), 0)
    score_classes({"a": Arm(images, labels), "b": Arm(images[::2], labels[::2], False)}, images, classes=2,
                  seeds=[0, 1], steps=1)
    same = [[all(torch.equal(p, q) for p, q in zip(a, b, strict=True)) for b in starts] for a in starts]
    assert same == [[True, False, True, False], [False, True, False, True]] * 2


def test_more_images_help_and_wrong_labels_hurt() -> None:
    images, labels = striped((10, 10), 0, contrast=0.25)
    more, more_labels = striped((150, 150), 1, contrast=0.25)
    test, truth = striped((60, 60), 2, contrast=0.25)
    wrong = np.where(np.random.default_rng(0).random(len(more_labels)) < 0.8, 1 - more_labels, more_labels)
    arms = {"few": Arm(images, labels, False),
            "more": Arm(np.concatenate([images, more]), np.concatenate([labels, more_labels]), False),
            "wrong": Arm(np.concatenate([images, more]), np.concatenate([labels, wrong]), False)}
    scores = score_classes(arms, test, classes=2, seeds=[0, 1], steps=60)
    found = compare_classes(truth, np.arange(120), scores, [("more", "few"), ("wrong", "few")], resamples=200)
    helped, hurt = found["differences"]["more - few"], found["differences"]["wrong - few"]
    assert helped["auroc"]["low"] > 0 and helped["delong"]["p_holm"] < 0.01 and helped["balanced_accuracy"]["mean"] > 0
    assert hurt["auroc"]["high"] < 0 and hurt["delong"]["high"] < 0 and hurt["mcnemar"]["p_holm"] < 0.01
    json.dumps(found, allow_nan=False)


def test_measures_of_two_and_of_three_classes() -> None:
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    rng = np.random.default_rng(0)
    truth, scores = rng.integers(0, 3, 60), rng.dirichlet([1, 1, 1], 60)
    assert macro_auroc(truth, scores)[0] == pytest.approx(roc_auc_score(truth, scores, multi_class="ovr"))
    assert macro_recall(truth, scores)[0] == pytest.approx(balanced_accuracy_score(truth, scores.argmax(axis=1)))
    weights = rng.integers(0, 3, (4, 60)).astype(float)
    for row, area, recall in zip(weights.astype(int), macro_auroc(truth, scores, weights),
                                 macro_recall(truth, scores, weights), strict=True):
        again, repeated = np.repeat(truth, row), np.repeat(scores, row, axis=0)
        assert area == pytest.approx(roc_auc_score(again, repeated, multi_class="ovr"))
        assert recall == pytest.approx(balanced_accuracy_score(again, repeated.argmax(axis=1)))
    assert macro_auroc(truth > 0, scores[:, :2])[0] == pytest.approx(auroc(truth > 0, scores[:, 1])[0])
    assert np.isnan(macro_auroc(np.zeros(60, np.intp), scores[:, :2])[0])


def correlated(seed: int, gap: float = 0.4) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]:
    """Labels and two scores that agree in part, the second better by `gap`; the first with ties."""
    rng = np.random.default_rng(seed)
    truth = rng.random(120) < 0.4
    common = rng.normal(size=120)
    return (truth, np.round(common + rng.normal(size=120) + truth, 1),
            common + rng.normal(size=120) + (1 + gap) * truth)


@pytest.mark.parametrize("seed", range(3))
def test_delong_against_the_formulas_written_out(seed: int) -> None:
    truth, *both = correlated(seed)
    m, n = int(truth.sum()), int((~truth).sum())
    kernels = [((s[truth][:, None] > s[~truth][None]) + 0.5 * (s[truth][:, None] == s[~truth][None])) for s in both]
    areas = [kernel.mean() for kernel in kernels]
    ten, one = np.zeros((2, 2)), np.zeros((2, 2))
    for r in range(2):
        for s in range(2):
            ten[r, s] = sum((kernels[r][i].mean() - areas[r]) * (kernels[s][i].mean() - areas[s])
                            for i in range(m)) / (m - 1)
            one[r, s] = sum((kernels[r][:, j].mean() - areas[r]) * (kernels[s][:, j].mean() - areas[s])
                            for j in range(n)) / (n - 1)
    covariance = ten / m + one / n
    sd = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    found = delong(truth, *both)
    assert (found.auc1, found.auc2) == pytest.approx(areas) and found.sd == pytest.approx(sd)
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(areas[0] - areas[1]) / sd))
    assert (found.low + found.high) / 2 == pytest.approx(found.difference)
    swapped = delong(truth, *both[::-1])
    assert swapped.difference == pytest.approx(-found.difference) and swapped.p == pytest.approx(found.p)


def test_delong_agrees_with_a_bootstrap_and_with_what_repeats_show() -> None:
    truth, first, second = correlated(7)
    rng = np.random.default_rng(0)
    weights = rng.multinomial(120, np.full(120, 1 / 120), size=2_000)
    drawn = auroc(truth, first, weights) - auroc(truth, second, weights)
    assert delong(truth, first, second).sd == pytest.approx(drawn.std(), rel=0.1)
    # With no difference 1 in 20 repeats lies below 0.05.
    p = [delong(*correlated(seed, gap=0.0)).p for seed in range(400)]
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.085


def test_delong_of_equal_scores_and_of_one_class() -> None:
    same = delong([0, 0, 1, 1], [1, 2, 3, 4], [1, 2, 3, 4])
    assert (same.difference, same.sd, same.p) == (0, 0, 1)
    with pytest.raises(Refused, match="two of each"):
        delong([1, 0, 0], [1, 2, 3], [1, 2, 3])


def test_mcnemar_is_the_exact_binomial_and_holm_by_hand() -> None:
    found = mcnemar([1, 1, 1, 1, 1, 1, 0, 0, 1], [0, 0, 0, 0, 0, 1, 1, 0, 1])
    assert (found["first_only"], found["second_only"]) == (5, 1)
    assert found["p"] == pytest.approx(2 * (6 + 1) / 2 ** 6)
    assert mcnemar([1, 0], [1, 0])["p"] == 1
    # 0.01 * 3, then 0.03 * 2, then 0.04 * 1, which may not be less than the one before.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.7, 0.6]) == pytest.approx([1, 1]) and holm([]) == []


def test_patients_are_resampled_whole_and_p_is_corrected() -> None:
    rng = np.random.default_rng(0)
    truth = np.tile([0, 1], 30)
    positive = np.stack([np.repeat(rng.random((2, 10)) - 0.5, 6, axis=1) + 0.6 * truth + 0.2 * rng.random((2, 60))
                         for _ in range(3)])
    scores = {name: np.stack([1 - p, p], axis=2) for name, p in zip("abc", positive, strict=True)}
    single = compare_classes(truth, np.arange(60), scores, [("a", "b"), ("b", "c")], resamples=300)
    whole = compare_classes(truth, np.repeat(np.arange(10), 6), scores, [("a", "b"), ("b", "c")], resamples=300)
    assert (single["patients"], whole["patients"], whole["n"], whole["seeds"]) == (60, 10, 60, 2)
    assert not single["warnings"] and "take images as independent" in whole["warnings"][0]
    one, other = (found["arms"]["a"]["auroc"] for found in (single, whole))
    assert one["per_seed"] == other["per_seed"] and one["high"] - one["low"] != other["high"] - other["low"]
    p = [single["differences"][key]["delong"] for key in ("a - b", "b - c")]
    assert [each["p_holm"] for each in p] == pytest.approx(holm([each["p"] for each in p]))
    change = single["differences"]["a - b"]["auroc"]
    assert change["detectable"] == pytest.approx((1.96 + 0.84) / 3.92 * (change["high"] - change["low"]))


def test_three_classes_have_no_delong() -> None:
    rng = np.random.default_rng(0)
    scores = {name: rng.dirichlet([1, 1, 1], (2, 30)) for name in "ab"}
    found = compare_classes(np.arange(30) % 3, np.arange(30), scores, [("a", "b")], resamples=100)
    assert found["differences"]["a - b"]["delong"] is None and found["classes"] == 3
    assert 0 < found["differences"]["a - b"]["mcnemar"]["p_holm"] <= 1


def test_what_cannot_be_trained_or_compared_is_refused() -> None:
    images, labels = striped((3, 3), 0)
    with pytest.raises(Refused, match="not of two classes"):
        score_classes({"a": Arm(images[:3], labels[:3])}, images, classes=2, seeds=[0], steps=1)
    with pytest.raises(Refused, match="labels from 0 to 1"):
        score_classes({"a": Arm(images, labels)}, images, classes=1, seeds=[0], steps=1)
    with pytest.raises(Refused, match="of one grid"):
        score_classes({"a": Arm(images, labels)}, images[..., :12], classes=2, seeds=[0], steps=1)
    with pytest.raises(Refused, match="all of one class"):
        compare_classes([1, 1], ["a", "b"], {"x": np.full((1, 2, 2), 0.5)}, [])
    with pytest.raises(Refused, match="one of each"):
        compare_classes([1, 0, 1], ["a", "b"], {"x": np.full((1, 2, 2), 0.5)}, [])
