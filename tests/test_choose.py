"""How much: the factor that cross-validation over patients chooses, and what happens where there is nothing to hold."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import medgan
from medgan.config import Config
from medgan.datasets.cases import Case, Dataset
from medgan.datasets.coarse import EDGE, coarse
from medgan.datasets.layouts import open_dataset
from medgan.datasets.splits import patient_key
from medgan.errors import Interrupted, Refused
from medgan.metrics import trials
from medgan.verbs import choose
from medgan.verbs.pool import Work
from medgan.verbs.progress import Progress


class Planted:
    """A task model whose score is a known function of how many synthetic cases it was trained on; it sees real ones.

    Every case is read through the data set, so that what is counted lies there and bears the ids it should.
    """

    measure, unit, most_patients = "Dice", "patients", 20
    #: Dice gained with each synthetic case a real one, up to a doubling, and how patients and seeds differ.
    slope, patient_spread, seed_spread = 0.0, 0.2, 0.01
    seen: ClassVar[list[tuple[frozenset[str], frozenset[str], int]]]

    def __init__(self, dataset: Dataset, config: Config) -> None:
        self.patients = sorted({case.patient for case in dataset.cases})

    def usable(self, case: Case) -> bool:
        return case.mask is not None

    def read(self, dataset: Dataset, case: Case) -> Case:
        assert dataset.load(case)[1] is not None
        return case

    def learnable(self, cases: Sequence[Case]) -> bool:
        return True

    def score(self, training: Sequence[Case], test: Sequence[tuple[str, Case]], *, seed: int) -> list[float]:
        real = {case.id for case in training if not case.synthetic}
        ratio = sum(case.synthetic for case in training) / len(real)
        type(self).seen.append((frozenset(case.id for case in training), frozenset(name for name, _ in test), seed))
        rng = np.random.default_rng(seed * 100 + len(training))
        return [0.5 + self.patient_spread * self.patients.index(patient) / len(self.patients)
                + self.slope * min(ratio, 1) + self.seed_spread * rng.standard_normal() for patient, _ in test]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small MR phantoms."""
    from medgan.datasets.phantoms import write_phantoms

    return write_phantoms(tmp_path_factory.mktemp("choose") / "three", "mr", count=3, seed=9, shape=(40, 44, 12))


def _work(root: Path, out: Path, **changes: Any) -> Work:
    config = Config.resolve("mr", "lesion", settings={"augment.removed": 0.0})
    return Work(**({"dataset": open_dataset(root), "config": config, "method": "paste", "run": None, "out": out,
                    "seed": 0} | changes))


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> type[Planted]:
    """The planted task model in the place of the segmenter."""

    class Fresh(Planted):
        seen: ClassVar[list[tuple[frozenset[str], frozenset[str], int]]] = []

    monkeypatch.setitem(trials.TRIALS, "lesion", Fresh)
    return Fresh


@pytest.mark.parametrize(("slope", "wanted"), [(0.10, 2.0), (-0.10, 1.0)])
def test_synthetic_cases_are_taken_where_they_help_and_left_where_they_harm(
        three: Path, tmp_path: Path, planted: type[Planted], slope: float, wanted: float) -> None:
    planted.slope = slope
    choice = choose.choose(_work(three, tmp_path))
    assert choice.factor == wanted and choice.measure == "Dice" and choice.method == "paste"
    assert [row.factor for row in choice.figures] == list(choose.FACTORS) and {row.n for row in choice.figures} == {3}
    by = {row.factor: row.mean for row in choice.figures}
    assert by[2.0] - by[1.0] == pytest.approx(slope, abs=0.015)
    assert ("no synthetic cases" in choice.why) == (wanted == 1)


