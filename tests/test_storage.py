"""Writing leaves the whole file or nothing, and one folder has one writer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medgan.errors import Refused
from medgan.storage import PARTIAL, atomic_path, locked, remove_partial, write_json, write_text

HOLD = """
import sys
from pathlib import Path
from medgan.storage import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""
TAKE = """
import sys
from pathlib import Path
from medgan.errors import Refused
from medgan.storage import locked
try:
    with locked(Path(sys.argv[1])):
        print("taken")
except Refused as refused:
    print(refused.code)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def test_a_file_appears_under_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "scan.nii.gz"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent and temporary.name.endswith("scan.nii.gz")
        temporary.write_bytes(b"half")
        assert not target.exists()
        temporary.write_bytes(b"whole")
    assert target.read_bytes() == b"whole" and names(target.parent) == ["scan.nii.gz"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_a_failure_leaves_what_was_there(error: type[BaseException], tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")
    with pytest.raises(error), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error("stop")
    assert target.read_text() == "old" and names(tmp_path) == ["a.json"]


def test_a_failure_leaves_nothing_where_nothing_was(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), atomic_path(tmp_path / "a.json"):
        raise ValueError("stop")
    assert names(tmp_path) == []


def test_a_block_that_writes_nothing_is_an_error_and_not_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.json"):
        pass
    assert names(tmp_path) == []


def test_json_is_written_in_order_in_utf8_and_without_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": "größer", "a": [1, None]})
    assert (tmp_path / "a.json").read_bytes() == '{\n  "b": "größer",\n  "a": [\n    1,\n    null\n  ]\n}\n'.encode()
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text())["a"] == [1, None]
    write_text(tmp_path / "a.txt", "x\ny\n")
    assert (tmp_path / "a.txt").read_bytes() == b"x\ny\n"


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / f"{PARTIAL}-123-scan.nii.gz").write_text("half")
    (tmp_path / f"{PARTIAL}-123-series").mkdir()
    (tmp_path / f"{PARTIAL}-123-series" / "000.dcm").write_text("half")
    (tmp_path / "deep" / "scan.nii.gz").write_text("whole")
    remove_partial(tmp_path)
    assert names(tmp_path) == ["deep", "scan.nii.gz"]


def test_a_second_process_is_refused_until_the_first_lets_go(tmp_path: Path) -> None:
    def take() -> str:
        return subprocess.run([sys.executable, "-c", TAKE, str(tmp_path)], capture_output=True, text=True,
                              check=True).stdout.strip()

    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert take() == "OUT_BUSY"
        with pytest.raises(Refused, match="another process"), locked(tmp_path):
            pass
        holder.stdin.write("\n")
        holder.stdin.flush()
        holder.wait()
    assert take() == "taken"


def test_a_lock_is_let_go_when_its_holder_is_killed_or_fails(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        holder.kill()
    with pytest.raises(ValueError, match="stop"), locked(tmp_path):
        raise ValueError("stop")
    with locked(tmp_path):
        assert os.listdir(tmp_path) == [], "a lock leaves no file behind"
