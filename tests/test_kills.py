"""What is killed at any moment loses nothing that was finished; and the checks that say so notice what they must."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from safetensors.numpy import save_file

from medgan.storage import PARTIAL, append_line, atomic_folder, claimed, remove_partial, remove_whole, write_json

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "kills.py"


@pytest.fixture(scope="module")
def kills() -> Any:
    """The script that kills."""
    if not SCRIPT.is_file():
        pytest.skip("no benchmarks beside the tests")
    sys.path.insert(0, str(SCRIPT.parent))
    yield importlib.import_module("kills")
    sys.path.remove(str(SCRIPT.parent))


@pytest.fixture(scope="module")
def checks(kills: ModuleType) -> ModuleType:
    """What looks at what is left."""
    return importlib.import_module("kills_checks")


def write_some(out: Path) -> None:
    """Writes in each of the ways that there are, and goes on where an earlier call was killed."""
    with claimed(out):
        remove_partial(out)
        write_json(out / "plan.json", {"seed": 0})
        for number in range(2):
            if (out / f"series-{number}").is_dir() and not (out / f"series-{number}.json").exists():
                remove_whole(out / f"series-{number}")
            if not (out / f"series-{number}").exists():
                with atomic_folder(out / f"series-{number}") as folder:
                    write_json(folder / "a.json", number)
                    write_json(folder / "b.json", number)
            write_json(out / f"series-{number}.json", {"series": number})
        if not (out / "log.jsonl").exists() or not (out / "log.jsonl").stat().st_size:
            append_line(out / "log.jsonl", '{"images": 1}')


def watched(kills: ModuleType, plan: Any, out: Path) -> None:
    kills._watched(plan)
    write_some(out)


def forked(work: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_writing_that_is_killed_before_or_after_each_of_its_calls_is_whole_and_goes_on(
        kills: ModuleType, checks: ModuleType, tmp_path: Path) -> None:
    write_some(tmp_path / "whole")
    digests = {name: checks.digest(path) for name, path in checks.final_files(tmp_path / "whole").items()}
    lines = checks.log_lines(tmp_path / "whole" / "log.jsonl")
    assert len(digests) == 8
    killed = 0
    for call in range(200):
        for before_it in (True, False):
            out = tmp_path / "out"
            # As a kill between a series and its record leaves it: the series is removed and written anew.
            shutil.copytree(tmp_path / "whole" / "series-0", out / "series-0")
            ended = forked(partial(watched, kills, kills.Plan(call=call, before_it=before_it), out))
            assert ended in (0, -signal.SIGKILL)
            _, wrong = checks.look(out, digests, lines, None)
            assert wrong == [], f"killed at call {call}"
            for series in out.glob("series-?"):
                assert len(list(series.iterdir())) == 2, f"killed at call {call}, half a series has its final name"
            write_some(out)
            assert checks.compare(out, digests) == []
            shutil.rmtree(out)
            killed += ended != 0
        if ended == 0:
            break
    assert killed > 40, "next to nothing was killed"


def spoil(out: Path, name: str, data: bytes | None) -> None:
    if data is None:
        (out / name).unlink()
    else:
        (out / name).write_bytes(data)


@pytest.mark.parametrize(("name", "data", "told"), [
    ("plan.json", b'{"seed"', "is not whole"),
    ("plan.json", b'{"seed": 1}\n', "has other bytes"),
    ("table.csv", b"id,origin\na,re", "is not whole"),
    ("scan.nii.gz", b"\x1f\x8b\x08half", "is not whole"),
    ("w.safetensors", b"\x08\0\0\0\0\0\0\0{}", "is not whole"),
    ("sheet.png", b"\x89PNG\r\n\x1a\nhalf", "is not whole"),
    ("more.json", b"{}", "no file of the reference"),
    ("plan.json", None, "is gone"),
    ("log.jsonl", b'{"images": 8, "loss": 1}\n{"images": 8, "loss": 1}\n', "a line twice"),
    ("log.jsonl", b'{"images": 8, "loss": 2}\n', "that the reference has not"),
    ("log.jsonl", b'{"images": 8, "lo', "is not whole"),
    ("log.jsonl", b"", "has lost the line"),
])
def test_the_checks_notice_what_a_kill_must_not_leave(checks: ModuleType, tmp_path: Path, name: str, data: bytes | None,
                                                      told: str) -> None:
    (tmp_path / "plan.json").write_text('{"seed": 0}\n')
    (tmp_path / "log.jsonl").write_text('{"images": 8, "loss": 1, "waiting": 0.5}\n')
    (tmp_path / f"{PARTIAL}-1-scan.nii.gz").write_text("half")
    (tmp_path / "state").mkdir()
    save_file({}, tmp_path / checks.STATE, metadata={"numbers": json.dumps({"images": 8})})
    digests = {each: checks.digest(path) for each, path in checks.final_files(tmp_path).items()} | dict.fromkeys(
        ("table.csv", "scan.nii.gz", "w.safetensors", "sheet.png"), "")
    lines = checks.log_lines(tmp_path / "log.jsonl")
    before, wrong = checks.look(tmp_path, digests, lines, None)
    assert wrong == [] and before.images == 8
    spoil(tmp_path, name, data)
    assert told in str(checks.look(tmp_path, digests, lines, before)[1])


def test_the_checks_notice_a_state_that_went_back_and_an_end_that_is_not_the_same(checks: ModuleType, tmp_path: Path
                                                                                  ) -> None:
    (tmp_path / "state").mkdir()
    for images in (8, 4):
        save_file({}, tmp_path / checks.STATE, metadata={"numbers": json.dumps({"images": images})})
        if images == 8:
            digests = {checks.STATE: checks.digest(tmp_path / checks.STATE)}
            before, _ = checks.look(tmp_path, digests, [], None)
    assert "went back from 8 to 4" in str(checks.look(tmp_path, digests, [], before)[1])
    assert checks.look(tmp_path, digests, [{"images": 2}], None)[1] == ["the log has lost the line of 2 images"]
    (tmp_path / f"{PARTIAL}-1-a").mkdir()
    (tmp_path / "more.txt").write_text("x\n")
    assert len(checks.compare(tmp_path, digests | {"gone.txt": ""})) == 4


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["train", "augment"])
def test_a_command_that_is_killed_fifteen_times_loses_nothing(kills: ModuleType, verb: str, tmp_path: Path) -> None:
    # In a process of its own: it forks, which what has computed already must not do.
    options = ("--verb", verb, "--kills", "15", "--real", "1", "--seed", "1", "--out", tmp_path / "kills")
    done = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["kills"] == 15 and found["lost"] == [] and found["ends"] >= 15 // kills.IN_A_ROW
    assert set(found["by"]) == {"real", "time", "call"} and found["leftovers"] > 0
