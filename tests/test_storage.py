"""Writing leaves the whole file or nothing, and one folder has one writer."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medgan import storage
from medgan.errors import Refused
from medgan.storage import (
    PARTIAL,
    append_line,
    atomic_folder,
    atomic_path,
    claimed,
    held,
    is_unused,
    locked,
    os_errors_refused,
    remove_partial,
    remove_whole,
    write_json,
    write_text,
    writing,
)

HOLD = """
import sys
from pathlib import Path
from medgan import storage
with getattr(storage, (*sys.argv, "locked")[2])(Path(sys.argv[1])):
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


@contextlib.contextmanager
def holder(path: Path, way: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds an output until it is killed."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path), way], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("way", ["claimed", "held"])
def test_an_output_that_is_not_there_yet_has_one_holder_and_none_once_that_is_killed(way: str, tmp_path: Path) -> None:
    out = tmp_path / "new" if way == "claimed" else tmp_path / "new.nii.gz"
    hold = getattr(storage, way)
    with holder(out, way) as process:
        with pytest.raises(Refused) as refused, hold(out):
            pass
        assert refused.value.code == "OUT_BUSY" and out.exists() == (way == "claimed")
        with hold(tmp_path / "other"):
            pass
        process.kill()
        process.wait()
        with hold(out):
            pass
    assert not list(tmp_path.glob(f"{PARTIAL}*"))


RACE = """
import os, sys
from pathlib import Path
from medgan.errors import Refused
from medgan.storage import claimed, held
folder, file, had = Path(sys.argv[1]), Path(sys.argv[2]), 0
for turn in range(300):
    try:
        with claimed(folder):
            os.close(os.open(folder / "mine", os.O_CREAT | os.O_EXCL))
            had += 1
            os.unlink(folder / "mine")
            if turn % 2:
                raise ValueError  # which takes the folder away again
    except (Refused, ValueError) as error:
        assert getattr(error, "code", "OUT_BUSY") == "OUT_BUSY", error
    try:
        with held(file):
            os.close(os.open(file, os.O_CREAT | os.O_EXCL))
            had += 1
            os.unlink(file)
    except Refused as error:
        assert error.code == "OUT_BUSY", error
print(had)
"""


def test_processes_that_race_for_outputs_that_come_and_go_never_hold_one_together(tmp_path: Path) -> None:
    racers = [subprocess.Popen([sys.executable, "-c", RACE, str(tmp_path / "a" / "b"), str(tmp_path / "c")],
                               stdout=subprocess.PIPE, text=True) for _ in range(3)]
    held_by = [int(racer.communicate()[0]) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0] and min(held_by) > 0
    assert not list(tmp_path.glob(f"{PARTIAL}*"))


def test_a_folder_that_was_claimed_for_nothing_is_taken_away_and_one_that_was_used_stays(tmp_path: Path) -> None:
    def fail(out: Path, *names: str) -> None:
        with pytest.raises(ValueError, match="stop"), claimed(out):
            for name in names:
                (out / name).write_text("x")
            raise ValueError("stop")

    fail(tmp_path / "a" / "b", f"{PARTIAL}-1-x")
    assert names(tmp_path) == []
    fail(tmp_path / "a" / "b", "result.txt", f"{PARTIAL}-1-x")
    assert names(tmp_path) == ["a", "b", "result.txt"]
    (tmp_path / "own").mkdir()
    fail(tmp_path / "own")
    assert (tmp_path / "own").is_dir()
    with pytest.raises(Refused, match="OUT_EXISTS"), claimed(tmp_path / "a" / "b" / "result.txt"):
        pass


def test_work_goes_on_without_a_lock_where_the_file_system_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                                    ) -> None:
    import fcntl

    def flock(*_: Any) -> None:
        raise OSError(errno.EBADF, "no locks on NFS folders")

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path), claimed(tmp_path / "new"), held(tmp_path / "file"):
        pass
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="broken"), locked(tmp_path):
        pass


