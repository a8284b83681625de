"""Writing that leaves either the whole file or nothing, and outputs that have one writer at a time.

A file is written under a temporary name, flushed to the disk and renamed. Disks that are full or may not be written to
are refused here, in one place, by `writing`; what no writer has told of is by `os_errors_refused`, which verbs wear.

Locks are `flock`s: the kernel lets go of them when their holder ends, however it ends. On NFS and other network file
systems they may hold on one machine alone, and folders often cannot be locked there at all; then work goes on without
a lock, and it is the user who keeps two runs from one output.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medgan.errors import Refused

#: Marks a file or folder that is being written; what bears it may be deleted at any time.
PARTIAL = ".medgan-partial"
#: Bytes that a file system allows for a name.
LONGEST_NAME = 255
#: What the system says where there is no room: the disk is full, a quota is used up, a file may not grow so large.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: What it says where there is no permission.
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
#: What it says where it has no such locks, as on network file systems.
_NO_LOCKS = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
#: How libraries written in Rust, such as safetensors, tell of an error of the system.
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")
#: Tries to hold an output that another process takes away at the same moment.
_TRIES = 8


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the system says while `path` is written into a refusal that says what to do.

    Raises:
        Refused: `OUT_FULL`, `OUT_DENIED`, or `FILE_DENIED` for another file that could not be read meanwhile.
    """
    try:
        yield
    except Exception as error:
        raise _refused(error, path) or error from None


@contextlib.contextmanager
def os_errors_refused() -> Iterator[None]:
    """Refuses what the system would not let a verb do and no writer has told of: mostly files that may not be read.

    Raises:
        Refused: `FILE_DENIED`, `OUT_FULL` or `OUT_DENIED`.
    """
    try:
        yield
    except OSError as error:
        raise _refused(error, None) or error from None


def _refused(error: Exception, path: Path | None) -> Refused | None:
    """The refusal for an error of the system; None for one that is no matter of room or permission."""
    number, named = _told_by_system(error)
    where = path or named or Path("output")
    if number in _FULL:
        why = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}.get(
            number, "the file is larger than this system allows")
        return Refused("OUT_FULL", where, why, "Make room and give the same command again (train: with --resume), or "
                       "choose another output with --out")
    if number not in _DENIED:
        return None
    if number != errno.EROFS and named is not None and (path is None or not _is_part_of(named, path)):
        return Refused("FILE_DENIED", named, "it may not be read", "Make it readable, or leave it out")
    why = ("the file system may only be read" if number == errno.EROFS
           else "there is no permission to write here")
    return Refused("OUT_DENIED", where, why, "Choose another output with --out, or make this one writable")


def _told_by_system(error: Exception) -> tuple[int, Path | None]:
    """The system's number of an error, 0 where it is none of the system's, and the file it is about."""
    if isinstance(error, OSError):
        named = Path(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else None
        return error.errno or 0, named
    told = _RUST_ERROR.search(str(error))
    return int(told[1]) if told and not isinstance(error, Refused) else 0, None


def _is_part_of(named: Path, output: Path) -> bool:
    """Whether a file that the system named is the output, its temporary form, or a folder on the way to either."""
    return named == output or named.name.startswith(PARTIAL) or named in output.parents or output in named.parents


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary sibling of `path` with the same suffixes; renames it to `path` when the block succeeds.

    Raises:
        Refused: `OUT_FULL` or `OUT_DENIED`; then `path` is as it was.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        try:
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary, empty sibling folder; renames it to `path` when the block succeeds.

    Raises:
        Refused: `OUT_FULL` or `OUT_DENIED`.
        OSError: There is a folder that holds something already.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _temporary(path: Path) -> Path:
    begin = f"{PARTIAL}-{os.getpid()}-"
    # A name that is long already is cut at its start: what it ends with says what is written.
    kept = os.fsencode(path.name)[-(LONGEST_NAME - len(begin)):]
    return path.with_name(begin + kept.decode("utf-8", "ignore"))


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, data: Any) -> None:
    """Writes JSON atomically: two-space indent, keys in the order given, no NaN."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def append_line(path: Path, line: str) -> None:
    """Adds a whole line of UTF-8 text to a file, or leaves the file as it was.

    Raises:
        Refused: `OUT_FULL` or `OUT_DENIED`.
    """
    with writing(path), path.open("ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        data = f"{line}\n".encode()
        try:
            # What does not fit is written in part at first, and only the next write is told why.
            while data:
                data = data[file.write(data) or 0:]
        except OSError:
            file.truncate(size)
            raise


def sync(path: Path) -> None:
    """Flushes a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partial(folder: Path) -> None:
    """Removes what an earlier, killed process left half-written anywhere below `folder`."""
    for leftover in sorted(folder.rglob(f"{PARTIAL}-*")):
        _remove(leftover)


