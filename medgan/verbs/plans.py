"""Output folders that a killed call goes on with: what they were asked to be, and what they may hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medgan.errors import Refused
from medgan.storage import is_unused, write_json


def refuse_inside(target: Path, root: Path) -> None:
    """Refuses an output that would lie in the data set itself.

    Raises:
        Refused: `OUT_EXISTS`.
    """
    inside, outer = target.resolve(), root.resolve()
    if inside == outer or outer in inside.parents:
        raise Refused("OUT_EXISTS", target, "the output would lie in the data set itself", "Choose another output")


def refuse_other_content(target: Path, ours: Sequence[str], verb: str) -> None:
    """Refuses an output that holds something and none of the files by which `verb` knows its own.

    Args:
        target: The output folder.
        ours: Names of files or folders that only `verb` writes.
        verb: Its name, for the message.

    Raises:
        Refused: `OUT_EXISTS`.
    """
    if not is_unused(target) and not (target.is_dir() and any((target / name).exists() for name in ours)):
        raise Refused("OUT_EXISTS", target, f"it exists and holds something that medgan {verb} did not write",
                      "Choose another output, or empty it")


def same_plan(file: Path, plan: Mapping[str, Any]) -> bool:
    """Whether an earlier call began with this plan; where there was none it is written.

    Args:
        file: Where the plan lies, in the output folder.
        plan: Plain values; a mapping in it is compared entry by entry, so that what differs can be named.

    Raises:
        Refused: `OUT_EXISTS` where the folder was begun with another plan, naming what differs.
    """
    if not file.is_file():
        write_json(file, plan)
        return False
    try:
        before = _entries(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, AttributeError):
        before = {}
    now = _entries(json.loads(json.dumps(plan)))
    differing = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if differing:
        raise Refused("OUT_EXISTS", file.parent, f"it was begun with another {', '.join(differing)}",
                      "Choose another output, or call it with the same arguments")
    return True


def _entries(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The plan with its inner mappings opened: `{"settings": {"augment": {"seen": 0}}}` has `augment.seen`."""
    found: dict[str, Any] = {}
    for key, value in plan.items():
        found |= _dotted(value) if isinstance(value, dict) else {key: value}
    return found


def _dotted(values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= {f"{key}.{name}": inner for name, inner in _dotted(value).items()}
        else:
            found[key] = value
    return found