@pytest.mark.parametrize(("number", "code", "why"), [
    (errno.ENOSPC, "OUT_FULL", "the disk is full"), (errno.EDQUOT, "OUT_FULL", "quota"),
    (errno.EFBIG, "OUT_FULL", "larger than"), (errno.EROFS, "OUT_DENIED", "may only be read"),
    (errno.EACCES, "OUT_DENIED", "no permission"), (errno.EPERM, "OUT_DENIED", "no permission"),
])
def test_what_the_system_says_of_an_output_is_a_refusal(number: int, code: str, why: str, tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    with pytest.raises(Refused) as refused, atomic_path(out):
        raise OSError(number, os.strerror(number))
    assert (refused.value.code, refused.value.where) == (code, str(out)) and why in refused.value.why
    assert "--out" in refused.value.fix and names(tmp_path) == []
    with pytest.raises(Refused) as refused, atomic_path(out):
        raise ValueError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")
    assert refused.value.code == code
    with pytest.raises(Refused) as refused, os_errors_refused():
        raise OSError(number, os.strerror(number), "x")
    assert refused.value.code == {errno.EACCES: "FILE_DENIED", errno.EPERM: "FILE_DENIED"}.get(number, code)


def test_other_errors_of_the_system_stay_what_they_are(tmp_path: Path) -> None:
    for guard in (writing(tmp_path), os_errors_refused()):
        with pytest.raises(FileNotFoundError), guard:
            (tmp_path / "none").read_text()
    with pytest.raises(Refused, match=r"FILE_DENIED.*secret\.nii"), atomic_path(tmp_path / "copy.nii"):
        raise PermissionError(errno.EACCES, "Permission denied", "/data/secret.nii")
    with pytest.raises(Refused, match="OUT_BUSY"), writing(tmp_path):
        raise Refused("OUT_BUSY", "x", "what a refusal quotes (os error 28) is its own matter", "Wait")


@pytest.fixture
def somebody() -> Iterator[Path]:
    """A folder, seen by a user whom permissions bind."""
    with tempfile.TemporaryDirectory() as name:
        folder, root = Path(name), os.geteuid() == 0
        folder.chmod(0o777)
        if root:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            if root:
                os.seteuid(0)
            for each in folder.rglob("*"):
                each.chmod(stat.S_IRWXU)


def test_permissions_are_told_of_inputs_and_of_outputs(somebody: Path) -> None:
    closed, secret = somebody / "closed", somebody / "secret.nii"
    secret.write_text("x")
    secret.chmod(0)
    (closed / "kept").mkdir(parents=True)
    closed.chmod(0o555)

    def code(act: Any) -> str:
        with pytest.raises(Refused) as refused:
            act()
        return refused.value.code

    def enter(context: Any) -> None:
        with context:
            pass

    def read() -> None:
        with os_errors_refused():
            secret.read_bytes()

    assert code(read) == "FILE_DENIED"
    assert code(lambda: write_text(closed / "a.json", "x")) == "OUT_DENIED"
    assert code(lambda: append_line(closed / "log.jsonl", "x")) == "OUT_DENIED"
    assert code(lambda: enter(claimed(closed / "new" / "deep"))) == "OUT_DENIED"
    assert code(lambda: enter(held(closed / "a.nii"))) == "OUT_DENIED"
    assert code(lambda: enter(atomic_folder(closed / "series"))) == "OUT_DENIED"
    assert code(lambda: remove_whole(closed / "kept")) == "OUT_DENIED"
    assert names(closed) == ["kept"]


def test_a_line_is_added_whole_or_not_at_all(tmp_path: Path) -> None:
    import resource

    log = tmp_path / "log.jsonl"
    append_line(log, "größer")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        with pytest.raises(Refused, match="OUT_FULL"):
            append_line(log, "x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    append_line(log, "more")
    assert log.read_text(encoding="utf-8") == "größer\nmore\n"


def test_a_folder_appears_whole_and_goes_whole(tmp_path: Path) -> None:
    target = tmp_path / "series"
    with pytest.raises(ValueError, match="stop"), atomic_folder(target) as temporary:
        (temporary / "1.dcm").write_text("half")
        raise ValueError("stop")
    assert names(tmp_path) == []
    with atomic_folder(target) as temporary:
        (temporary / "1.dcm").write_text("whole")
        assert not target.exists()
    assert names(tmp_path) == ["1.dcm", "series"]
    remove_whole(target)
    assert names(tmp_path) == []


def test_a_folder_with_half_written_files_alone_is_unused(tmp_path: Path) -> None:
    assert is_unused(tmp_path / "none") and is_unused(tmp_path)
    (tmp_path / f"{PARTIAL}-1-config.json").write_text("half")
    assert is_unused(tmp_path)
    (tmp_path / "thesis.txt").write_text("mine")
    assert not is_unused(tmp_path) and not is_unused(tmp_path / "thesis.txt")


def test_names_as_long_as_the_system_allows_are_written(tmp_path: Path) -> None:
    for name in ("ü" * 124 + ".nii.gz", "a" * 248 + ".nii.gz"):
        with held(tmp_path / name), atomic_path(tmp_path / name) as temporary:
            assert temporary.name.endswith(".nii.gz")
            temporary.write_text("x")
    assert len(names(tmp_path)) == 2
