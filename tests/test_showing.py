"""What `augment` shows and says of its cases: only new lesions count as made, and each case names its maker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import medgan
from medgan.datasets.layouts import LAYOUTS, open_dataset
from medgan.datasets.provenance import Provenance
from medgan.errors import Interrupted
from medgan.lesions import controls
from medgan.lesions.placement import Ground
from medgan.lesions.seer import Seer
from medgan.metrics import rims
from medgan.reports import makers

#: Everything passes, nothing is removed, one lesion a case: beside it stay the parent's own.
PASTE = {"augment.removed": 0, "augment.seen": 0, "augment.visibility": -1e9, "augment.sigmas": 1e9,
         "augment.lesions_per_case": [1, 1]}


def test_lesions_that_were_there_are_not_shown_or_probed_as_made(mr_set: Path, tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    sheet, probe = makers.makers_sheet, rims.rim_probe
    monkeypatch.setattr(makers, "makers_sheet", lambda rows: seen.update(rows=rows) or sheet(rows))
    monkeypatch.setattr(rims, "rim_probe", lambda real, made, **how: seen.update(made=made) or probe(real, made, **how))
    # New lesions come out too small to be counted as lesions when the set is read again.
    monkeypatch.setattr(Ground, "site", _tiny(Ground.site))
    made = medgan.augment(mr_set, factor=2, out=tmp_path / "out", method="paste", modality="mr", settings=PASTE)
    assert made.synthetic and seen["rows"]["real lesions"]
    assert not any(views for name, views in seen["rows"].items() if name != "real lesions")
    assert seen["made"] == []


def _tiny(site: Any) -> Any:
    def cut(*args: Any, **kwargs: Any) -> Any:
        found = site(*args, **kwargs)
        if found is None:
            return None
        labels = np.zeros_like(found.labels)
        x, y, z = np.argwhere(found.labels > 0)[0]
        labels[x, y, z] = found.labels[x, y, z]
        return replace(found, labels=labels)

    return cut


def test_controls_are_filled_by_the_maker_of_the_lesions(mr_set: Path, tmp_path: Path, tiny: dict[str, object],
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    rows: dict[str, Any] = {}
    fillers: list[str] = []
    sheet, add = makers.makers_sheet, controls.add_controls
    monkeypatch.setattr(makers, "makers_sheet", lambda given: rows.update(given) or sheet(given))
    monkeypatch.setattr(controls, "add_controls", lambda made, ground, filler, seed, count:
                        fillers.append(filler.name) or add(made, ground, filler, seed, count))
    run = medgan.train(mr_set, out=tmp_path / "run", modality="mr", settings=tiny)
    for method, filler in (("gan", "gan"), ("paste", "tissue")):
        fillers.clear()
        rows.clear()
        made = medgan.augment(mr_set, factor=2, out=tmp_path / method, method=method, balance=True, modality="mr",
                              model=run if method == "gan" else None, settings=PASTE if method == "paste" else {})
        layout, cases = LAYOUTS["nnunet"], {case.id: case for case in open_dataset(made.out).cases}
        assert {Provenance.read(layout.sidecar(cases[name])).method for name in made.synthetic} == {method}
        assert fillers == [filler] * len(made.synthetic) and set(rows) == {"real lesions", f"synthetic ({method})"}
        assert f"Method: {method}." in (made.out / "DATA_CARD.md").read_text()


def test_the_gates_network_outlives_a_stop(mr_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []
    train = Seer.train
    monkeypatch.setattr(Seer, "train", lambda *args, **how: trained.append(1) or train(*args, **how))
    asked: dict[str, Any] = {"factor": 2, "out": tmp_path / "out", "method": "paste", "modality": "mr",
                             "settings": PASTE | {"augment.seen": 0.3}}

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped, pytest.raises(Interrupted):
        stopped.setattr("medgan.verbs.augment.made", stop)
        medgan.augment(mr_set, **asked)
    medgan.augment(mr_set, **asked)
    assert len(trained) == 1
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
