"""Whole images that follow label maps: labelled cases of the data set, in 2D and 3D."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from class_makers import image_run
from torch import Tensor

import medgan
from medgan.datasets.layouts import LAYOUTS, open_dataset
from medgan.errors import Refused
from medgan.learning.checkpoints import Run
from medgan.learning.image_networks import ImageGenerator


class Follower(ImageGenerator):
    """Draws its label map, so that what it was given can be seen."""

    def forward(self, latent: Tensor, classes: Tensor, maps: Tensor | None = None) -> Tensor:
        """-0.8 where the map is background, 0.8 elsewhere."""
        assert maps is not None and torch.equal(maps.sum(dim=1), torch.ones_like(maps[:, 0]))
        return 0.8 - 1.6 * maps[:, :1]


@pytest.fixture
def follower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run's generator draws its label map."""
    def generator(self: Run, device: object = "cpu") -> ImageGenerator:
        return Follower(self.config.data.dims, 1, len(self.interface["classes"]), size=self.interface["size"], width=4,
                        latent=8).eval()

    monkeypatch.setattr(Run, "generator", generator)


def _agreement(image: np.ndarray, mask: np.ndarray) -> float:
    bright = image[0] > 0.5 * (float(image.min()) + float(image.max()))
    return 2 * float((bright & (mask[0] > 0)).sum()) / float(bright.sum() + (mask[0] > 0).sum())


def test_images_that_follow_label_maps_become_labelled_cases(mr_set: Path, tmp_path: Path, follower: None) -> None:
    run = image_run(mr_set, tmp_path / "run", "mr", network__label_maps=True, data__crop=64)
    source = open_dataset(mr_set)
    made = medgan.augment(mr_set, model=run, modality="mr", out=tmp_path / "out")
    out = open_dataset(tmp_path / "out")
    assert len(made.synthetic) == 3 and sum(case.synthetic for case in out.cases) == 3
    for case in out.cases:
        if case.synthetic:
            record = json.loads(LAYOUTS[out.layout].sidecar(case).read_text())
            parent = next(each for each in source.cases if [each.id] == record["parents"])
            image, mask = out.load(case)
            own = source.load(parent)[1]
            assert mask is not None and own is not None and np.array_equal(mask.array, own.array)
            assert case.patient == parent.patient and _agreement(image.array, mask.array) > 0.9
    new = medgan.synthesize(run, 2, out=tmp_path / "new")
    assert all(case.mask is not None and _agreement(case.image.array, case.mask.array) > 0.9 for case in new)


def test_a_run_on_label_maps_is_trained_and_its_images_are_labelled_cases(mr_set: Path, tmp_path: Path,
                                                                          tiny: dict[str, object]) -> None:
    run = medgan.train(mr_set, task="image", modality="mr", out=tmp_path / "run",
                       settings=tiny | {"data.dims": 3, "data.crop": 16, "training.images": 8, "network.width": 4,
                                        "network.label_maps": True})
    made = medgan.augment(mr_set, factor=1.34, model=run, modality="mr", out=tmp_path / "out")
    (case,) = [case for case in open_dataset(made.out).cases if case.synthetic]
    assert case.mask is not None and made.run == run.path


def test_slices_that_follow_label_maps_are_written_with_theirs(mr_set: Path, tmp_path: Path, follower: None) -> None:
    run = image_run(mr_set, tmp_path / "run", "mr", network__label_maps=True, data__dims=2, data__crop=64)
    made = medgan.synthesize(run, 12, out=tmp_path / "new")
    written = open_dataset(tmp_path / "new")
    assert len(written.cases) == 12 and all(case.mask is not None for case in written.cases)
    marked = [case for case in made if case.mask is not None and (case.mask.array > 0).sum() > 20]
    assert marked and all(case.mask is not None and _agreement(case.image.array, case.mask.array) > 0.95
                          for case in marked)
    assert {case.record["patient"] for case in made} == {case.patient for case in open_dataset(mr_set).cases}
    (known,) = medgan.load(run).interface["classes"]
    assert [case.record["label"] for case in medgan.synthesize(run, 1, label=known)] == [known]


def test_a_run_that_follows_other_labels_is_refused(mr_set: Path, tmp_path: Path, follower: None) -> None:
    run = image_run(mr_set, tmp_path / "run", "mr", network__label_maps=True)
    description = json.loads((run / "config.json").read_text())
    description["interface"]["maps"][1] = "cortex"
    (run / "config.json").write_text(json.dumps(description))
    with pytest.raises(Refused) as refused:
        medgan.augment(mr_set, model=run, modality="mr", out=tmp_path / "out")
    assert refused.value.code == "LABEL_UNKNOWN" and "cortex" in str(refused.value)
    assert not (tmp_path / "out").exists()
