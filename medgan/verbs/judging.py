"""Which cases `evaluate` compares with which, and with which data set's patients it tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medgan.datasets.cards import PLAN
from medgan.datasets.cases import Case, Dataset
from medgan.datasets.splits import patient_key, split_by_patient
from medgan.errors import Refused

#: Part of the patients held out where the real data set has neither a test nor a validation split.
HELD_OUT = 0.25


@dataclass(frozen=True)
class Roles:
    """Which cases are what.

    Args:
        real: The real data set.
        synthetic: The data set the synthetic cases are in.
        other: The data set of the held-out cases.
        train: Real training cases.
        heldout: Real cases of other patients.
        made: Synthetic cases.
        kind: `lesions` where masks are compared, `classes`, or `images` where neither side names any.
        heldout_from: Where the held-out cases are from, in words.
        warnings: What was odd.
    """

    real: Dataset
    synthetic: Dataset
    other: Dataset
    train: tuple[Case, ...]
    heldout: tuple[Case, ...]
    made: tuple[Case, ...]
    kind: str
    heldout_from: str
    warnings: tuple[str, ...]


def roles(real: Dataset, synthetic: Dataset, heldout: Dataset | None, seed: int) -> Roles:
    """Finds out which cases are compared with which, before any image is read.

    Raises:
        Refused: `DATASET_EMPTY` where one side has no case, `LABEL_UNKNOWN` for synthetic classes or labels that the
            real data set does not have, `SPLIT_LEAK` where a held-out patient is among the real ones or was a parent.
    """
    warnings: list[str] = []
    made = tuple(case for case in synthetic.cases if case.synthetic)
    if not made:
        made = _taken_whole(real, synthetic)
        warnings.append(f"Nothing in {synthetic.name} is marked as synthetic: all {len(made)} of its cases were taken "
                        "for synthetic ones.")
    originals = tuple(case for case in real.cases if not case.synthetic)
    if len(originals) < len(real.cases):
        warnings.append(f"{len(real.cases) - len(originals)} synthetic cases in {real.name} were left out.")
    others = tuple(case for case in heldout.cases if not case.synthetic) if heldout is not None else ()
    kind = _kind(real, originals, made, synthetic, warnings)

    originals, made, others = (_usable(cases, kind, warnings) for cases in (originals, made, others))
    _check_labels(kind, real, synthetic, made)
    if heldout is not None:
        _check_labels(kind, real, heldout, others)
        train, test, told = _with_split(originals, "train") or originals, others, f"the data set {heldout.name}"
    else:
        train, test, told = _own_split(real, originals, seed, warnings)
    if not train or not made or not test:
        missing, where = next((name, where.root) for name, cases, where in (
            ("real training", train, real), ("synthetic", made, synthetic), ("held-out real", test, heldout or real))
            if not cases)
        raise Refused("DATASET_EMPTY", where, f"it has no usable {missing} case", "Give cases with their classes, or "
                      "with masks; docs/evaluate.md says what is compared")
    if heldout is not None:
        _check_apart(train, made, test, real, heldout)
    else:
        made = _of_others(made, test, synthetic, warnings)
    return Roles(real, synthetic, heldout or real, train, test, made, kind, told, tuple(warnings))


def _usable(cases: tuple[Case, ...], kind: str, warnings: list[str]) -> tuple[Case, ...]:
    """Those with what is compared, and a warning where that is not all of them."""
    if kind == "images":
        return cases
    lacking = [case.id for case in cases if (case.mask if kind == "lesions" else case.label) is None]
    if lacking:
        warnings.append(f"{len(lacking)} of {len(cases)} cases, {lacking[0]} the first of them, have no "
                        f"{'mask' if kind == 'lesions' else 'class'} and were left out.")
    return tuple(case for case in cases if (case.mask if kind == "lesions" else case.label) is not None)


def _taken_whole(real: Dataset, synthetic: Dataset) -> tuple[Case, ...]:
    """All cases of a data set that marks none as synthetic: what another tool wrote."""
    folder = synthetic.root if synthetic.root.is_dir() else synthetic.root.parent
    if (folder / PLAN).is_file() or synthetic.root.resolve() == real.root.resolve():
        raise Refused("DATASET_EMPTY", synthetic.root, "it holds no synthetic case",
                      "Give what medgan augment or medgan synthesize wrote, or synthetic images of another tool")
    return synthetic.cases


def _with_split(cases: Sequence[Case], split: str) -> tuple[Case, ...]:
    return tuple(case for case in cases if case.split == split)


def _own_split(real: Dataset, cases: tuple[Case, ...], seed: int, warnings: list[str]
               ) -> tuple[tuple[Case, ...], tuple[Case, ...], str]:
    train = _with_split(cases, "train")
    for split, told in (("test", "its own test split"), ("val", "its own validation split")):
        if held := _with_split(cases, split):
            return train, held, told
    patients = len({patient_key(case) for case in train})
    try:
        divided = split_by_patient(train, n_test=max(1, round(HELD_OUT * patients)), seed=seed)
    except Refused as refused:
        raise Refused("DATASET_EMPTY", real.root, f"no patient can be held out ({refused.why})",
                      "Give other patients with --heldout") from None
    warnings.append(f"{real.name} has no test or validation split, and no --heldout was given: "
                    f"{HELD_OUT:.0%} of its patients were held out here. Whatever made the synthetic images may have "
                    "learned from them, so that neither the question whether they help nor the one whether they are "
                    "copies has a clean answer.")
    return _with_split(divided, "train"), _with_split(divided, "test"), "patients held out here"


def _kind(real: Dataset, originals: Sequence[Case], made: Sequence[Case], synthetic: Dataset, warnings: list[str]
          ) -> str:
    if any(case.mask for case in originals) and any(case.mask for case in made):
        return "lesions"
    known = [any(case.label is not None for case in cases) for cases in (originals, made)]
    if all(known):
        return "classes"
    if any(known):
        warnings.append(f"Only {(real if known[0] else synthetic).name} names classes: all images are compared as one "
                        "class.")
    return "images"


def _check_labels(kind: str, real: Dataset, other: Dataset, cases: Sequence[Case]) -> None:
    if kind == "images":
        return
    known = set(real.classes) if kind == "classes" else set(real.labels.values())
    given = {str(case.label) for case in cases} if kind == "classes" else set(other.labels.values())
    if unknown := sorted(given - known):
        raise Refused("LABEL_UNKNOWN", other.root, f"its {'class' if kind == 'classes' else 'mask label'} "
                      f"{unknown[0]!r} is none of {real.name} ({', '.join(sorted(known))})",
                      "Give the same classes the same names in both")


def _check_apart(train: Sequence[Case], made: Sequence[Case], test: Sequence[Case], real: Dataset, heldout: Dataset
                 ) -> None:
    """Refuses held-out patients that are known to be among the others; rows of arrays have no names to go by."""
    tested = {patient_key(case) for case in test if case.row is None}
    for cases, told in ((train, f"in {real.name} too"), (_with_parents(made), "a parent of synthetic cases")):
        if shared := sorted(tested & {patient_key(case) for case in cases}):
            raise Refused("SPLIT_LEAK", heldout.root, f"patient {shared[0]!r} is {told}",
                          "Hold out other patients, or rename files that are of others and only have the same name")


def _with_parents(made: Sequence[Case]) -> tuple[Case, ...]:
    """Those that tell whom they were made from; a file of another tool may have the name of any real one."""
    return tuple(case for case in made if case.synthetic)


def _of_others(made: tuple[Case, ...], test: Sequence[Case], synthetic: Dataset, warnings: list[str]
               ) -> tuple[Case, ...]:
    """Synthetic cases without those that were made from a patient who is held out now."""
    tested = {patient_key(case) for case in test}
    leaked = {case.id for case in _with_parents(made) if patient_key(case) in tested}
    kept = tuple(case for case in made if case.id not in leaked)
    if not kept:
        raise Refused("SPLIT_LEAK", synthetic.root, "all of its synthetic cases were made from patients who are held "
                      "out", "Give other patients with --heldout")
    if leaked:
        warnings.append(f"{len(made) - len(kept)} synthetic cases made from patients who are held out were left out.")
    return kept
