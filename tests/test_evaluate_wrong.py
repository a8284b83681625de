"""`evaluate` on what users bring: equal names, leaks, classes nobody held out, odd paths, stops; ONNX and volumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import dataset_makers as make
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from test_evaluate import CONFIG, QUICK, SIZE, npz, pictures

import medgan
from medgan.config import Config
from medgan.datasets.layouts import open_dataset
from medgan.errors import Interrupted, Refused
from medgan.storage import claimed
from medgan.verbs import evaluate as verb
from medgan.verbs import looking, measuring
from medgan.verbs.judging import roles
from medgan.verbs.looking import Material, Pictures


def folder(path: Path, count: int, seed: int, prefix: str = "") -> Path:
    """PNG files 0000.png, ... of two classes."""
    for kind in (0, 1):
        (path / str(kind)).mkdir(parents=True, exist_ok=True)
        for number, pixels in enumerate(pictures(count, kind, seed + kind)):
            Image.fromarray(pixels).save(path / str(kind) / f"{prefix}{number:04d}.png")
    return path


def test_a_file_of_another_tool_is_not_of_the_patient_whose_files_name_it_has(tmp_path: Path) -> None:
    real, made = (open_dataset(folder(tmp_path / name, 12, seed)) for name, seed in (("real", 1), ("made", 5)))
    held = open_dataset(folder(tmp_path / "held", 12, 9, "held"))
    assert len(roles(real, made, None, 0).made) == 24
    assert len(roles(real, replace(made, root=held.root), held, 0).made) == 24
    with pytest.raises(Refused, match=r"SPLIT_LEAK.*rename"):
        roles(real, held, made, 0)


def test_synthetic_cases_made_from_held_out_patients_alone_are_refused(tmp_path: Path) -> None:
    real = open_dataset(npz(tmp_path / "real.npz", train=(12, 12, 1), test=(12, 12, 5)))
    made = open_dataset(npz(tmp_path / "made.npz", train=(12, 12, 9)))
    tested = next(case.id for case in real.cases if case.split == "test")
    cases = [replace(case, synthetic=True, patient=tested) for case in made.cases]
    with pytest.raises(Refused, match=r"SPLIT_LEAK.*all of its synthetic cases"):
        roles(real, replace(made, cases=tuple(cases)), None, 0)
    cases[0] = replace(cases[0], patient="somebody")
    found = roles(real, replace(made, cases=tuple(cases)), None, 0)
    assert len(found.made) == 1 and any(text.startswith("23 synthetic cases made from") for text in found.warnings)


def test_of_two_patients_one_is_held_out_and_of_one_none(tmp_path: Path) -> None:
    real, made = (open_dataset(folder(tmp_path / name, 12, seed)) for name, seed in (("real", 1), ("made", 5)))
    people = [replace(real, cases=tuple(replace(case, patient=f"p{number % count}")
                                        for number, case in enumerate(real.cases))) for count in (1, 2)]
    found = roles(people[1], made, None, 0)
    assert len(found.train) == len(found.heldout) == 12
    with pytest.raises(Refused, match=r"DATASET_EMPTY.*no patient can be held out.*--heldout"):
        roles(people[0], made, None, 0)


def test_cases_without_a_class_are_left_out_and_told(tmp_path: Path) -> None:
    real, made = (open_dataset(folder(tmp_path / name, 12, seed)) for name, seed in (("real", 1), ("made", 5)))
    nameless = replace(made, cases=(replace(made.cases[0], label=None), *made.cases[1:]))
    found = roles(real, nameless, None, 0)
    assert len(found.made) == 23
    assert any(f"1 of 24 cases, {made.cases[0].id} the first of them, have no class" in text for text in found.warnings)


def test_held_out_images_among_the_synthetic_ones_are_a_leak(tmp_path: Path) -> None:
    real, held = npz(tmp_path / "real.npz", train=(15, 15, 1), test=(12, 12, 5)), tmp_path / "made.npz"
    arrays = dict(np.load(npz(held, train=(12, 12, 9))))
    arrays["train_images"][:2] = np.load(real)["test_images"][:2]
    np.savez(held, **arrays)
    other = npz(tmp_path / "held.npz", test=(12, 12, 5))
    opened = [open_dataset(path) for path in (real, held, other)]
    read = looking.gather(roles(opened[0], opened[1], None, 0), CONFIG)
    assert len(read.heldout) == 22 and any("2 held-out images are synthetic images too" in text
                                           for text in read.warnings)
    with pytest.raises(Refused, match=r"SPLIT_LEAK.*is the synthetic case"):
        looking.gather(roles(opened[0], opened[1], opened[2], 0), CONFIG)


def test_empty_images_on_both_sides_are_no_leak(tmp_path: Path) -> None:
    paths = [npz(tmp_path / f"{name}.npz", train=(12, 12, seed)) for name, seed in (("real", 1), ("made", 5),
                                                                                    ("held", 9))]
    for path in paths:
        arrays = dict(np.load(path))
        arrays["train_images"][0] = 7
        np.savez(path, **arrays)
    real, made, held = (open_dataset(path) for path in paths)
    assert len(looking.gather(roles(real, made, held, 0), CONFIG).heldout) == 24


def sides(train: tuple[int, ...], heldout: tuple[int, ...], made: tuple[int, ...]) -> Material:
    """Random images, so many of each class."""
    def some(counts: tuple[int, ...], seed: int) -> Pictures:
        images = np.random.default_rng(seed).uniform(-1, 1, (sum(counts), 1, SIZE, SIZE)).astype(np.float32)
        labels: NDArray[np.str_] = np.repeat([str(number) for number in range(len(counts))], counts)
        names = np.array([f"{seed}-{number}" for number in range(len(images))])
        return Pictures(images, labels, names, names, np.zeros((len(images), 3)))

    names = tuple(str(number) for number in range(len(train)))
    return Material(some(train, 1), some(heldout, 2), some(made, 3), names, names, False, True, "here", ())


@pytest.mark.parametrize(("heldout", "made", "why"), [((6, 1), (12, 12), "2 or more held-out images"),
                                                      ((6, 6, 0), (0, 0, 12), "No synthetic image is of a class")])
def test_help_is_not_asked_for_where_it_cannot_be_tested(heldout: tuple[int, ...], made: tuple[int, ...], why: str
                                                         ) -> None:
    material = sides((12,) * len(heldout), heldout, made)
    found = measuring._utility(material, CONFIG.evaluate, 0, "cpu", lambda text: None)[0]
    assert not found["asked"] and why in found["why"]
    assert measuring._helps(found)["answer"] == "not asked"


def test_copies_are_not_looked_for_with_one_fresh_image() -> None:
    warnings: list[str] = []
    assert measuring._memory(sides((12,), (1,), (12,)), sides((12,), (1,), (12,)).made, CONFIG.evaluate, 0, warnings
                             ) == ({}, ())
    assert warnings == ["1 held-out image is too few to look for copies."]
    assert measuring._copies({})["answer"] == "not asked"


def test_another_file_of_the_same_size_is_another_data_set(tmp_path: Path) -> None:
    real, made = (npz(tmp_path / f"{name}.npz", train=(12, 12, seed)) for name, seed in (("real", 1), ("made", 5)))
    assert real.stat().st_size == made.stat().st_size
    assert len(roles(open_dataset(real), open_dataset(made), None, 0).made) == 24


@pytest.mark.parametrize("where", ["real", "made"])
def test_an_output_in_a_data_set_is_refused(where: str, tmp_path: Path) -> None:
    real, made = folder(tmp_path / "real", 12, 1), folder(tmp_path / "made", 12, 5)
    with pytest.raises(Refused, match=r"OUT_EXISTS.*in the data set itself"):
        medgan.evaluate(real, made, out=tmp_path / where / "out", modality="xray", settings=QUICK)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("known", [False, True])
def test_both_files_are_written_or_none(stop: type[BaseException], known: bool, tmp_path: Path,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise stop

    monkeypatch.setattr(verb, "write_text", stopped)
    target = tmp_path / "out"
    if known:
        target.mkdir()
    with pytest.raises(stop), claimed(target):
        verb._write(target, {"a": 1}, "page")
    assert list(tmp_path.rglob("*")) == ([target] if known else [])


def test_a_stop_while_the_report_is_drawn_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = npz(tmp_path / "real.npz", train=(12, 12, 1), test=(12, 12, 5))
    made = npz(tmp_path / "made.npz", train=(12, 12, 9))

    def stopped(_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(verb, "_judged", lambda *_: ({}, stopped))
    with pytest.raises(Interrupted):
        medgan.evaluate(real, made, out=tmp_path / "out", modality="xray", settings=QUICK)
    assert not (tmp_path / "out").exists()


def test_names_that_are_no_text_can_be_written(tmp_path: Path) -> None:
    written = verb._writable({"path": "a\udcff/Ärzte", "n": 1})
    assert written == {"path": "a?/Ärzte", "n": 1}
    verb._write(tmp_path / "out", written, written["path"])


def test_an_encoder_of_the_users_own_measures(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from test_features import convolution

    path, _ = convolution(tmp_path / "mine.onnx", ["n", 1, "h", "w"], 1, pooled=True)
    config = Config.resolve("xray", "image", settings=[*QUICK[1:], f"evaluate.features={path}"])
    material = sides((24,), (6,), (12,))
    found = measuring._by_class(material, material.train, material.made, config.evaluate, 0, lambda text: None, [])
    entry = found["0"]
    assert entry["features"].startswith("mine-") and entry["second_opinion"]["features"] == "random-convolutions"
    assert {"mmd2", "frechet", "realness", "coverage"} <= set(entry["measures"])


@pytest.mark.slow
def test_volumes_of_classes_are_asked_whether_they_help(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, count in (("real", 16), ("made", 10), ("held", 6)):
        for kind in ("ill", "well"):
            for number in range(count):
                values = rng.integers(0, 100, (12, 12, 12)) + (90 if kind == "ill" else 0) * (np.arange(12) < 6)
                make.nifti(tmp_path / name / kind / f"{name}{kind}{number}.nii.gz", values.astype(np.int16))
    done = medgan.evaluate(tmp_path / "real", tmp_path / "made", heldout=tmp_path / "held", out=tmp_path / "out",
                           modality="mr", settings=QUICK)
    assert done.figures["images"]["size"] == [12, 12, 12] and done.figures["utility"]["asked"]
    assert set(done.figures["utility"]["arms"]) >= {"classic", "synthetic added", "synthetic only"}
    assert set(done.figures["utility"]["confidence"]) == {"held-out real", "synthetic"}
    assert done.figures["classes"]["ill"]["measures"]["mmd2"]["n_made"] > 0
    assert "Inception-style score" in done.report.read_text(encoding="utf-8")
