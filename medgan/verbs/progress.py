"""What long work tells of itself; the command line draws it, Python callers may."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """One moment of long work.

    Args:
        stage: What is being done.
        done: Units done.
        total: Units in all, where known.
        unit: What is counted.
        text: Anything worth saying beside the bar.
    """

    stage: str
    done: int
    total: int | None
    unit: str = ""
    text: str = ""


Report = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Reports nothing."""
