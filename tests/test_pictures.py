"""Pictures of what a run has learned, from tiny runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import medgan
from medgan.cli import app
from medgan.errors import Refused
from medgan.learning import understanding
from medgan.verbs.pictures import FIGURES, pictures


def test_an_image_run_shows_walks_means_dial_projections_and_attention(image_run: Path, tmp_path: Path) -> None:
    drawn = pictures(image_run, tmp_path / "out", seed=1)
    assert drawn.files == ["walks.png", "means.png", "dial.png", "projection.png", "attention.png"]
    for name in drawn.files:
        picture = np.asarray(Image.open(tmp_path / "out" / name))
        assert picture.ndim == 3 and picture.std() > 5, name
    told = json.loads((tmp_path / "out" / FIGURES).read_text(encoding="utf-8"))
    assert told["weights"] == medgan.load(image_run).hash() and told["seed"] == 1
    classes = list(medgan.load(image_run).interface["classes"])
    assert list(told["dial"]) == list(told["walks"]) == list(told["means"]) == classes
    for dial in told["dial"].values():
        spread = [dial[psi]["variety"] for psi in ("1", "0.75", "0.5", "0.25", "0")]
        assert spread == sorted(spread, reverse=True) and spread[0] > 0 == spread[-1]
        assert dial["1"]["over_real"] > 0
    assert all(found["seen in training"]["median_error"] > 0 for found in told["projection"].values())
    again = pictures(image_run, tmp_path / "again", seed=1)
    assert again.figures == drawn.figures
    assert pictures(image_run, tmp_path / "other", seed=2).figures != drawn.figures


def test_a_lesion_run_shows_walks_dial_and_attention(lesion_run: Path, tmp_path: Path) -> None:
    drawn = pictures(lesion_run, tmp_path / "out")
    assert drawn.files == ["walks.png", "dial.png", "attention.png"] and not drawn.notes
    assert all((tmp_path / "out" / name).stat().st_size > 1_000 for name in drawn.files)


def test_without_data_and_state_the_rest_is_drawn_and_it_is_said(image_run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "run"
    shutil.copytree(image_run, moved)
    shutil.rmtree(moved / "state")
    description = json.loads((moved / "config.json").read_text(encoding="utf-8"))
    description["dataset"]["path"] = str(tmp_path / "gone")
    (moved / "config.json").write_text(json.dumps(description), encoding="utf-8")
    drawn = pictures(moved, tmp_path / "out")
    assert drawn.files == ["walks.png", "means.png", "dial.png"]
    assert any("attention" in note for note in drawn.notes) and any("real images" in note for note in drawn.notes)


def test_what_cannot_be_drawn_is_refused(image_run: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(Refused) as refused:
        pictures(image_run, tmp_path / "full")
    assert refused.value.code == "OUT_EXISTS" and [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]
    with pytest.raises(Refused) as refused:
        pictures(tmp_path, tmp_path / "out")
    assert refused.value.code == "RUN_NOT_FOUND" and not (tmp_path / "out").exists()


def test_the_command_draws_and_says_where(image_run: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["inspect", str(image_run), "--pictures", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["kind"] == "run" and set(told["pictures"]["files"]) <= {p.name for p in (tmp_path / "out").iterdir()}


def test_unseen_images_are_shown_under_their_own_class_and_in_the_runs_size(
        tmp_path: Path, tiny: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[int, ...]] = []

    def project(draw: object, images: torch.Tensor, *_: object, **__: object) -> understanding.Projection:
        shown.append(tuple(images.shape))
        return understanding.Projection(images.numpy(), np.ones(len(images)), np.zeros((len(images), 1), np.float32))

    monkeypatch.setattr(understanding, "project", project)
    rng = np.random.default_rng(0)
    for split, names, shape in (("train", "abc", (20, 16)), ("test", "b", (26, 16))):
        for name in names:
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for number in range(3):
                np.save(tmp_path / "set" / split / name / f"{split}{number}.npy",
                        rng.integers(0, 255, shape, dtype=np.uint8))
    run = medgan.train(tmp_path / "set", modality="xray", out=tmp_path / "run",
                       settings=tiny | {"data.crop": 16, "training.images": 8, "network.width": 4})
    found = pictures(run, tmp_path / "out").figures["projection"]
    assert {name: sorted(kinds) for name, kinds in found.items()} == {
        "a": ["seen in training"], "b": ["seen in training", "unseen"], "c": ["seen in training"]}
    assert len(set(shown)) == 1