def test_a_fold_sees_its_own_training_patients_alone(three: Path, tmp_path: Path, planted: type[Planted]) -> None:
    choose.choose(_work(three, tmp_path))
    everyone = {case.patient for case in open_dataset(three).cases}
    assert {patient for _, held_out, _ in planted.seen for patient in held_out} == everyone
    for training, held_out, _ in planted.seen:
        assert not {name.split("syn")[0] for name in training} & held_out
    records = [json.loads(path.read_text()) for path in tmp_path.glob("fold-*/**/*.provenance.json")]
    assert records
    for fold in tmp_path.glob("fold-*"):
        made = [json.loads(path.read_text()) for path in fold.rglob("*.provenance.json")]
        used = {name for record in made for name in record["parents"]} | {
            lesion["donor"] for record in made for lesion in record["lesions"]}
        assert any(not used & held_out for _, held_out, _ in planted.seen)
        assert len(used) < len(everyone)
    # The same folds and seeds for every factor, and a smaller factor's cases are among a larger one's.
    for seed in {seed for _, _, seed in planted.seen}:
        sets = sorted((training for training, _, other in planted.seen if other == seed), key=len)
        assert len(sets) == len(choose.FACTORS) and all(a <= b for a, b in pairwise(sets))


def test_the_fewer_patients_the_more_seeds(three: Path, tmp_path: Path, planted: type[Planted]) -> None:
    two = open_dataset(three)
    choose.choose(_work(three, tmp_path, dataset=two.only(two.cases[:2])))
    starts = {held_out: {seed for _, other, seed in planted.seen if other == held_out}
              for _, held_out, _ in planted.seen}
    assert [len(seeds) for seeds in starts.values()] == [4, 4]


def test_the_rule_takes_the_smallest_within_one_paired_error() -> None:
    base = np.array([0.3, 0.5, 0.7, 0.9])

    def scores(**gains: Sequence[float]) -> dict[float, np.ndarray]:
        return {float(name[1:].replace("_", ".")): np.stack([base + gain, base + np.array(gain) + 0.002])
                for name, gain in gains.items()}

    # All patients gain alike: how far they lie apart does not hide it.
    assert choose.pick(scores(f1=[0] * 4, f2=[.05, .06, .04, .05]))[1] == 2
    # One patient gains, another loses: the mean lies within an error.
    assert choose.pick(scores(f1=[0] * 4, f2=[.3, -.2, .02, -.05]))[1] == 1
    # The best is 3, and 1.5 is as good.
    figures, factor = choose.pick(scores(f1=[0] * 4, f1_5=[.06, .05, .07, .06], f3=[.06, .07, .06, .06]))
    assert factor == 1.5 and figures[-1].behind == 0 and figures[0].behind > figures[0].behind_error
    # Nothing differs: nothing is added.
    assert choose.pick(scores(f1=[0] * 4, f1_5=[0] * 4, f2=[0] * 4))[1] == 1


def test_two_patients_that_agree_by_chance_do_not_outweigh_the_seeds() -> None:
    none = np.array([[0.50, 0.60], [0.60, 0.50]])
    twice = np.array([[0.62, 0.50], [0.50, 0.62]])  # 0.56 in both patients against 0.55, 0.1 between the seeds
    assert choose.pick({1.0: none, 2.0: twice})[1] == 1


def test_of_two_patients_the_spread_is_no_error() -> None:
    """One gains much and one little, alike by every seed: the seeds alone say how sure that is."""
    none, gained, noise = np.full((2, 2), 0.5), np.array([[0.64, 0.51]] * 2), np.array([[0.01], [-0.01]])
    assert choose.pick({1.0: none, 2.0: gained + noise})[1] == 2
    assert choose.pick({1.0: none, 2.0: gained + 20 * noise})[1] == 1
    third = np.array([[0.45]] * 2)
    three = {1.0: np.full((2, 3), 0.5), 2.0: np.hstack([gained, third]) + noise}
    assert choose.pick(three)[1] == 1


def test_one_patient_gets_the_default_and_nothing_is_claimed(three: Path, tmp_path: Path,
                                                             planted: type[Planted]) -> None:
    root = tmp_path / "one"
    shutil.copytree(three, root)
    for path in [*root.glob("imagesTr/*"), *root.glob("labelsTr/*")]:
        if "phantom_0000" not in path.name:
            path.unlink()
    made = medgan.augment(root, factor="auto", method="paste", modality="mr", out=tmp_path / "out",
                          settings={"augment.removed": 0.0})
    assert made.factor == choose.UNMEASURED and made.choice is not None and not made.choice.figures
    assert "was not measured" in made.choice.why and any("one training patient" in text for text in made.warnings)
    card = (tmp_path / "out" / "DATA_CARD.md").read_text()
    assert "was not measured" in card and "nothing is claimed" in card and not planted.seen


