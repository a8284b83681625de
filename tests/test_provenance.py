"""The record beside a synthetic case, and the card beside a data set."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import dataset_makers as make
import pytest

from medgan.datasets.cards import data_card
from medgan.datasets.layouts import open_dataset
from medgan.datasets.provenance import Lesion, Provenance, read_if_synthetic
from medgan.errors import Refused

RECORD = Provenance(
    "a_syn0001", ("a", "b"), "a", "enhancing", 7, "lesion-mr", "0123abcd", "gan",
    (Lesion("enhancing", (1.5, -20.25, 33.125), 12.5, 1022, "b"), Lesion("oedema", (0.0, 1.0), 3.0, 9)),
    {"memorised": 0.1, "border": 0.9},
)  # fmt: skip


def test_a_record_says_what_it_is_and_comes_back_equal(tmp_path: Path) -> None:
    RECORD.write(tmp_path / "a.json")
    data = json.loads((tmp_path / "a.json").read_text())
    assert data["synthetic"] is True
    assert "synthetic" in data["notice"] and "not for diagnosis" in data["notice"]
    assert data["lesions"][0] == {"class": "enhancing", "centre_mm": [1.5, -20.25, 33.125], "size_mm": 12.5,
                                  "voxels": 1022, "donor": "b"}
    assert data["model"] == {"name": "lesion-mr", "hash": "0123abcd"} and data["parents"] == ["a", "b"]
    assert data["medgan"] and data["seed"] == 7
    assert Provenance.read(tmp_path / "a.json") == RECORD


def test_the_same_record_gives_the_same_bytes_whatever_the_order_of_its_gates(tmp_path: Path) -> None:
    RECORD.write(tmp_path / "a.json")
    replace(RECORD, gates={"border": 0.9, "memorised": 0.1}).write(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_another_json_is_no_record(tmp_path: Path) -> None:
    assert read_if_synthetic(tmp_path / "missing.json") is None
    assert read_if_synthetic(make.text(tmp_path / "bids.json", '{"EchoTime": 0.1}')) is None
    for content in ('{"synthetic": true}', '{"EchoTime": 0.1}'):
        with pytest.raises(Refused, match="TAB_BAD_JSON"):
            Provenance.read(make.text(tmp_path / "x.json", content))


def test_a_card_counts_cases_and_names_origin_licence_model_and_limits(tmp_path: Path) -> None:
    dataset = open_dataset(make.manifest(tmp_path / "d"))
    made = replace(dataset.cases[0], id="a_syn0001", synthetic=True)
    card = data_card(dataset, [*dataset.cases, made], method="gan", model="lesion-mr", model_hash="0123", seed=4)
    assert "| ill | 1 | 1 | 0 | 0 | 1 | 0 |" in card and "| well | 1 | 0 | 0 | 0 | 0 | 0 |" in card
    assert "1 of 4 cases are synthetic" in card and "lesion-mr (weights 0123)" in card and "Seed: 4" in card
    assert "Patients: 3." in card and "not stated" in card and "not for diagnosis" not in card.splitlines()[0]
    assert "$" not in card
    stated = data_card(open_dataset(make.nnunet(tmp_path / "n")), ())
    assert "Licence: CC0" in stated and "Reference: made in code" in stated and "every case is an original" in stated


def test_text_of_strangers_cannot_break_out_of_a_card(tmp_path: Path) -> None:
    dataset = open_dataset(make.nnunet(tmp_path / "n"))
    hostile = replace(dataset, name="x\n# Approved for diagnosis", info={"licence": "<script>alert(1)</script>\n\n# y"})
    card = data_card(hostile, dataset.cases)
    assert "<script>" not in card and "\n# Approved" not in card and "\n# y" not in card
