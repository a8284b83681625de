"""Archives given where an image or a data set is expected: never unpacked, and told apart by what they would do.

An `.npz` is a zip whose members are read one by one in memory; names that would climb out of a folder are refused
all the same, because the next tool may unpack it.
"""

from __future__ import annotations

import bz2
import gzip
import posixpath
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from medgan.errors import Refused

#: Names of archives and of lone compressed files; readers that take `.nii.gz` and the like come first.
ARCHIVES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
#: Names of files that are unpickled, which runs whatever code they name.
PICKLES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
#: How a pickle of protocol 2 to 5 begins.
_PICKLE_MARKS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
#: How archives begin that are named otherwise.
_MARKS = (b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"7z\xbc\xaf\x27\x1c", b"Rar!")
#: What `zipfile` raises of files that it cannot read: damaged ones and, as NotImplementedError, those of a later
#: version of the format, or encrypted or compressed in a way that it does not know.
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, NotImplementedError)
#: Where a tar says that it is one.
_TAR_MARK = (257, b"ustar")
#: How much of a compressed tar is looked through; names after that are not judged, and it is refused all the same.
_LOOKED_THROUGH = 2**28
#: A link's target is no longer than a path may be.
_LONGEST_PATH = 4096

_DRIVE = re.compile(r"^[A-Za-z]:")


def is_archive(path: Path, start: bytes = b"") -> bool:
    """Whether a file is an archive or a compressed file, by its name or its first bytes."""
    return path.name.lower().endswith(ARCHIVES) or start.startswith(_MARKS) or (
        start[_TAR_MARK[0] :].startswith(_TAR_MARK[1]))


def is_pickle(path: Path, start: bytes = b"") -> bool:
    """Whether a file is a pickle, or a zip around one as torch saves it, by its name or its content."""
    if path.name.lower().endswith(PICKLES) or start.startswith(_PICKLE_MARKS):
        return True
    if not start.startswith(_MARKS[0]):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    except ZIP_ERRORS:
        return False


def refuse_unsafe(path: Path, start: bytes) -> None:
    """Refuses pickles and archives by name; `start` is the first bytes of the file.

    Raises:
        Refused: `CKPT_UNSAFE`, or as `refuse_archive`.
    """
    if is_pickle(path, start):
        raise Refused("CKPT_UNSAFE", path, "it is a pickle, which runs code when it is read",
                      "Convert weights to safetensors, and images to NIfTI")
    if is_archive(path, start):
        raise refuse_archive(path)


def refuse_archive(path: Path) -> Refused:
    """The refusal of an archive, which says whether unpacking it would write outside its folder.

    Zip files and tar files (plain, gzip and bzip2) are looked into; nothing is unpacked.

    Returns:
        `ARCHIVE_ESCAPE` where a member's name or link leads out, `FILE_CORRUPT` for a damaged zip or tar, else
        `FILE_FORMAT`.
    """
    try:
        for name in _members(path):
            if escapes(name):
                return _escape(path, name)
    except (*ZIP_ERRORS, tarfile.TarError, RuntimeError) as error:
        return Refused("FILE_CORRUPT", path, f"the archive cannot be read ({error})", "Fetch it again")
    return Refused("FILE_FORMAT", path, "it is an archive, which is not unpacked here",
                   "Unpack it and give the folder")


def check_members(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuses an `.npz` of which a member climbs out of a folder, or of which two have one name.

    Raises:
        Refused: `ARCHIVE_ESCAPE` or `FILE_CORRUPT`.
    """
    names = [info.filename for info in archive.infolist()]
    for name in names:
        if escapes(name):
            raise _escape(path, name)
    if len(set(names)) != len(names):
        raise Refused("FILE_CORRUPT", path, "two of its arrays have one name", "Save the archive again")


def escapes(name: str) -> bool:
    """Whether a member of this name would be written outside the folder that an archive is unpacked in."""
    plain = name.replace("\\", "/")
    return plain.startswith("/") or bool(_DRIVE.match(plain)) or ".." in plain.split("/") or "\0" in name


def _escape(path: Path, name: str) -> Refused:
    return Refused("ARCHIVE_ESCAPE", path, f"its member {name[:100]!r} would be written outside the folder it is "
                   "unpacked in", "Do not unpack it; ask where it came from")


def _members(path: Path) -> Iterator[str]:
    """Names of members, and where links lead."""
    with path.open("rb") as file:
        start = file.read(512)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                # `filename` is cut at a NUL and has its separators turned; what the file says is judged as well.
                yield from (info.filename, info.orig_filename)
                if stat.S_ISLNK(info.external_attr >> 16) and not info.flag_bits & 1:
                    with archive.open(info) as stream:
                        yield _link(info.filename, stream.read(_LONGEST_PATH).decode("utf-8", "replace"))
        return
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")) or path.name.lower().endswith(".zip"):
        raise zipfile.BadZipFile("its list of members is missing")
    opener: Any = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open}.get(start[:2], open)
    with opener(path, "rb") as opened:
        yield from _tar_members(opened)


def _tar_members(opened: Any) -> Iterable[str]:
    first = opened.read(512)
    if not first[_TAR_MARK[0] :].startswith(_TAR_MARK[1]):
        return  # a lone compressed file, or an archive of another kind
    opened.seek(0)
    try:
        stream: Any = _Bounded(opened)
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                yield member.name
                if member.issym():
                    yield _link(member.name, member.linkname)
                elif member.islnk():
                    yield member.linkname
    except _EnoughSeen:
        return


def _link(name: str, target: str) -> str:
    """Where a link leads, seen from the folder that is unpacked in; a way up after a way down is not followed."""
    parts = [part for part in target.replace("\\", "/").split("/") if part not in ("", ".")]
    ups = next((i for i, part in enumerate(parts) if part != ".."), len(parts))
    if target.startswith(("/", "\\")) or ".." in parts[ups:]:
        return f"/{target.lstrip('/')}"
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), *parts)) if parts else name


class _EnoughSeen(Exception):
    """A tar is larger than what is looked through."""


class _Bounded:
    """A stream that gives a limited number of bytes, whatever a header asks for."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._left = stream, _LOOKED_THROUGH

    def read(self, size: int) -> bytes:
        """As many bytes as asked for, or `_EnoughSeen`."""
        if size > self._left:
            raise _EnoughSeen
        self._left -= size
        data: bytes = self._stream.read(size)
        return data