def _hashes(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_figures_are_written_and_a_stopped_choice_ends_with_the_same_bytes(
        three: Path, tmp_path: Path, planted: type[Planted]) -> None:
    planted.slope = 0.1
    made = medgan.augment(three, factor="auto", method="paste", modality="mr", out=tmp_path / "whole")
    assert made.factor == 2 and len(made.synthetic) + len(made.skipped) == 3
    written = json.loads((tmp_path / "whole" / choose.CHOSEN).read_text())["choice"]
    assert written["factor"] == 2 and [row["factor"] for row in written["figures"]] == list(choose.FACTORS)
    assert made.choice is not None and made.choice.as_json() == written | {"figures": tuple(written["figures"])}
    card = (tmp_path / "whole" / "DATA_CARD.md").read_text()
    assert "factor 1: Dice" in card and "factor 3: Dice" in card and "Factor 2 was chosen" in card
    assert not list((tmp_path / "whole").glob(".medgan-partial*"))

    def stop(progress: Progress) -> None:
        if progress.stage == "choosing the factor" and progress.done == 5:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="begins it again"):
        medgan.augment(three, factor="auto", method="paste", modality="mr", out=tmp_path / "broken", progress=stop)
    assert not (tmp_path / "broken").exists(), "a choice that was stopped left something behind"
    # A killed one cannot clean up; what it left is no obstacle.
    (tmp_path / "broken" / ".medgan-partial-choice" / "fold-1").mkdir(parents=True)
    medgan.augment(three, factor="auto", method="paste", modality="mr", out=tmp_path / "broken")
    assert _hashes(tmp_path / "broken") == _hashes(tmp_path / "whole")
    # What was chosen is not chosen again; another call is refused.
    planted.seen.clear()
    medgan.augment(three, factor="auto", method="paste", modality="mr", out=tmp_path / "whole")
    assert not planted.seen
    for change in ({"seed": 1}, {"factor": 2.0}, {"method": "procedural"}):
        with pytest.raises(Refused) as refused:
            medgan.augment(three, **({"factor": "auto", "method": "paste", "modality": "mr",  # type: ignore[arg-type]
                                     "out": tmp_path / "whole"} | change))
        assert refused.value.code == "OUT_EXISTS"


def test_drawn_lesions_are_tried_with_a_generator_of_each_folds_own_patients(
        three: Path, tmp_path: Path, planted: type[Planted], tiny: dict[str, object]) -> None:
    config = Config.resolve("mr", "lesion", settings=tiny)
    choice = choose.choose(_work(three, tmp_path, method="gan", config=config))
    assert choice.method == "gan"
    seen = {}
    for fold in sorted(tmp_path.glob("fold-*")):
        run = medgan.load(fold / "run")
        assert run.finished and run.config.training.images == config.training.images * choose.SHORT["lesion"]
        seen[fold.name] = {case.patient for case in open_dataset(fold / "training").cases}
        records = [json.loads(path.read_text()) for path in fold.glob("**/*.provenance.json")]
        assert records and {record["method"] for record in records} == {"gan"}
    held_out = {training: held for training, held, _ in planted.seen}
    assert len(seen) == 3 and {len(patients) for patients in seen.values()} == {2}
    assert all(any(not patients & held for held in held_out.values()) for patients in seen.values())


def test_a_choice_of_none_trains_no_generator_of_all_and_says_so(
        three: Path, tmp_path: Path, planted: type[Planted], tiny: dict[str, object],
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    planted.slope = -0.1
    made = medgan.augment(three, factor="auto", modality="mr", out=tmp_path / "out", settings=tiny)
    assert made.factor == 1 and made.run is None and not made.synthetic and not Path("runs").exists()
    assert made.choice is not None and made.choice.method == "gan" and "no synthetic cases" in made.choice.why
    rows = list(csv.DictReader((tmp_path / "out" / "augmentation.csv").read_text().splitlines()))
    assert {row["origin"] for row in rows} == {"real"} and len(rows) == 3


def test_the_command_says_why(three: Path, tmp_path: Path, planted: type[Planted]) -> None:
    from typer.testing import CliRunner

    from medgan.cli import app

    planted.slope = -0.1
    arguments = ["augment", str(three), "--factor", "auto", "--method", "paste", "--modality", "mr"]
    told = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "text")])
    assert told.exit_code == 0 and "Factor 1 was chosen, no synthetic cases" in told.stdout
    assert "factor 3: Dice" in told.stdout
    told = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "json"), "--json"])
    found = json.loads(told.stdout)
    assert found["factor"] == 1 and found["choice"]["figures"][0]["n"] == 3 and found["warnings"] == []
    with pytest.raises(Refused) as refused:
        CliRunner().invoke(app, ["augment", str(three), "--factor", "some"], catch_exceptions=False)
    assert refused.value.code == "FACTOR_RANGE"