def remove_whole(folder: Path) -> None:
    """Removes a folder so that no part of it is ever left under its name."""
    with writing(folder):
        aside = _temporary(folder)
        _remove(aside)
        os.replace(folder, aside)
        _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def is_unused(folder: Path) -> bool:
    """Whether a folder is missing, or holds nothing but what a killed process left half-written."""
    if not folder.exists():
        return True
    return folder.is_dir() and all(inner.name.startswith(PARTIAL) for inner in folder.iterdir())


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder for this process; another one that wants it meanwhile is refused (`OUT_BUSY`)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Holds an output folder; it is made where it is missing, and taken away if the block fails without any use of it.

    What a block that fails leaves half-written is removed.

    Raises:
        Refused: `OUT_BUSY`, `OUT_DENIED`, `OUT_FULL`, or `OUT_EXISTS` where there is a file of its name.
    """
    descriptor, new = _claim(folder)
    try:
        yield
    except BaseException:
        # Still under the lock: nobody else can have begun to use it.
        with contextlib.suppress(OSError):
            remove_partial(folder)
        for made in reversed(new):
            with contextlib.suppress(OSError):
                made.rmdir()  # only where it is empty
        raise
    finally:
        os.close(descriptor)


def _claim(folder: Path) -> tuple[int, list[Path]]:
    """A locked descriptor of a folder, and the folders that were made for it."""
    for _ in range(_TRIES):
        new: list[Path] = []
        try:
            with writing(folder):
                for each in [*reversed(folder.parents), folder]:
                    if not each.is_dir():
                        each.mkdir()
                        new.append(each)
                descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # somebody else took away what was just made
        except (FileExistsError, NotADirectoryError):
            if folder.is_dir():
                continue  # somebody else made it at the same moment
            raise Refused("OUT_EXISTS", folder, "there is a file where a folder should be",
                          "Choose another output with --out") from None
        try:
            _lock(descriptor, folder)
            if _is_still(descriptor, folder):
                return descriptor, new
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise _busy(folder)


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Holds a file or folder that is yet to be written, by a lock file beside it, which is gone afterwards.

    Raises:
        Refused: `OUT_BUSY`, `OUT_DENIED` or `OUT_FULL`.
    """
    begin = f"{PARTIAL}-lock-"
    file = path.with_name(begin + os.fsencode(path.name)[-(LONGEST_NAME - len(begin)):].decode("utf-8", "ignore"))
    for _ in range(_TRIES):
        with writing(path):
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, path)
            if _is_still(descriptor, file):
                try:
                    yield
                finally:
                    file.unlink(missing_ok=True)
                return
        finally:
            os.close(descriptor)
    raise _busy(path)


def _lock(descriptor: int, path: Path) -> None:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _busy(path) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _is_still(descriptor: int, path: Path) -> bool:
    """Whether what was opened is what lies there: its last holder may have removed it before it let go."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _busy(path: Path) -> Refused:
    return Refused("OUT_BUSY", path, "another process is writing to it",
                   "Wait until it has ended, or choose another output")
