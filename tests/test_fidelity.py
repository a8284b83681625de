"""Distances of image sets: known answers, independent implementations, floors, intervals and what they warn of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medgan.errors import Refused
from medgan.metrics.fidelity import (
    WIDTHS,
    Measured,
    cubes,
    discrepancy,
    fidelity,
    frechet,
    gaussians,
    kid,
    median_distance,
    mmd2,
    squared_distances,
)
from medgan.metrics.measured import HALVINGS, halvings, measure, thinned
from medgan.metrics.realness import realness, told_apart


def _exact(rng: np.random.Generator, count: int, features: int) -> np.ndarray:
    """Features with a mean of 0 and a covariance of 1, to rounding."""
    values = rng.standard_normal((count, features))
    values -= values.mean(axis=0)
    return values @ np.linalg.inv(np.linalg.cholesky(np.cov(values, rowvar=False))).T


def test_mmd2_is_that_of_scikit_learns_kernels() -> None:
    from sklearn.metrics.pairwise import rbf_kernel

    rng = np.random.default_rng(0)
    real, made = rng.standard_normal((30, 4)), 1.3 * rng.standard_normal((41, 4)) + 0.2
    median = np.median([np.linalg.norm(real[i] - real[j]) for i in range(30) for j in range(i)])
    expected = 0.0
    for width in WIDTHS:
        gamma = 1 / (2 * (width * median) ** 2)
        for side, n in ((real, 30), (made, 41)):
            expected += (rbf_kernel(side, gamma=gamma).sum() - n) / (n * (n - 1)) / len(WIDTHS)
        expected -= 2 * rbf_kernel(real, made, gamma=gamma).mean() / len(WIDTHS)
    assert mmd2(real, made) == pytest.approx(expected, rel=1e-9)


def test_kid_is_that_of_scikit_learns_kernel() -> None:
    from sklearn.metrics.pairwise import polynomial_kernel

    rng = np.random.default_rng(1)
    real, made = rng.standard_normal((25, 5)), rng.standard_normal((33, 5)) + 0.4
    within = [polynomial_kernel(side, degree=3, coef0=1) for side in (real, made)]
    expected = sum((kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1)) for kernel in within)
    expected -= 2 * polynomial_kernel(real, made, degree=3, coef0=1).mean()
    assert kid(real, made) == pytest.approx(expected, rel=1e-9)


def test_a_linear_kernel_gives_monais_mmd() -> None:
    from monai.metrics import MMDMetric

    rng = np.random.default_rng(2)
    real, made = rng.standard_normal((20, 6)), rng.standard_normal((20, 6)) + 1
    pooled = np.vstack([real, made])
    theirs = MMDMetric()(torch.from_numpy(real)[:, :, None, None], torch.from_numpy(made)[:, :, None, None])
    assert discrepancy(pooled @ pooled.T, np.arange(20), np.arange(20, 40)) == pytest.approx(float(theirs), rel=1e-9)


def test_a_ninefold_variance_is_seen_by_mmd2_but_not_by_a_linear_kernel() -> None:
    rng = np.random.default_rng(3)
    real, made = _exact(rng, 100, 8), 3 * _exact(rng, 100, 8)
    pooled = np.vstack([real, made])
    assert discrepancy(pooled @ pooled.T, np.arange(100), np.arange(100, 200)) < 0
    assert mmd2(real, made) > 20 * abs(mmd2(real, _exact(rng, 100, 8)))


def test_mmd2_of_two_gaussians_is_what_theory_says() -> None:
    rng = np.random.default_rng(4)
    features, count, median, shift, spread = 3, 40, 2.0, 0.8, 1.5

    def kernel(variance: float, apart: float) -> float:
        widths = (np.array(WIDTHS) * median) ** 2
        wider = widths + variance
        return float(np.mean((widths / wider) ** (features / 2) * np.exp(-apart / 2 / wider)))

    expected = kernel(2, 0) + kernel(2 * spread**2, 0) - 2 * kernel(1 + spread**2, features * shift**2)
    found = []
    for _ in range(150):
        real = rng.standard_normal((count, features))
        made = spread * rng.standard_normal((count, features)) + shift
        matrix = gaussians(squared_distances(np.vstack([real, made])), median)
        found.append(discrepancy(matrix, np.arange(count), np.arange(count, 2 * count)))
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - expected) < 3 * error
    assert error < 0.03 * expected


def test_mmd2_and_kid_are_unbiased_where_the_plain_means_are_not() -> None:
    rng = np.random.default_rng(5)
    count, unbiased, plain = 12, [], []
    one, other = np.arange(count), np.arange(count, 2 * count)
    for _ in range(300):
        pooled = rng.standard_normal((2 * count, 4))
        unbiased.append((mmd2(pooled[one], pooled[other]), kid(pooled[one], pooled[other])))
        matrices = gaussians(squared_distances(pooled), median_distance(pooled[one])), cubes(pooled)
        plain.append([kernel[np.ix_(one, one)].mean() + kernel[np.ix_(other, other)].mean()
                      - 2 * kernel[np.ix_(one, other)].mean() for kernel in matrices])
    error = np.std(unbiased, axis=0) / np.sqrt(len(unbiased))
    assert (np.abs(np.mean(unbiased, axis=0)) < 3 * error).all()
    assert (np.mean(plain, axis=0) > 10 * error).all()


def test_frechet_of_known_gaussians() -> None:
    rng = np.random.default_rng(6)
    real = _exact(rng, 50, 3)
    # (s - 1)² summed over axes, and the squared shift.
    made = _exact(rng, 70, 3) * [2, 0.5, 1] + [0, 0, 3]
    assert frechet(real, made) == pytest.approx(1 + 0.25 + 9, abs=1e-8)


def test_frechet_is_monais_and_sqrtms() -> None:
    import scipy.linalg
    from monai.metrics import FIDMetric

    rng = np.random.default_rng(7)
    real, made = (rng.standard_normal((60, 10)) @ rng.standard_normal((10, 10)) + rng.standard_normal(10)
                  for _ in range(2))
    found = frechet(real, made)
    assert found == pytest.approx(float(FIDMetric()(torch.from_numpy(made), torch.from_numpy(real))), rel=1e-6)
    first, second = (np.cov(side, rowvar=False) for side in (real, made))
    shift = real.mean(axis=0) - made.mean(axis=0)
    root = np.real(scipy.linalg.sqrtm(first @ second))
    assert found == pytest.approx(shift @ shift + np.trace(first + second - 2 * root), rel=1e-6)


def test_frechet_stands_singular_covariances() -> None:
    rng = np.random.default_rng(8)
    real = rng.standard_normal((10, 40))
    assert frechet(real, real + 0.5) == pytest.approx(40 * 0.25, rel=1e-6)
    assert frechet(real, real) == pytest.approx(0, abs=1e-6)
    # A set of one image, many times: what is left of the other is its trace.
    constant = np.repeat(real.mean(axis=0, keepdims=True), 10, axis=0)
    assert frechet(real, constant) == pytest.approx(np.trace(np.cov(real, rowvar=False)), rel=1e-9)
    assert np.isfinite(frechet(real[:, :1], constant[:, :1]))


def test_halves_share_no_patient_and_are_of_one_size() -> None:
    rng = np.random.default_rng(9)
    units = np.repeat(np.arange(23), rng.integers(1, 6, 23))
    drawn = halvings(units, 20, rng)
    for one, other in drawn:
        assert not set(units[one]) & set(units[other])
        assert sorted([*one, *other]) == list(range(len(units)))
        assert abs(len(one) - len(other)) <= 1
    assert len({frozenset(one.tolist()) for one, _ in drawn}) == 20
    assert halvings(np.zeros(10), 5, rng) == []


def test_patients_with_many_alike_images_widen_floor_and_interval() -> None:
    rng = np.random.default_rng(10)
    units = np.repeat(np.arange(20), 10)
    real = rng.standard_normal((20, 4))[units] + 0.1 * rng.standard_normal((200, 4))
    made = rng.standard_normal((200, 4))
    rightly, wrongly = (fidelity(real, made, units=given)["mmd2"] for given in (units, np.arange(200)))
    assert rightly.floor_sd > 3 * wrongly.floor_sd
    assert rightly.high - rightly.low > 1.5 * (wrongly.high - wrongly.low)
    assert wrongly.verdict != "good" and rightly.times < wrongly.times


def test_an_interval_is_as_wide_as_theory_says() -> None:
    rng = np.random.default_rng(11)
    values = rng.standard_normal(400)
    values[200:] += 1

    def figures(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
        return {"shift": float(values[other].mean() - values[one].mean())}

    found = measure(figures, np.arange(200), np.arange(200), seed=1, half_samples=400)["shift"]
    assert found.low < 1 < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.sqrt(2 / 200), rel=0.15)
    # The floor: halves of 100 of a set of 200.
    assert found.n_real == found.n_made == 100
    assert found.floor == pytest.approx(0, abs=3 * found.floor_sd / np.sqrt(HALVINGS))
    assert found.floor_sd == pytest.approx(np.sqrt(2 / 100), rel=0.3)


def test_more_real_like_images_are_good_and_others_are_not() -> None:
    rng = np.random.default_rng(12)
    real, units = rng.standard_normal((120, 4)), np.arange(120)
    same = fidelity(real, rng.standard_normal((300, 4)), units=units, seed=3)
    assert [figure.verdict for figure in same.values()] == ["good"] * 3
    assert all(figure.n_real == figure.n_made == 60 for figure in same.values())
    far = fidelity(real, rng.standard_normal((300, 4)) + 1.5, units=units, seed=3)
    assert [far[name].verdict for name in ("mmd2", "frechet")] == ["bad"] * 2
    assert far["mmd2"].low > same["mmd2"].high
    assert far["mmd2"].low < far["mmd2"].value < far["mmd2"].high
    # The floor is the real set's own business.
    assert far["mmd2"].floor_sd == same["mmd2"].floor_sd
    assert fidelity(real, real + 1.5, units=units, seed=3) == fidelity(real, real + 1.5, units=units, seed=3)


def test_few_images_features_and_patients_are_warned_of() -> None:
    rng = np.random.default_rng(13)
    found = fidelity(rng.standard_normal((30, 4)), rng.standard_normal((20, 4)), units=np.arange(30) // 6)
    assert "12 images a side" in found["mmd2"].warnings[0] and "5 patients" in found["mmd2"].warnings[1]
    assert any("4 features" in text for text in found["frechet"].warnings)
    assert not any("4 features" in text for text in found["mmd2"].warnings)
    alone = fidelity(rng.standard_normal((60, 4)), rng.standard_normal((60, 4)), units=np.zeros(60))["mmd2"]
    assert np.isnan(alone.floor) and alone.verdict == "unknown" and "one patient" in alone.warnings[0]
    enough = fidelity(rng.standard_normal((120, 4)), rng.standard_normal((60, 4)), units=np.arange(120))
    assert all(figure.warnings == () for figure in enough.values())


def test_what_cannot_be_compared_is_refused() -> None:
    real = np.random.default_rng(14).standard_normal((40, 3))
    broken = real.copy()
    broken[3, 1] = np.nan
    for made, units, code in ((real[:, :2], np.arange(40), "DIM_UNSUPPORTED"), (broken, np.arange(40), "PIX_NONFINITE"),
                              (real, np.arange(39), "TAB_UNMATCHED"), (real[:3], np.arange(40), "DATASET_EMPTY"),
                              (real[0], np.arange(40), "DIM_UNSUPPORTED")):
        with pytest.raises(Refused) as refused:
            fidelity(real, made, units=units)
        assert refused.value.code == code


def test_verdicts_are_those_of_the_conventions() -> None:
    distance = Measured("mmd2", 0.0, 0.0, 0.0, floor=0.001, floor_sd=0.002, n_real=99, n_made=99)
    for value, word in ((-0.01, "good"), (0.005, "good"), (0.0051, "fair"), (0.05, "fair"), (0.051, "bad")):
        assert replace(distance, value=value).verdict == word
    assert replace(distance, value=0.015).times == pytest.approx(3)
    share = replace(distance, name="coverage", floor=0.8, floor_sd=0.001)
    for value, word in ((1.0, "good"), (0.721, "good"), (0.719, "fair"), (0.41, "fair"), (0.39, "bad")):
        assert replace(share, value=value).verdict == word
    assert replace(share, value=1.7, name="vendi_ratio").verdict == "bad"
    assert replace(share, value=0.7, floor_sd=0.06).verdict == "good"
    told = replace(distance, name="realness", floor=0.5, floor_sd=0.02)
    assert [replace(told, value=value).verdict for value in (0.54, 0.56, 0.96)] == ["good", "fair", "bad"]
    alike = replace(distance, name="ms_ssim", floor=0.4, floor_sd=0.01)
    assert [replace(alike, value=value).verdict for value in (0.41, 0.6, 0.71)] == ["good", "fair", "bad"]


def test_large_sets_are_thinned_evenly_over_patients() -> None:
    units = np.repeat([0, 1, 2], [2, 50, 100])
    kept = thinned(units, 42, np.random.default_rng(15))
    assert len(set(kept.tolist())) == 42 and np.bincount(units[kept]).tolist() == [2, 20, 20]
    assert thinned(units, 500, np.random.default_rng(15)).tolist() == list(range(152))


def test_a_classifier_cannot_tell_the_same_apart() -> None:
    rng = np.random.default_rng(16)
    same = realness(rng.standard_normal((60, 3)), rng.standard_normal((60, 3)), units=np.arange(60))
    assert same.verdict == "good" and same.low < 0.5 < same.high
    assert abs(same.floor - 0.5) < 0.1 and 0 < same.floor_sd < 0.2


def _told(real: np.ndarray, made: np.ndarray, owners: np.ndarray) -> float:
    rows = np.arange(len(real) + len(made))
    return told_apart(np.vstack([real, made]), owners, (rows[: len(real)], rows[len(real) :]), np.random.default_rng(1))


def test_a_classifier_is_as_good_as_it_can_be() -> None:
    rng = np.random.default_rng(17)
    real, owners = rng.standard_normal((200, 5)), np.arange(400)
    # Two Gaussians a distance d apart: Φ(d / √2), reached by the best classifier.
    assert _told(real, rng.standard_normal((200, 5)) + np.eye(5)[0] * 1.5, owners) == pytest.approx(0.8556, abs=0.05)
    assert _told(real, rng.standard_normal((200, 5)), owners) == pytest.approx(0.5, abs=0.1)


def test_a_wrong_spread_is_told_too() -> None:
    rng = np.random.default_rng(18)
    found = realness(rng.standard_normal((60, 3)), 3 * rng.standard_normal((60, 3)), units=np.arange(60))
    assert found.value > 0.75 and found.verdict != "good"


def test_a_classifier_is_not_asked_of_patients_it_learned_from() -> None:
    rng = np.random.default_rng(19)
    # Patients are alone each: who learned one of their images would know them all.
    owners = np.repeat(np.arange(24), 10)
    images = 4 * rng.standard_normal((24, 30))[owners] + 0.1 * rng.standard_normal((240, 30))
    assert _told(images[:120], images[120:], np.arange(240)) > 0.95
    assert _told(images[:120], images[120:], owners) < 0.8


def test_blurred_and_wrong_radiographs_lie_farther_than_fresh_ones(shared_data: Path) -> None:
    from scipy import ndimage

    stored = np.load(shared_data / "pneumonia" / "pneumonia.npz")
    images, labels = stored["train_images"].astype(np.float64) / 127.5 - 1, stored["train_labels"][:, 0]
    normal, other = images[labels == 0], images[labels == 1]
    order = np.random.default_rng(18).permutation(len(normal))
    real, fresh = normal[order[:194]], normal[order[194:]]
    axes = np.linalg.svd((real - real.mean(axis=0)).reshape(194, -1), full_matrices=False)[2][:16]
    sets = {"fresh": fresh, "blurred": ndimage.gaussian_filter(fresh, (0, 2, 2)), "wrong": other[:194]}
    reference = real.reshape(194, -1) @ axes.T
    found = {name: fidelity(reference, made.reshape(194, -1) @ axes.T, units=np.arange(194))["mmd2"]
             for name, made in sets.items()}
    assert found["fresh"].verdict == "good"
    assert found["blurred"].value > found["fresh"].high and found["blurred"].verdict != "good"
    assert found["wrong"].verdict == "bad"
