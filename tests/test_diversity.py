"""Variety and coverage of image sets, against prdc, vendi-score and cases whose answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import ndimage
from scipy.stats import entropy

from medgan.errors import Refused
from medgan.metrics.diversity import (
    SCALES,
    confidence_and_diversity,
    diversity,
    ms_ssim,
    ms_ssim_pairs,
    neighbours,
    scales_of,
    vendi,
    vendi_ratio,
)
from medgan.metrics.fidelity import median_distance, squared_distances


@pytest.mark.parametrize("shift, spread", [(0, 1), (1, 1), (0, 0.4), (0.5, 2)])
def test_neighbours_are_those_of_prdc(shift: float, spread: float) -> None:
    from prdc import compute_prdc

    rng = np.random.default_rng(0)
    real, made = rng.standard_normal((80, 5)), spread * rng.standard_normal((60, 5)) + shift
    assert vars(neighbours(real, made, 5)) == pytest.approx(compute_prdc(real, made, 5))


def test_the_same_set_is_covered_and_a_collapsed_one_covers_nothing() -> None:
    rng = np.random.default_rng(1)
    real = rng.standard_normal((100, 4))
    same = neighbours(real, real.copy())
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    collapsed = neighbours(real, np.repeat(real[:1], 100, axis=0))
    assert collapsed.precision == 1 and collapsed.recall == 0 and collapsed.coverage < 0.2
    far = neighbours(real, real + 100)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)


def test_vendi_is_that_of_vendi_score() -> None:
    from sklearn.metrics.pairwise import rbf_kernel

    score = pytest.importorskip("vendi_score.vendi")
    values = np.random.default_rng(2).standard_normal((50, 6))
    width = median_distance(values)
    kernel = rbf_kernel(values, gamma=1 / (2 * width**2))
    try:
        theirs = score.score_K(kernel)
    except AttributeError:
        # Its release asks for a name that newer versions of scipy have not; the entropy is what is compared.
        theirs = np.exp(score.entropy_q(np.linalg.eigvalsh(score.weight_K(kernel))))
    assert vendi(values) == pytest.approx(theirs, rel=1e-9)
    assert vendi(values, 2 * width) < vendi(values)


def test_vendi_counts_what_shares_nothing() -> None:
    rng = np.random.default_rng(3)
    far = 1000 * np.eye(7)
    assert vendi(far, 1.0) == pytest.approx(7)
    assert vendi(np.repeat(far, [5] * 7, axis=0), 1.0) == pytest.approx(7)
    # Weights of .9 and .1: the exponential of their entropy.
    uneven = np.exp(-0.9 * np.log(0.9) - 0.1 * np.log(0.1))
    assert vendi(np.repeat(far[:2], [90, 10], axis=0), 1.0) == pytest.approx(uneven)
    assert vendi(np.repeat(far[:1], 30, axis=0)) == pytest.approx(1)
    real = rng.standard_normal((120, 4))
    assert vendi_ratio(real, real[rng.permutation(120)]) == pytest.approx(1)
    # At equal n: the larger set is not the more varied for it.
    assert vendi_ratio(real[:60], rng.standard_normal((600, 4))) == pytest.approx(1, abs=0.15)
    assert vendi_ratio(real, 0.3 * rng.standard_normal((120, 4))) < 0.5


def test_each_fault_shows_where_it_should() -> None:
    rng = np.random.default_rng(4)
    real, units = rng.standard_normal((160, 4)), np.arange(160)
    words = {}
    for name, made in {"same": rng.standard_normal((160, 4)), "shrunk": 0.3 * rng.standard_normal((160, 4)),
                       "collapsed": real[rng.integers(5, size=160)] + 0.01 * rng.standard_normal((160, 4)),
                       "half": np.abs(rng.standard_normal((160, 4))) * [1, 0, 0, 0]
                       + rng.standard_normal((160, 4)) * [0, 1, 1, 1],
                       "noisy": 2.5 * rng.standard_normal((160, 4))}.items():
        found = diversity(real, made, units=units)
        assert list(found) == ["precision", "recall", "density", "coverage", "vendi_ratio"]
        assert all(figure.low <= figure.value <= figure.high and figure.n_made == 80 for figure in found.values())
        assert found["coverage"].high <= 1 and found["coverage"].floor > 0.9
        words[name] = {figure: measured.verdict for figure, measured in found.items()}
    assert set(words["same"].values()) == {"good"}
    assert words["shrunk"]["precision"] == "good" and words["shrunk"]["recall"] == "bad"
    assert words["shrunk"]["vendi_ratio"] == "bad" and words["shrunk"]["density"] != "good"
    assert words["collapsed"]["coverage"] == words["collapsed"]["recall"] == "bad"
    assert words["half"]["coverage"] == "fair"
    assert words["noisy"]["precision"] == words["noisy"]["vendi_ratio"] == "bad"


def test_too_few_neighbours_are_refused() -> None:
    rng = np.random.default_rng(5)
    few, many = rng.standard_normal((5, 3)), rng.standard_normal((50, 3))
    for call in (lambda: neighbours(few, many), lambda: neighbours(many, few),
                 lambda: diversity(many, few, units=np.arange(50)),
                 lambda: diversity(many, many, units=np.arange(50), k=30)):
        with pytest.raises(Refused, match="DATASET_EMPTY"):
            call()


def test_a_classifiers_confidence_and_diversity() -> None:
    sure = confidence_and_diversity(np.eye(4)[np.arange(80) % 4])
    assert sure.score == pytest.approx(4) and sure.confidence == 1 and sure.spread == pytest.approx(np.log(4))
    collapsed = confidence_and_diversity(np.eye(4)[np.zeros(80, int)])
    assert collapsed.score == pytest.approx(1) and collapsed.confidence == 1 and collapsed.spread == 0
    unsure = confidence_and_diversity(np.full((80, 4), 0.25))
    assert unsure.score == pytest.approx(1) and unsure.entropy == pytest.approx(np.log(4))
    # As the paper has it: the mean divergence of an image's classes from those of all.
    chances = np.random.default_rng(6).dirichlet([0.5, 1, 2], 40)
    expected = np.exp(np.mean([entropy(row, chances.mean(axis=0)) for row in chances]))
    assert confidence_and_diversity(chances).score == pytest.approx(expected)
    for wrong in (chances * 2, -chances, chances[0], chances[:, :1], chances[:0]):
        with pytest.raises(Refused, match="CFG_VALUE"):
            confidence_and_diversity(wrong)


def _similar(one: np.ndarray, other: np.ndarray, window: int, weights: tuple[float, ...]) -> float:
    """Multi-scale SSIM (Wang, Simoncelli and Bovik 2003) of two images, written as the paper has it."""
    line = np.exp(-((np.arange(window) - window // 2) ** 2) / (2 * 1.5**2))
    half = window // 2

    def mean(values: np.ndarray) -> np.ndarray:
        for axis in range(values.ndim):
            values = ndimage.correlate1d(values, line / line.sum(), axis)
        return np.asarray(values[(slice(half, -half),) * values.ndim])

    result = 1.0
    for level, weight in enumerate(weights):
        m, o = mean(one), mean(other)
        contrast = (2 * (mean(one * other) - m * o) + 0.06**2) / (mean(one**2) - m**2 + mean(other**2) - o**2 + 0.06**2)
        last = level == len(weights) - 1
        light = (2 * m * o + 0.02**2) / (m**2 + o**2 + 0.02**2) if last else 1.0
        result *= max(float((light * contrast).mean()), 0.0) ** weight
        for axis in range(one.ndim):
            one, other = ((values.take(range(0, size - size % 2, 2), axis) + values.take(range(1, size, 2), axis)) / 2
                          for values, size in ((one, one.shape[axis]), (other, other.shape[axis])))
    return result


@pytest.mark.parametrize("size", [(28, 28), (64, 48), (20, 24, 16)])
def test_ms_ssim_is_that_of_the_paper(size: tuple[int, ...]) -> None:
    rng = np.random.default_rng(7)
    images = np.stack([ndimage.gaussian_filter(rng.standard_normal(size), 1.5) for _ in range(2)])[:, None] * 2
    images[1] += images[0]
    window, weights = scales_of(size)
    assert ms_ssim_pairs(images, 1) == pytest.approx(_similar(images[0, 0], images[1, 0], window, weights), abs=2e-4)
    assert ms_ssim_pairs(np.repeat(images[:1], 6, axis=0), 3) == pytest.approx(1, abs=1e-5)
    assert ms_ssim_pairs(rng.standard_normal((6, 1, *size)), 3) < 0.2


@pytest.mark.parametrize("size, window, scales", [((7, 7), 7, 1), ((14, 30), 7, 2), ((28, 28), 7, 3), ((44, 64), 11, 3),
                                                  ((256, 256), 11, 5), ((32, 48, 32), 7, 3)])
def test_small_images_have_fewer_scales(size: tuple[int, ...], window: int, scales: int) -> None:
    edge, weights = scales_of(size)
    assert edge == window and len(weights) == scales and sum(weights) == pytest.approx(1)
    assert weights[-1] / weights[0] == pytest.approx(SCALES[scales - 1] / SCALES[0])
    images = np.random.default_rng(8).standard_normal((2, 1, *size)).astype(np.float32)
    assert 0 <= ms_ssim_pairs(images, 1) < 1
    with pytest.raises(Refused, match="DIM_UNSUPPORTED"):
        scales_of((6, 40))


def test_pairs_are_of_one_class_and_different_patients() -> None:
    # Six images: two patterns by class, and the same for both images of a patient.
    rng = np.random.default_rng(9)
    patterns = np.sign(rng.standard_normal((3, 16, 16))).astype(np.float32)
    images, patient = np.repeat(patterns, 2, axis=0)[:, None], np.array([0, 0, 1, 1, 2, 2])
    assert ms_ssim_pairs(images, 40, labels=patient) == pytest.approx(1, abs=1e-5)
    assert ms_ssim_pairs(images, 40, units=patient) < 0.2
    assert 0.05 < ms_ssim_pairs(images, 40) < 0.6
    assert np.isnan(ms_ssim_pairs(images, 40, labels=patient, units=patient))


def test_ms_ssim_of_collapsed_images_is_above_that_of_real_ones() -> None:
    rng = np.random.default_rng(10)

    def images(count: int) -> Any:
        return ndimage.gaussian_filter(rng.standard_normal((count, 1, 24, 24)), (0, 0, 2, 2)).astype(np.float32) * 3

    real = images(160)
    same = ms_ssim(real, images(160), units=np.arange(160))
    assert same.verdict == "good" and same.low < same.floor < same.high and not same.warnings
    collapsed = ms_ssim(real, np.repeat(images(2), 80, axis=0) + 0.05 * images(160), units=np.arange(160))
    assert collapsed.value > same.high and collapsed.verdict != "good"
    assert "made images" in ms_ssim(real, images(10), units=np.arange(160)).warnings[0]


def test_distances_are_plain_ones() -> None:
    values = np.array([[0.0, 0], [3, 4], [0, 1]])
    assert squared_distances(values).tolist() == [[0, 25, 1], [25, 0, 18], [1, 18, 0]]
    assert median_distance(values) == pytest.approx(np.sqrt(18))
    assert median_distance(np.ones((4, 2))) == 1
