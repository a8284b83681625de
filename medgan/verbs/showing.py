"""What `augment` shows and says of the cases it made: pictures to look at, and whether their rims betray them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from medgan.datasets.cases import Case
from medgan.datasets.provenance import Provenance
from medgan.verbs.pool import Work

if TYPE_CHECKING:
    from medgan.lesions.scans import Scan
    from medgan.reports.makers import Shown

#: Before, mask and after of some new lesions; and real lesions beside made ones at one scale.
PICTURE, SHEET = "examples.png", "makers.png"
#: Cases that each picture is made from, and as many real ones.
PICTURED = 6


def show(work: Work, planned: Sequence[tuple[Case, Case]], placed: Sequence[Case], records: Sequence[Provenance]
         ) -> list[str]:
    """Draws the pictures into the output, and says what the rim probe found.

    Args:
        work: What was asked for.
        planned: (parent, new case) for every synthetic case.
        placed: The synthetic cases that were made, as they lie in the output.
        records: Theirs, in the same order.

    Returns:
        Remarks for the data card.
    """
    # Where images lie side by side in the root, a picture there would be taken for one of them.
    if work.config.task != "lesion" or not records or work.dataset.layout == "images":
        return []
    from medgan.lesions.scans import open_scan
    from medgan.metrics.rims import rim_probe, rims
    from medgan.reports.examples import lesion_examples
    from medgan.reports.makers import makers_sheet, shown
    from medgan.reports.sheets import save

    parents = {new.id: parent for parent, new in planned}
    made_row = f"synthetic ({work.method})"
    rows: dict[str, list[Shown]] = {"real lesions": [], made_row: []}
    real_sections = []
    known = [case for case in work.dataset.split("train") if case.mask is not None and not case.synthetic]
    having = 0
    for case in known:
        scan = open_scan(work.dataset, case, work.config)
        having += bool(views := shown(scan))
        rows["real lesions"] += views
        real_sections += rims(scan)
        if having == PICTURED:
            break
    examples, sections = [], []
    for case, record in list(zip(placed, records, strict=True))[:PICTURED]:
        scan, parent = (open_scan(work.dataset, each, work.config) for each in (case, parents[case.id]))
        mask = replace(scan.volume, array=scan.labels.reshape(1, *scan.volume.shape))
        examples.append((parent.volume, scan.volume, mask, record.lesions))
        new = _new_alone(scan, parent, record)
        rows[made_row] += shown(new)
        sections += rims(new, kind="made")
    save(lesion_examples(examples, work.config.intensity), work.out / PICTURE)
    if any(rows.values()):
        save(makers_sheet(rows), work.out / SHEET)
    return [f"Rims of real lesions against made ones: {rim_probe(real_sections, sections, seed=work.seed)}"]


def _new_alone(scan: Scan, parent: Scan, record: Provenance) -> Scan:
    """A synthetic case whose labels are its new lesions alone: they lie off those that it has from its parent."""
    if record.gates.get("removed", 0) > 0:
        return scan
    return replace(scan, labels=np.where(parent.labels > 0, 0, scan.labels).astype(scan.labels.dtype))
