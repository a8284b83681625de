"""Markdown tables, and estimates with their intervals as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def estimate(values: Mapping[str, Any]) -> str:
    """Mean (standard deviation over seeds) [interval]."""
    deviation = "" if values["seed_sd"] is None else f" ({values['seed_sd']:.3f})"
    return f"{values['mean']:.3f}{deviation} [{values['low']:.3f}, {values['high']:.3f}]"


def signed(values: Mapping[str, Any]) -> str:
    """A difference with its interval."""
    return f"{values['mean']:+.3f} [{values['low']:+.3f}, {values['high']:+.3f}]"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table whose first row is its head."""
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return [head, "|" + "---|" * len(rows[0]), *body]
