"""New cores: inside the lesion, other than it was, and the rim as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from medgan.config import Augment, Config
from medgan.datasets.layouts import open_dataset
from medgan.lesions.compose import compose
from medgan.lesions.cores import new_core, with_core
from medgan.lesions.library import Library, build_library
from medgan.lesions.makers import Paste
from medgan.lesions.placement import Ground, Site
from medgan.lesions.scans import Scan, open_scan


@pytest.fixture(scope="module")
def config(tiny: dict[str, object]) -> Config:
    return Config.resolve("mr", settings=tiny)


@pytest.fixture(scope="module")
def scan(mr_set: Path, config: Config) -> Scan:
    dataset = open_dataset(mr_set)
    return open_scan(dataset, dataset.cases[0], config)


@pytest.fixture(scope="module")
def library(mr_set: Path, config: Config) -> Library:
    return build_library(open_dataset(mr_set), config)


@pytest.fixture(scope="module")
def site(scan: Scan, library: Library) -> Site:
    donor = max(library.lesions, key=lambda lesion: lesion.size_mm)
    found = Ground(scan, library, finest_mm=1.0, crop=32).site(donor, np.random.default_rng(0))
    assert found is not None
    return found


def test_a_core_lies_deep_in_the_lesion_and_the_rest_keeps_its_values(scan: Scan, site: Site) -> None:
    drawn = Paste().draw(scan, site, 0)
    lesion = site.labels > 0
    depth = ndimage.distance_transform_edt(lesion, sampling=site.voxel_mm)
    for seed in range(6):
        made, core = new_core(scan, site, drawn, seed)
        assert core.any() and not core[~lesion].any()
        assert np.array_equal(made[:, ~lesion], drawn[:, ~lesion])
        assert depth[core].mean() > depth[lesion & ~core].mean()
        assert np.abs(made[:, core] - drawn[:, core]).mean() > 0.02


def test_cores_differ_in_brightness_from_seed_to_seed(scan: Scan, site: Site) -> None:
    drawn = Paste().draw(scan, site, 0)
    means = []
    for seed in range(12):
        made, core = new_core(scan, site, drawn, seed)
        means.append(made[0][core].mean())
    own = drawn[0][site.labels > 0]
    assert np.std(means) > 0.5 * own.std()


def test_a_thin_lesion_has_no_core(scan: Scan, site: Site) -> None:
    flat = np.zeros_like(site.labels)
    flat[2:-2, 2:-2, flat.shape[2] // 2] = 1
    thin = replace(site, labels=flat)
    drawn = Paste().draw(scan, site, 0)
    made, core = new_core(scan, thin, drawn, 0)
    assert not core.any() and made is drawn


def test_as_many_get_one_as_asked_for(scan: Scan, site: Site) -> None:
    drawn = Paste().draw(scan, site, 0)
    assert not any(with_core(scan, site, drawn, seed, 0.0)[1] for seed in range(20))
    assert all(with_core(scan, site, drawn, seed, 1.0)[1] for seed in range(20))
    some = sum(with_core(scan, site, drawn, seed, 0.5)[1] for seed in range(60))
    assert 18 <= some <= 42


def test_composing_says_how_many_cores_were_drawn(scan: Scan, library: Library, config: Config) -> None:
    def made(share: float) -> float:
        settings = Augment(**{**config.augment.model_dump(), "cores": share})
        case = compose(Ground(scan, library, finest_mm=1.0, crop=32), Paste(), settings, 4, count=2)
        assert case is not None
        return case.gates["cores"]

    assert made(0.0) == 0 and made(1.0) >= 1
