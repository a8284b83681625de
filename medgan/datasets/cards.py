"""The data card that is written beside every data set medgan makes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from string import Template

from medgan.datasets.cases import Case, Dataset
from medgan.datasets.provenance import Provenance
from medgan.datasets.splits import SPLITS, patient_key
from medgan.errors import CODES
from medgan.resources import resource

#: What an augmented data set was asked to be, written before its first case, and the card, after the last one.
PLAN, CARD = "medgan-augment.json", "DATA_CARD.md"
#: Keys under which descriptions of data sets name their licence and where they come from.
_LICENCE_KEYS = ("licence", "license", "License", "Licence")
_REFERENCE_KEYS = ("reference", "ReferencesAndLinks", "DatasetDOI", "description")

_LIMITS = (
    "Research only: nothing here is for diagnosis.",
    "A synthetic case with a parent shows that parent's anatomy, and one without may be close to an image that its "
    "generator learned from: it is not anonymous because it is synthetic, and what holds for sharing the originals "
    "holds for it.",
    "Synthetic cases follow the originals' terms of use, and add no patients, scanners or diseases the originals lack.",
    "Whether they help must be measured on real patients that were held out.",
)


def data_card(
    dataset: Dataset,
    cases: Sequence[Case],
    *,
    method: str = "",
    model: str = "",
    model_hash: str = "",
    seed: int | None = None,
    remarks: Sequence[str] = (),
) -> str:
    """A Markdown data card: what it is, origin and licence, counts, what is synthetic and how, and its limits.

    Args:
        dataset: The data set the originals are from, with its own description in `info`.
        cases: All cases the card is for, synthetic ones among them.
        method: How the synthetic cases were made.
        model: Name of the model that made them.
        model_hash: Hash of its weights.
        seed: The seed.
        remarks: Further limits to state.
    """
    synthetic = [case for case in cases if case.synthetic]
    kind = f"{dataset.modality.upper()}, " if dataset.modality else ""
    what = [
        f"A data set in the layout `{dataset.layout}`: {kind}channels {', '.join(dataset.channels)}.",
        f"Mask labels: {', '.join(f'{value} {name}' for value, name in dataset.labels.items())}." if dataset.labels
        else "It has no masks.",
        *([f"Classes: {', '.join(dataset.classes)}."] if dataset.classes else []),
    ]
    return Template(resource("data_cards", "TEMPLATE.md").read_text(encoding="utf-8")).substitute(
        name=_line(dataset.name),
        what=" ".join(map(_line, what)),
        licence=_first(dataset, _LICENCE_KEYS) or "not stated by the data set; ask its owners before passing it on",
        reference=_first(dataset, _REFERENCE_KEYS) or "not stated by the data set",
        counts=_counts(cases),
        patients=len({patient_key(case) for case in cases if not case.synthetic}),
        synthetic=_synthetic(synthetic, len(cases), method, model, model_hash, seed),
        limits="\n".join(f"- {_line(limit)}" for limit in (*_LIMITS, *remarks)),
    )


def ids_remark(dataset: Dataset) -> tuple[str, ...]:
    """What a card says of the ids that are in names and records."""
    if dataset.names:
        return ("Ids are hashed in what medgan writes: names of synthetic files, records and tables. Whoever can guess "
                "an id can check the guess. Files copied from the originals keep their names and all that is in them.",)
    return ("Ids of cases and patients are kept: names of synthetic files, records and tables show them. "
            "data.hash_ids=true hashes them.",)


def notes_remarks(records: Sequence[Provenance]) -> list[str]:
    """What was odd about parents and holds for what was made of them, a line for each code."""
    counts = Counter(code for record in records for code in record.parent_notes)
    return [f"{count} of {len(records)} synthetic cases: of the real case behind it was noted {code} ({CODES[code]})."
            for code, count in sorted(counts.items()) if code in CODES]


def _counts(cases: Sequence[Case]) -> str:
    """A table with a row for each class, or one for all, and the splits as columns."""
    table = Counter((case.label or "all", case.split, case.synthetic) for case in cases)
    rows = ["| | " + " | ".join(f"{split} real | {split} synthetic" for split in SPLITS) + " |", "|---" * 7 + "|"]
    for label in sorted({case.label or "all" for case in cases}):
        numbers = " | ".join(str(table[label, split, made]) for split in SPLITS for made in (False, True))
        rows.append(f"| {_line(label)} | {numbers} |")
    return "\n".join(rows)


def _synthetic(
    synthetic: Sequence[Case], total: int, method: str, model: str, model_hash: str, seed: int | None
) -> str:
    if not synthetic:
        return "None: every case is an original."
    made = [f"{len(synthetic)} of {total} cases are synthetic, made by medgan from training cases only."]
    if method:
        made.append(f"Method: {_line(method)}.")
    if model:
        made.append(f"Model: {_line(model)}" + (f" (weights {_line(model_hash)})." if model_hash else "."))
    if seed is not None:
        made.append(f"Seed: {seed}.")
    made.append("Beside each lies a JSON record of its parents, seed, model and lesions.")
    return " ".join(made)


def _first(dataset: Dataset, keys: Sequence[str]) -> str:
    """The first of these entries of the data set's description, as one line."""
    for key in keys:
        value = dataset.info.get(key)
        if isinstance(value, list):
            value = "; ".join(map(str, value))
        if value:
            return _line(str(value))
    return ""


def _line(text: str) -> str:
    """Text from a stranger's file as one line of Markdown that cannot break out of its place."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")[:500]
