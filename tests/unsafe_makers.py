"""Files that would run code, or that lie about what they hold: made here, so that none lies about in a folder."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np


class Gadget:
    """Unpickled, it makes a file: the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.canary,))


def pickled(path: Path, canary: Path, protocol: int = 4) -> Path:
    """A bare pickle, as legacy checkpoints are."""
    path.write_bytes(pickle.dumps({"state_dict": Gadget(canary)}, protocol=protocol))
    return path


def torch_zip(path: Path, canary: Path) -> Path:
    """A zip as torch saves it, with a REDUCE gadget in its pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Gadget(canary), protocol=2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/data/0", b"\0" * 64)
    return path


def legacy_torch(path: Path, canary: Path) -> Path:
    """The format before zip files: magic number, protocol, system and object, one pickle after the other."""
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, Gadget(canary))
    path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in parts))
    return path


def object_array(path: Path, canary: Path) -> Path:
    """An .npy of Python objects."""
    held = np.empty(1, dtype=object)
    held[0] = Gadget(canary)
    np.save(path, held, allow_pickle=True)
    return path


def safetensors(path: Path, header: str | bytes | dict[str, Any], data: bytes = b"", *, length: int | None = None
                ) -> Path:
    """A file with this header, and a length that may be another one."""
    given = json.dumps(header) if isinstance(header, dict) else header
    text = given.encode() if isinstance(given, str) else given
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def tensor(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    """An entry of such a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


#: Headers that lie -> the bytes behind them. Each of them is `CKPT_CORRUPT`.
LYING: dict[str, tuple[Any, bytes]] = {
    "the shape product wraps uint64": ({"w": tensor([2**33, 2**31 + 1], 0, 2**35 % 2**64 % 64)}, b"\0" * 64),
    "the shape product wraps to what is there": ({"w": tensor([2**62, 4, 2], 0, 0)}, b""),
    "two tensors share bytes": ({"a": tensor([4], 0, 16), "b": tensor([4], 8, 24)}, b"\0" * 24),
    "two tensors are the same bytes": ({"a": tensor([4], 0, 16), "b": tensor([4], 0, 16)}, b"\0" * 16),
    "a hole between tensors": ({"a": tensor([4], 0, 16), "b": tensor([4], 24, 40)}, b"\0" * 40),
    "a hole in front": ({"a": tensor([4], 8, 24)}, b"\0" * 24),
    "bytes behind the last tensor": ({"a": tensor([4], 0, 16)}, b"\0" * 17),
    "cut short": ({"a": tensor([4], 0, 16)}, b"\0" * 15),
    "an end before its beginning": ({"a": tensor([4], 16, 0)}, b"\0" * 16),
    "a negative place": ({"a": tensor([4], -16, 0)}, b"\0" * 16),
    "a negative shape": ({"a": tensor([-2, -2], 0, 16)}, b"\0" * 16),
    "a shape that is no number": ({"a": {"dtype": "F32", "shape": ["4"], "data_offsets": [0, 16]}}, b"\0" * 16),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 16]}}, b"\0" * 16),
    "an unknown type": ({"a": tensor([4], 0, 16, "F33")}, b"\0" * 16),
    "the same key twice": ('{"a": ENTRY, "a": ENTRY}'.replace("ENTRY", json.dumps(tensor([4], 0, 16))), b"\0" * 16),
    "a list for a header": ("[1, 2]", b""),
    "a number for a header": ("5", b""),
    "a list for an entry": ({"a": [1]}, b""),
    "metadata that is no text": ({"__metadata__": {"a": 1}, "a": tensor([4], 0, 16)}, b"\0" * 16),
    "metadata that is a list": ({"__metadata__": [], "a": tensor([4], 0, 16)}, b"\0" * 16),
    "deep brackets": ("[" * 100_000, b""),
    "no JSON": ("{", b""),
    "bytes that are no text": (b"\xff\xfe{}", b""),
    "NaN in the header": ('{"a": NaN}', b""),
}


def zipped(path: Path, names: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    """A zip with these members, whatever their names, and symbolic links."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in names.items():
            archive.writestr(zipfile.ZipInfo(name), content)
        for name, target in (links or {}).items():
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, 0o120777 << 16
            archive.writestr(info, target)
    return path


def tarred(path: Path, names: dict[str, bytes], links: dict[str, str] | None = None, mode: str = "w",
           hard: dict[str, str] | None = None) -> Path:
    """A tar with these members and links."""
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in names.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for kind, given in ((tarfile.SYMTYPE, links), (tarfile.LNKTYPE, hard)):
            for name, target in (given or {}).items():
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, target
                archive.addfile(info)
    return path


def array_bytes(values: Any) -> bytes:
    """What an .npy file of these values holds."""
    held = io.BytesIO()
    np.save(held, np.asarray(values), allow_pickle=False)
    return held.getvalue()
