"""Ids that do not name anyone, for what is written (`data.hash_ids`).

A hash without a secret is no anonymity: who can guess an id, such as a hospital number of seven digits, can hash the
guess and compare. It keeps names and numbers out of sight, stays the same from one call to the next, and lets what
was made of a patient be found again by those who have the ids. A salt would have to lie where it is needed, in the
output that is passed on, and would hide nothing from who has that.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import replace

from medgan.config import Config
from medgan.datasets.cases import Case, Dataset
from medgan.datasets.provenance import Provenance
from medgan.errors import Refused

#: Hexadecimal digits: 48 bits, of which two are the same in a million cases with a chance of 0.2 %.
DIGITS = 12

#: What was hashed already, and DICOM's patients, which are pseudonyms from the start, stay as they are.
_CASE = re.compile(rf"case-[0-9a-f]{{{DIGITS}}}(?:syn\d+)?")
_PATIENT = re.compile(rf"patient-[0-9a-f]{{{DIGITS}}}|p-[0-9a-f]{{10}}|{_CASE.pattern}")
#: How a synthetic case is called after its parent.
_SYNTHETIC = re.compile(r"(.+)(syn\d+)", re.DOTALL)


def hashed_case(case_id: str, *, synthetic: bool = False) -> str:
    """`case-` and the hash of an id; of a synthetic case that of its parent's, with its own number behind it."""
    if _CASE.fullmatch(case_id):
        return case_id
    made = _SYNTHETIC.fullmatch(case_id) if synthetic else None
    if made:
        return f"{hashed_case(made[1])}{made[2]}"
    return f"case-{_digits(case_id)}"


def hashed_patient(patient: str) -> str:
    """`patient-` and the hash of a patient; nothing where none is known."""
    return patient if not patient or _PATIENT.fullmatch(patient) else f"patient-{_digits(patient)}"


def hashed_word(word: str) -> str:
    """Hexadecimal digits alone, for names in which no other character may stand."""
    return _digits(word)


def has_hashed_ids(dataset: Dataset) -> bool:
    """Whether a case of it was made with hashed ids, so that others can only be compared with it by theirs."""
    return any(case.synthetic and _CASE.fullmatch(case.id) for case in dataset.cases)


def with_hashed_ids(dataset: Dataset) -> Dataset:
    """The same data set, of which every case is called by the hash of its id; files stay where they are.

    Raises:
        Refused: `TAB_DUPLICATE_ID` where two ids have one hash.
    """
    if dataset.names:
        return dataset
    cases = tuple(replace(case, id=hashed_case(case.id, synthetic=case.synthetic), patient=hashed_patient(case.patient))
                  for case in dataset.cases)
    names = {new.id: old.id for new, old in zip(cases, dataset.cases, strict=True)}
    if len(names) < len(cases):
        raise Refused("TAB_DUPLICATE_ID", dataset.root, "two of its ids have one hash", "Rename one of the two cases")
    name = hashed_case(dataset.name) if dataset.name in dataset.ids else dataset.name
    return replace(dataset, name=name, cases=cases, names=names)


def as_asked(dataset: Dataset, config: Config) -> Dataset:
    """The data set under the names that the settings ask for (`data.hash_ids`)."""
    return with_hashed_ids(dataset) if config.data.hash_ids else dataset


def rejoined(cases: Iterable[Case]) -> list[Case]:
    """Synthetic cases whose record names the hash of a patient belong to that patient where he is there by name."""
    listed = list(cases)
    known = {hashed_patient(patient): patient for case in listed if not case.synthetic
             if (patient := case.patient or case.id)}
    return [replace(case, patient=known.get(case.patient, case.patient)) if case.synthetic else case
            for case in listed]


def hashed_record(record: Provenance) -> Provenance:
    """The record of a synthetic case with every id in it hashed."""
    lesions = tuple(replace(lesion, donor=None if lesion.donor is None else hashed_case(lesion.donor))
                    for lesion in record.lesions)
    return replace(record, id=hashed_case(record.id, synthetic=True), patient=hashed_patient(record.patient),
                   parents=tuple(hashed_case(parent) for parent in record.parents), lesions=lesions)


def _digits(text: str) -> str:
    # Ids of files may hold bytes that are no text.
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:DIGITS]
