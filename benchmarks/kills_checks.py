"""What a killed command has left, and what is wrong with it: the checks of `kills.py`."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: What half-written files and folders bear at the start of their names.
MARK = ".medgan-partial"
#: Figures of a training log that tell of speed.
SPEEDS = ("images_per_second", "waiting")
#: A run's files that change while it goes on.
LOG, STATE = "log.jsonl", "state/state.safetensors"


def final_files(out: Path) -> dict[str, Path]:
    """Path below `out` -> file, of all files that bear no mark, nor lie in a folder that does."""
    found = {path.relative_to(out): path for path in out.rglob("*") if path.is_file()} if out.is_dir() else {}
    return {str(name): path for name, path in sorted(found.items())
            if not any(part.startswith(MARK) for part in name.parts)}


def leftovers(out: Path) -> list[Path]:
    """What bears the mark of being written."""
    return sorted(out.rglob(f"{MARK}-*")) if out.is_dir() else []


def digest(path: Path) -> str:
    """A hash of a file's bytes; of a log without its figures of speed."""
    data = path.read_bytes()
    if path.name == LOG:
        data = json.dumps(log_lines(path)).encode()
    return hashlib.sha256(data).hexdigest()


def log_lines(path: Path) -> list[dict[str, Any]]:
    """A training log without its figures of speed."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key not in SPEEDS} for line in lines]


def broken(path: Path) -> str:
    """Why a file is not whole, or an empty string."""
    try:
        _read_whole(path)
    except Exception as error:  # whatever a reader says of a half file
        return f"{type(error).__name__}: {error}"
    return ""


def _read_whole(path: Path) -> None:
    name = path.name
    if name.endswith((".nii", ".nii.gz")):
        import nibabel
        import numpy as np

        np.asarray(nibabel.load(path).dataobj)
    elif name.endswith(".safetensors"):
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a dict)
                file.get_tensor(key)
    elif name.endswith(".json"):
        json.loads(path.read_text(encoding="utf-8"))
    elif name.endswith(".jsonl"):
        log_lines(path)
        if path.stat().st_size:  # a log begins as an empty file, and has whole lines from then on
            _whole_lines(path)
    elif name.endswith(".png"):
        from PIL import Image

        with Image.open(path) as picture:
            picture.load()
    elif name.endswith(".csv"):
        _whole_lines(path)
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
        if len({len(row) for row in rows}) != 1:
            raise ValueError("rows of different lengths")
    else:
        _whole_lines(path)


def _whole_lines(path: Path) -> None:
    if not path.read_bytes().endswith(b"\n"):
        raise ValueError("the last line has no end")


def images_seen(out: Path) -> int:
    """How far the saved state of a run has come; 0 where there is none."""
    from safetensors import safe_open

    if not (out / STATE).is_file():
        return 0
    with safe_open(out / STATE, framework="pt") as file:
        return int(json.loads((file.metadata() or {})["numbers"])["images"])


@dataclass(frozen=True)
class Left:
    """What was found under final names after a kill."""

    files: frozenset[str]
    images: int
    lines: tuple[dict[str, Any], ...]


def look(out: Path, reference: dict[str, str], lines: Sequence[dict[str, Any]], before: Left | None
         ) -> tuple[Left, list[str]]:
    """What is there after a kill, and what is wrong with it.

    Args:
        out: The output of the killed command.
        reference: Digest of each file of the command that nobody killed.
        lines: Lines of its log, where it has one.
        before: What was found after the kill before.
    """
    files, wrong = final_files(out), []
    for name, path in files.items():
        if why := broken(path):
            wrong.append(f"{name} is not whole: {why}")
        elif name not in reference:
            wrong.append(f"{name} is no file of the reference")
        elif name not in (LOG, STATE) and digest(path) != reference[name]:
            wrong.append(f"{name} has other bytes than in the reference")
    if wrong:
        return Left(frozenset(files), 0, ()), wrong
    now = Left(frozenset(files), images_seen(out), tuple(log_lines(files[LOG])) if LOG in files else ())
    wrong += [f"the log has a line that the reference has not: {line}" for line in now.lines if line not in lines]
    if len({line["images"] for line in now.lines}) < len(now.lines):
        wrong.append("the log has a line twice")
    kept = [line for line in lines if 0 < line["images"] <= now.images]
    wrong += [f"the log has lost the line of {line['images']} images" for line in kept if line not in now.lines]
    if before is not None:
        wrong += [f"{name} was there before, and is gone" for name in sorted(before.files - now.files)]
        if now.images < before.images:
            wrong.append(f"the state went back from {before.images} to {now.images} images")
    return now, wrong


def compare(out: Path, reference: dict[str, str]) -> list[str]:
    """What differs between the end of a killed command and the reference."""
    files = final_files(out)
    wrong = [f"at the end {name} is missing" for name in reference if name not in files]
    wrong += [f"at the end there is {name}, which the reference has not" for name in files if name not in reference]
    wrong += [f"at the end {name} has other bytes" for name, path in files.items()
              if name in reference and digest(path) != reference[name]]
    return wrong + [f"at the end {path.relative_to(out)} is left over" for path in leftovers(out)]
