"""Texture clusters: what is described, what is grouped, and what a request of a size is given."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medgan.config import Config
from medgan.datasets.layouts import open_dataset
from medgan.errors import Refused
from medgan.learning.checkpoints import open_run
from medgan.lesions.gan import Gan
from medgan.lesions.library import build_library
from medgan.lesions.textures import QUANTILES, Textures, describe


def _two_kinds(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Half bright and even, half dark and rough."""
    bright = [describe(rng.normal(0.8, 0.05, (1, 200)), np.array([0.1])) for _ in range(count)]
    return bright + [describe(rng.normal(-0.3, 0.4, (1, 200)), np.array([0.1])) for _ in range(count)]


def test_a_description_is_the_quantiles_over_the_surroundings() -> None:
    values = np.stack([np.linspace(0, 1, 101), np.linspace(2, 4, 101)])
    told = describe(values, np.array([0.5, 1.0]))
    np.testing.assert_allclose(told, np.concatenate([QUANTILES - 0.5, 2 * QUANTILES + 1]), atol=1e-6)


def test_clusters_tell_kinds_apart_and_a_size_draws_what_lesions_of_that_size_have() -> None:
    rng = np.random.default_rng(0)
    # The bright kind is small, the dark one large.
    told, sizes = _two_kinds(rng, 30), [*rng.uniform(3, 6, 30), *rng.uniform(20, 40, 30)]
    textures = Textures.fit(told, sizes, 2, seed=1)
    assert len(textures) == 2
    bright, dark = textures.nearest(told[0]), textures.nearest(told[-1])
    assert bright != dark
    assert [textures.nearest(t) for t in _two_kinds(rng, 5)] == [bright] * 5 + [dark] * 5
    assert {textures.draw(4.0, rng) for _ in range(20)} == {bright}
    assert {textures.draw(30.0, rng) for _ in range(20)} == {dark}


def test_clusters_go_through_an_interface_and_none_are_none() -> None:
    textures = Textures.fit(_two_kinds(np.random.default_rng(0), 30), [5.0] * 60, 3, seed=1)
    back = Textures.of({"textures": json.loads(json.dumps(textures.as_json()))})
    np.testing.assert_allclose(back.centres, textures.centres, atol=1e-3)
    assert np.array_equal(back.members[:, 1], textures.members[:, 1])
    none = Textures.of({"textures": Textures.fit(_two_kinds(np.random.default_rng(0), 30), [5.0] * 60, 0, 1).as_json()})
    assert len(none) == 0 and none.nearest(textures.centres[0]) == 0
    assert none.draw(5.0, np.random.default_rng(0)) == 0


def test_few_lesions_make_few_clusters() -> None:
    rng = np.random.default_rng(0)
    assert len(Textures.fit(_two_kinds(rng, 1), [5.0, 5.0], 4, seed=0)) == 0
    assert len(Textures.fit(_two_kinds(rng, 4), [5.0] * 8, 4, seed=0)) <= 2


def test_a_generator_draws_the_cluster_that_is_named(lesion_run: Path, mr_set: Path) -> None:
    import torch

    from medgan.lesions.placement import Ground
    from medgan.lesions.scans import open_scan

    run = open_run(lesion_run)
    count = len(Textures.of(run.interface))
    assert count >= 2
    dataset, config = open_dataset(mr_set), run.config
    library = build_library(dataset, config)
    scan = open_scan(dataset, dataset.cases[0], config)
    ground = Ground(scan, library, finest_mm=2.0, crop=config.data.crop)
    sites = (ground.site(library.lesions[k % len(library.lesions)], np.random.default_rng(k)) for k in range(20))
    site = next(s for s in sites if s is not None)
    drawn = []
    for cluster in (0, 1):
        maker = Gan(run, "cpu", cluster=cluster)
        for parameter in maker.generator.parameters():
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
        assert maker.cluster_of(site, 3) == cluster
        drawn.append(maker.draw(scan, site, 3))
    assert np.abs(drawn[0] - drawn[1])[0][site.labels > 0].max() > 1e-3
    own = Gan(run, "cpu")
    assert own.cluster_of(site, 3) == own.textures.of_lesion(site.donor)
    assert 0 <= Gan(run, "cpu", cluster="drawn").cluster_of(site, 3) < count
    with pytest.raises(Refused, match="cluster"):
        Gan(run, "cpu", cluster=count)


def test_what_varies_a_lesion_as_a_whole_is_the_same_in_all_its_slices(lesion_run: Path) -> None:
    whole, *levels = Gan(open_run(lesion_run), "cpu")._noise(6, 1.0, seed=3)
    assert (whole == whole[:1]).all()
    for level in levels:
        assert not (level[1:] == level[:-1]).any()
        assert 0.7 < float(level.std()) < 1.3


def test_training_crops_are_told_their_cluster(mr_set: Path, tiny: dict[str, object]) -> None:
    from medgan.learning.tasks.lesion import LesionTask

    config = Config.resolve("mr", settings=tiny)
    source = LesionTask.source(open_dataset(mr_set), config)
    textures, labels = Textures.of(source.interface), len(source.interface["labels"])
    condition = source.batch(0)["condition"].numpy()
    assert condition.shape[1] == labels + len(textures) + 2
    one_hot = condition[:, 1 + labels : -1]
    assert np.array_equal(one_hot.sum(axis=1), condition[:, -1])
    assert {crop.texture for crop in source.lesion_crops} == set(range(len(textures)))
