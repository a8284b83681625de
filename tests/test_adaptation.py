"""Adapting the upscale generator to one scan: what it learns from, that it is judged, and when it is left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import medgan
from medgan.datasets.phantoms import phantom
from medgan.errors import Refused
from medgan.imaging.acquisition import simulate
from medgan.imaging.intensity import intensity_maps
from medgan.imaging.restoration import acquisitions
from medgan.imaging.volume import Volume
from medgan.learning import adaptation
from medgan.learning.adaptation import adapt
from medgan.learning.sharpening import Sharpener


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptation, "SETTINGS", adaptation.SETTINGS | {
        "training.images": 160, "training.batch": 8, "training.precision": "fp32", "training.limit_minutes": None})
    monkeypatch.setattr(adaptation, "JUDGES", 2)


@pytest.fixture(scope="module")
def thick() -> Volume:
    image, _ = phantom("mr", 5, shape=(72, 84, 60), spacing_mm=(1.6, 1.6, 1.6))
    return simulate(image, spacing_mm=4.8)


def run(image: Volume, factors: tuple[float, ...]) -> tuple[Sharpener, tuple[Sharpener, float | None, str | None]]:
    sharpener = Sharpener.open(None, "cpu")
    maps = tuple(mapping.straight() for mapping in intensity_maps(image.array, sharpener.config.intensity))
    scans = acquisitions(image, factors, "gaussian", None)
    return sharpener, adapt(sharpener, image, scans, maps, [0.01] * image.channels)


def parameters(sharpener: Sharpener) -> list[torch.Tensor]:
    return [parameter.clone() for parameter in sharpener.generator.parameters()]


def judged(monkeypatch: pytest.MonkeyPatch, before: float, after: float) -> None:
    monkeypatch.setattr(adaptation, "_errors", lambda *_: [before, after])


def test_the_better_one_is_kept_and_the_first_left_as_it_was(thick: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    judged(monkeypatch, 2.0, 1.0)
    fresh = parameters(Sharpener.open(None, "cpu"))
    first, (kept, gain, remark) = run(thick, (1, 1, 3))
    assert gain == pytest.approx(3.01, abs=0.01) and remark is None
    assert kept.hash == f"{first.hash}+adapted"
    assert all(torch.equal(a, b) for a, b in zip(fresh, parameters(first), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(fresh, parameters(kept), strict=True))


@pytest.mark.parametrize("after", [1.0, 0.95, 3.0])
def test_what_does_not_help_enough_is_not_kept(thick: Volume, after: float, monkeypatch: pytest.MonkeyPatch) -> None:
    judged(monkeypatch, 1.0, after)
    first, (kept, gain, remark) = run(thick, (1, 1, 3))
    assert kept is first and gain == 0.0 and remark is not None and "did not help" in remark


def test_the_judges_tell_a_broken_generator(thick: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors are measured, on patches held back: a rate that wrecks the weights is found out."""
    monkeypatch.setattr(adaptation, "SETTINGS", adaptation.SETTINGS | {"training.rate": 0.5, "training.rate_end": 0.5})
    first, (kept, gain, _) = run(thick, (1, 1, 3))
    assert kept is first and gain == 0.0


def test_it_learns_from_the_sharp_axes_and_holds_blocks_back(thick: Volume) -> None:
    sharpener = Sharpener.open(None, "cpu")
    maps = tuple(mapping.straight() for mapping in intensity_maps(thick.array, sharpener.config.intensity))
    sources = adaptation._sources(sharpener, thick, acquisitions(thick, (1, 1, 3), "gaussian", None), maps, [0.02], 48)
    assert sources is not None
    learned, held = sources
    assert len(learned.scans) == adaptation.BLOCKS - len(adaptation.HELD_BACK)
    assert len(held.scans) == len(adaptation.HELD_BACK)
    assert all(scan.axes == (0, 1) and scan.dense for scan in learned.scans)
    take = learned.plans[0].take(np.random.default_rng(0))
    assert take.true.thickness == take.told.thickness == 1.0 and take.noise == pytest.approx(0.02)
    assert learned.batch(0)["thick"].isfinite().all()


@pytest.mark.parametrize(("change", "says"), [
    (lambda s: replace(s, array=s.array[:, :20, :20]), "no two axes"),
    (lambda s: replace(s, affine=np.eye(4)), "no two axes"),
    (lambda s: s, "2D"),
])
def test_where_nothing_can_be_learned_it_says_so(thick: Volume, change: Callable[[Volume], Volume], says: str,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    if says == "2D":
        opened = Sharpener.open(None, "cpu")
        opened.generator.dims = 3
        monkeypatch.setattr(Sharpener, "open", classmethod(lambda *_: opened))
    first, (kept, gain, remark) = run(change(thick), (1, 1, 3))
    assert kept is first and gain is None and remark is not None and says in remark


def test_upsample_adapts_and_tells(thick: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    judged(monkeypatch, 2.0, 1.0)
    seen = []
    plain = medgan.upsample(thick, factor=(1, 1, 3), profile="gaussian")
    image, report = medgan.upsample(thick, factor=(1, 1, 3), profile="gaussian", adapt=True, report=True, maps=False,
                                    progress=seen.append)
    assert report.adapted == pytest.approx(3.01, abs=0.01) and report.model.endswith("+adapted")
    assert {step.stage for step in seen} == {"adapt", "upsample"}
    assert image.shape == plain.shape and not np.array_equal(image.array, plain.array)
    again = medgan.upsample(thick, factor=(1, 1, 3), profile="gaussian", adapt=True)
    np.testing.assert_allclose(image.array, again.array, atol=1e-3 * np.ptp(plain.array))


def test_settings_reach_the_adaptation(thick: Volume, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    judged(monkeypatch, 2.0, 1.0)
    seen = []
    (tmp_path / "own.toml").write_text("[training]\nimages = 48\n")
    medgan.upsample(thick, factor=(1, 1, 3), profile="gaussian", adapt=True, progress=seen.append,
                    config=tmp_path / "own.toml", settings=["training.batch=4"])
    assert [step.done for step in seen if step.stage == "adapt"] == list(range(4, 49, 4))
    for wrong, options in (("CFG_UNKNOWN", {"settings": ["training.speed=1"]}),
                           ("CFG_VALUE", {"settings": ["training.batch=1"], "method": "linear"})):
        with pytest.raises(Refused, match=wrong):
            medgan.upsample(thick, factor=(1, 1, 3), **options)


@pytest.mark.parametrize("code", adaptation.GIVEN_UP)
def test_a_training_that_cannot_go_on_leaves_the_model_as_it_is(thick: Volume, code: str,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(*_: object) -> Iterator[None]:
        raise Refused(code, "training", "it ran away", "Do not")
        yield

    monkeypatch.setattr(adaptation, "train", stops)
    sharp, report = medgan.upsample(thick, profile="gaussian", adapt=True, report=True, maps=False)
    assert report.adapted == 0.0 and any("it ran away" in warning for warning in report.warnings)
    assert np.array_equal(sharp.array, medgan.upsample(thick, profile="gaussian").array)
