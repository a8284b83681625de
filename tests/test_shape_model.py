"""Made-up shapes: measured right, distributed like the real ones, labelled from rim to core like their donor."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from medgan.lesions.shape_model import ShapeModel, form_of, measure
from medgan.lesions.shapes import MARGIN, Lesion, deform


def _ellipsoid(axes: tuple[float, float, float], spacing: np.ndarray) -> np.ndarray:
    half = [int(np.ceil(a / s)) + 2 for a, s in zip(axes, spacing, strict=True)]
    grid = np.meshgrid(*[np.arange(-h, h + 1) * s for h, s in zip(half, spacing, strict=True)], indexing="ij")
    return sum((g / a) ** 2 for g, a in zip(grid, axes, strict=True)) <= 1  # type: ignore[no-any-return]


def _lesion(inside: np.ndarray, spacing: np.ndarray, planar: bool = False) -> Lesion:
    """Rim labelled 2 (value 0.5), the deep half 1 (value -0.5), surroundings 0.1."""
    pad = [(MARGIN, MARGIN)] * 2 + [(0, 0) if planar else (MARGIN, MARGIN)]
    inside = np.pad(inside, pad)
    depth = ndimage.distance_transform_edt(inside, sampling=spacing)
    labels = np.where(inside, np.where(depth > np.median(depth[inside]), 1, 2), 0).astype(np.uint8)
    image = np.choose(labels, [0.1, -0.5, 0.5]).astype(np.float32)[None]
    return Lesion("c", "p", image, labels, spacing, np.zeros(3, int), np.array(inside.shape) / 2,
                  np.array([0.1], np.float32), (0.0, 0.2), planar)


@pytest.fixture(scope="module")
def lesions() -> list[Lesion]:
    rng = np.random.default_rng(1)
    spacing = np.array([1.0, 1.0, 1.5])
    return [_lesion(_ellipsoid(tuple(rng.uniform(5, 12, 3)), spacing), spacing) for _ in range(6)]


def test_a_ball_measures_as_a_ball_and_long_or_ragged_shapes_do_not() -> None:
    one = np.ones(3)
    ball = measure(_ellipsoid((9, 9, 9), one), one, False)
    assert ball.size_mm == pytest.approx(18, rel=0.03)
    assert ball.sphericity > 0.95 and ball.roughness < 0.08 and max(ball.elongation) < 1.05
    coarse = np.array([1.0, 1.0, 2.5])
    assert measure(_ellipsoid((9, 9, 9), coarse), coarse, False).sphericity == pytest.approx(ball.sphericity, abs=0.05)
    long = measure(_ellipsoid((18, 7, 7), one), one, False)
    assert long.sphericity < 0.92 and long.elongation[0] == pytest.approx(18 / 7, rel=0.05)
    assert abs(long.axes[0, 0]) > 0.99
    noise = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((23, 23, 23)), 1.0)
    ragged = ndimage.binary_dilation(_ellipsoid((9, 9, 9), one), iterations=2) & (noise[:23, :23, :23] > -0.05)
    rough = measure(ragged, one, False)
    assert rough.roughness > 2 * ball.roughness and rough.sphericity < ball.sphericity - 0.2
    flat = np.array([0.5, 0.5, 1.0])
    disc = measure(_ellipsoid((9, 9, 0.5), flat)[:, :, 3:4], flat, True)
    assert disc.sphericity > 0.95 and disc.size_mm == pytest.approx(18, rel=0.05)


@pytest.fixture(scope="module")
def ragged(lesions: list[Lesion]) -> list[Lesion]:
    made = []
    for seed, lesion in enumerate(lesions[:3]):
        noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(lesion.labels.shape), 1.2)
        grown = ndimage.binary_dilation(lesion.labels > 0, iterations=2)
        parts, _ = ndimage.label(grown & (noise > -0.1 * noise.std()))
        made.append(_lesion(parts == np.bincount(parts.ravel())[1:].argmax() + 1, lesion.spacing_mm))
    return made


def test_drawn_shapes_are_distributed_like_real_ones(lesions: list[Lesion], ragged: list[Lesion]) -> None:
    donors = [*lesions[3:], *ragged]
    model, rng = ShapeModel.fit(donors), np.random.default_rng(0)
    drawn = np.array([form_of(model.draw(donors[i % 6], rng)).vector for i in range(18)])
    real = np.array([form.vector for form in model.forms])
    size, sphericity, roughness = drawn.mean(axis=0)[:3] - real.mean(axis=0)[:3]
    assert abs(size) < 0.2 and abs(sphericity) < 0.12 and abs(roughness) < 0.35
    assert drawn[:, 1].std() > 0.3 * real[:, 1].std() and drawn[:, 0].std() > 0.05, "all alike"


def test_ragged_lesions_are_followed_by_ragged_shapes(lesions: list[Lesion], ragged: list[Lesion]) -> None:
    got = []
    for donors in (lesions[:3], ragged):
        model = ShapeModel.fit(donors)
        forms = [form_of(model.draw(donor, np.random.default_rng(i))) for i, donor in enumerate(donors)]
        got.append(np.mean([form.vector for form in forms], axis=0))
    assert got[1][1] < got[0][1] - 0.1 and got[1][2] > got[0][2] + 0.3


@pytest.mark.parametrize("planar", [False, True])
def test_one_lesion_is_enough_and_its_rim_and_core_are_kept(planar: bool) -> None:
    spacing = np.array([1.0, 1.0, 1.0])
    inside = _ellipsoid((11, 8, 0.5 if planar else 9), spacing)
    donor = _lesion(inside[:, :, 3:4] if planar else inside, spacing, planar)
    model = ShapeModel.fit([donor])
    made = [model.draw(donor, np.random.default_rng(seed)) for seed in range(3)]
    assert not np.array_equal(made[0].labels, made[1].labels)
    again = model.draw(donor, np.random.default_rng(0))
    assert np.array_equal(again.labels, made[0].labels) and np.array_equal(again.image, made[0].image)
    for lesion in made:
        own = lesion.labels > 0
        assert lesion.image.shape[1:] == lesion.labels.shape and (lesion.labels.shape[2] == 1) == planar
        assert ndimage.label(own, np.ones((3, 3, 3)))[1] == 1 and lesion.present() == {1, 2}
        depth = ndimage.distance_transform_edt(own)
        assert depth[lesion.labels == 1].mean() > depth[lesion.labels == 2].mean() + 0.5, "core outside, rim inside"
        assert (lesion.labels == 1).sum() / own.sum() == pytest.approx((donor.labels == 1).sum()
                                                                       / (donor.labels > 0).sum(), abs=0.2)
        assert lesion.image[0][lesion.labels == 1].mean() == pytest.approx(-0.5, abs=0.1)
        assert lesion.image[0][lesion.labels == 2].mean() == pytest.approx(0.5, abs=0.1)
        assert np.allclose(lesion.image[0][~own], 0.1)
        assert not own[[0, -1]].any() and not own[:, [0, -1]].any()
        # The rest of the chain takes it as it takes a real one.
        assert set(np.unique(deform(lesion, spacing, np.random.default_rng(0)).labels)) == {0, 1, 2}


def test_a_wanted_size_is_met_and_the_smallest_stay_lesions(lesions: list[Lesion]) -> None:
    model = ShapeModel.fit(lesions)
    for size in (8.0, 24.0):
        assert model.draw(lesions[0], np.random.default_rng(3), size).size_mm == pytest.approx(size, rel=0.15)
    assert (model.draw(lesions[0], np.random.default_rng(3), 0.5).labels > 0).sum() >= 8
