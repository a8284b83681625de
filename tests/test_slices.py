"""The matrix of one axis: profiles, their rows, gaps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from acquisition_makers import density

from medgan.imaging.acquisition import simulate
from medgan.imaging.slices import PROFILES, Acquisition
from medgan.imaging.volume import Volume


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_integrates_to_one_and_is_half_as_high_at_half_its_width(profile: Any) -> None:
    x = np.linspace(-20, 20, 400_001)
    assert density(profile, 4.0, x).sum() * (x[1] - x[0]) == pytest.approx(1, abs=2e-3)
    near = density(profile, 4.0, np.array([0.0, 1.99, 2.01]))
    assert near[1] >= near[0] / 2 * 0.98
    assert near[2] <= near[0] / 2 * 1.02


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("factor", "thickness"), [(3.0, 1.0), (2.5, 0.6), (6.0, 1.4), (1.0, 1.0)])
def test_rows_sum_to_one_and_the_adjoint_is_the_transpose(profile: Any, factor: float, thickness: float) -> None:
    scan = Acquisition(17, factor, thickness, profile)
    assert scan.matrix.shape == (17, round(17 * factor))
    np.testing.assert_allclose(scan.matrix.sum(axis=1), 1, atol=1e-12)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=scan.fine), rng.normal(size=17)
    assert scan.matrix @ x @ y == pytest.approx(x @ (scan.matrix.T @ y))


def test_a_rectangle_of_the_spacing_is_a_plain_mean() -> None:
    scan = Acquisition(5, 3.0, 1.0, "rect")
    np.testing.assert_allclose(scan.matrix, np.kron(np.eye(5), np.full((1, 3), 1 / 3)), atol=1e-12)


def test_a_gap_leaves_voxels_unseen() -> None:
    volume = Volume(np.zeros((1, 4, 4, 12), np.float32))
    volume.array[..., 2] = 1  # lies in the gap between slices at 0 to 2 and 3 to 5 mm
    assert simulate(volume, spacing_mm=3, gap_mm=1, profile="rect").array[0, 0, 0, 0] == pytest.approx(0.25)
    with pytest.raises(ValueError, match="do not add up"):
        simulate(volume, spacing_mm=3, thickness_mm=3, gap_mm=1)
