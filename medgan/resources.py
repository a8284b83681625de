"""Finding the files that ship with medgan, in an installed wheel and in a checkout."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from medgan.errors import Refused

Kind = Literal["configs", "pipelines", "data_cards"]

_PACKAGE = Path(__file__).resolve().parent


def resource(kind: Kind, name: str) -> Path:
    """The path of a shipped file, such as `resource("configs", "ct.toml")`.

    In a wheel the folders lie inside the package, in a checkout beside it.

    Raises:
        Refused: `FILE_MISSING` when medgan ships no such file.
    """
    if Path(name).name == name and name not in ("", ".", ".."):
        for folder in (_PACKAGE / kind, _PACKAGE.parent / kind):
            if (folder / name).is_file():
                return folder / name
    there = ", ".join(resources(kind)) or "none"
    raise Refused("FILE_MISSING", f"{kind}/{name}", "medgan ships no such file", f"These are there: {there}")


def resources(kind: Kind) -> tuple[str, ...]:
    """The names of all shipped files of a kind, sorted."""
    for folder in (_PACKAGE / kind, _PACKAGE.parent / kind):
        if folder.is_dir():
            return tuple(sorted(p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith((".", "_"))))
    return ()
