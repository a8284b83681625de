"""The command in a process of its own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

#: What every refusal looks like: `error[CODE] path: why. fix.`
REFUSAL = re.compile(r"error\[([A-Z0-9_]+)\] (?P<where>[^\n]+?): (?P<why>[^\n]+)\. (?P<fix>[A-Z0-9][^\n]+)\.\n\Z")


def sets(settings: dict[str, Any]) -> list[str]:
    return [text for key, value in settings.items() for text in ("--set", f"{key}={json.dumps(value)}")]


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