def test_a_refusal_in_the_middle_of_the_choice_leaves_nothing(three: Path, tmp_path: Path, planted: type[Planted],
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise Refused("DIM_UNSUPPORTED", "image", "it cannot be read as a picture", "Give another")

    monkeypatch.setattr(planted, "score", refuse)
    with pytest.raises(Refused):
        medgan.augment(three, factor="auto", method="paste", modality="mr", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_large_volumes_are_tried_on_a_coarser_grid(tmp_path: Path) -> None:
    from medgan.datasets.phantoms import write_phantoms

    large = open_dataset(write_phantoms(tmp_path / "large", "mr", count=1, seed=1, shape=(288, 200, 6)))
    small = coarse(large, tmp_path / "small")
    (before, marked), (after, found) = (each.load(each.cases[0]) for each in (large, small))
    assert max(after.shape[:2]) == EDGE and after.shape[2] == before.shape[2] and found is not None
    assert marked is not None and found.shape == after.shape and found.array.any()
    share = [float((mask.array > 0).mean()) for mask in (marked, found)]
    assert share[1] == pytest.approx(share[0], rel=0.1)
    # A case is called as its files are, as in any nnU-Net folder; whose it is stays.
    assert [case.id for case in open_dataset(small.root).cases] == [case.id for case in small.cases]
    assert [patient_key(case) for case in small.cases] == [patient_key(case) for case in large.cases]
    assert open_dataset(small.root).labels == {0: "background"} | large.labels


def test_the_segmenter_that_decides_reads_lesions_and_scores_each_patient(
        three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "SEGMENTER_STEPS", 2)
    opened = open_dataset(three)
    trial = trials.Segmenting(opened, Config.resolve("mr", "lesion", device="cpu"))
    known = [trial.read(opened, case) for case in opened.cases]
    empty = trials.Labelled(known[1].image, np.zeros_like(known[1].labels))
    assert trial.learnable(known) and not trial.learnable([empty])
    # Two volumes of one patient are one score, and a patient without a lesion none.
    scores = trial.score(known[:1], [("b", known[1]), ("a", empty), ("b", known[2])], seed=0)
    assert len(scores) == 2 and np.isnan(scores[0]) and 0 <= scores[1] <= 1


@pytest.mark.slow
def test_class_data_sets_are_tried_with_generators_of_their_own(xray_classes: Path, tmp_path: Path,
                                                                tiny: dict[str, object],
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trials, "CLASSIFIER_STEPS", 4)
    made = medgan.augment(xray_classes, factor="auto", modality="xray", out=tmp_path / "out",
                          settings=tiny | {"data.crop": 32})
    assert made.choice is not None and made.choice.measure == "AUROC" and made.choice.unit == "folds"
    assert made.choice.method == "gan" and all(0 <= row.mean <= 1 for row in made.choice.figures)
    assert (made.run is None) == (made.factor == 1)


@pytest.mark.slow
def test_on_phantoms_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medgan.datasets.phantoms import write_phantoms

    root = write_phantoms(tmp_path / "set", "mr", count=4, seed=3, shape=(64, 72, 24))
    monkeypatch.setattr(trials, "SEGMENTER_STEPS", 60)
    first = medgan.augment(root, factor="auto", method="paste", modality="mr", out=tmp_path / "out")
    assert first.choice is not None and first.factor in choose.FACTORS
    assert all(0 < row.mean < 1 and row.n == 4 for row in first.choice.figures)
    again = medgan.augment(root, factor="auto", method="paste", modality="mr", out=tmp_path / "again")
    assert _hashes(tmp_path / "out") == _hashes(tmp_path / "again") and again.choice == first.choice
