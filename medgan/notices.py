"""Telling what was odd about inputs that were taken all the same: every verb says it, once.

Notes go to the logger `medgan` as warnings; without any logging set up, Python prints those to stderr. A training loop
reads a case many times, so each note is told once a process.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextvars import ContextVar

from medgan.errors import CODES, Note

#: Of one code so many notes are told; `medgan inspect` lists them all.
MOST_OF_A_CODE = 5

_LOG = logging.getLogger("medgan")
_told: set[Note] = set()
_counts: Counter[str] = Counter()
_quiet: ContextVar[bool] = ContextVar("medgan_quiet", default=False)


def tell(notes: Iterable[Note]) -> None:
    """Logs each note that was not told before in this process, up to a number of each code."""
    if _quiet.get():
        return
    for note in notes:
        if note in _told or _counts[note.code] > MOST_OF_A_CODE:
            continue
        _counts[note.code] += 1
        if _counts[note.code] > MOST_OF_A_CODE:
            _LOG.warning("warning[%s] %s, in further inputs too; medgan inspect lists them all", note.code,
                         CODES[note.code])
            continue
        _told.add(note)
        _LOG.warning("%s", note)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing is told inside: for whoever shows the notes himself."""
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


def forget() -> None:
    """As in a new process, everything is told again."""
    _told.clear()
    _counts.clear()
