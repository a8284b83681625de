"""A session with a DICOM server on a network of its own: Orthanc is started, the blocks of docs/pacs.md are run.

    unshare --map-root-user --net --pid --fork --kill-child python tests/pacs_session.py FOLDER MANUAL SERVER

FOLDER holds `augmented/`, MANUAL is docs/pacs.md, SERVER the program of Orthanc; `fetched/` (C-GET, by the manual's
own lines) and `moved/` (C-MOVE) are written beside it. Prints one JSON object:
what the server said. It refuses to run in any network but one of its own.
"""

from __future__ import annotations

import fcntl
import json
import re
import shlex
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AE, StoragePresentationContexts, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind as Find
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelMove as Move
from pynetdicom.sop_class import Verification

SERVER, PORT = ("127.0.0.1", 4242), 11112
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: Seconds until a server that has not answered is given up: it takes one, an overloaded machine many.
PATIENCE = 60
#: `SIOCGIFFLAGS`, `SIOCSIFFLAGS` and `IFF_UP` of Linux.
GET_FLAGS, SET_FLAGS, UP = 0x8913, 0x8914, 1


def raise_loopback() -> None:
    """Switches on `lo`, which is off in a new network, without needing `ip`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        known = fcntl.ioctl(control, GET_FLAGS, struct.pack("16sH14x", b"lo", 0))
        flags = struct.unpack("16sH14x", known)[1]
        fcntl.ioctl(control, SET_FLAGS, struct.pack("16sH14x", b"lo", flags | UP))


def refuse_other_networks() -> None:
    """Nothing here may reach a real server: a network of one's own has no interface but `lo`."""
    names = [name for _, name in socket.if_nameindex()]
    if names != ["lo"]:
        sys.exit(f"this is not a network of its own: it has {', '.join(names)}")


@contextmanager
def orthanc(program: str, folder: Path) -> Iterator[None]:
    """A strict Orthanc: no plugins, no HTTP, known titles and hosts only, its storage in `folder`."""
    (folder / "storage").mkdir()
    (folder / "orthanc.json").write_text(json.dumps({
        "Name": "test", "StorageDirectory": str(folder / "storage"), "IndexDirectory": str(folder / "storage"),
        "TemporaryDirectory": str(folder), "Plugins": [], "HttpServerEnabled": False, "RemoteAccessAllowed": False,
        "DicomAet": "ORTHANC", "DicomPort": SERVER[1], "DicomCheckCalledAet": True, "DicomCheckModalityHost": True,
        "DicomAlwaysAllowEcho": False, "DicomAlwaysAllowStore": False, "UnknownSopClassAccepted": False,
        "DefaultEncoding": "Utf8", "DicomModalities": {"medgan": ["MEDGAN", SERVER[0], PORT]},
    }))  # fmt: skip
    with (folder / "orthanc.log").open("wb") as log:
        server = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log)
        try:
            end = time.monotonic() + PATIENCE
            while not echo():
                if server.poll() is not None or time.monotonic() > end:
                    sys.exit("Orthanc did not start:\n" + (folder / "orthanc.log").read_text(errors="replace"))
                time.sleep(0.1)
            yield
        finally:
            server.terminate()
            server.wait(PATIENCE)


def echo(title: str = "MEDGAN") -> bool:
    """Whether the server answers C-ECHO to a client of this title."""
    client = AE(ae_title=title)
    client.add_requested_context(Verification)
    link = client.associate(*SERVER, ae_title="ORTHANC")
    if not link.is_established:
        return False
    status = link.send_c_echo().get("Status")
    link.release()
    return bool(status == 0x0000)


def find() -> list[dict[str, str]]:
    """Every series that the server holds, as C-FIND tells them."""
    client = AE(ae_title="MEDGAN")
    client.add_requested_context(Find)
    link = client.associate(*SERVER, ae_title="ORTHANC")
    asked = ("PatientID", "PatientName", "StudyInstanceUID", "SeriesInstanceUID", "SeriesDescription", "Modality")
    wanted = Dataset()
    wanted.QueryRetrieveLevel = "SERIES"
    for keyword in asked:
        setattr(wanted, keyword, "")
    answers = [(status.Status, answer) for status, answer in link.send_c_find(wanted, Find)]
    link.release()
    assert answers[-1][0] == 0x0000
    return [{name: str(answer.get(name, "")) for name in asked} for _, answer in answers[:-1] if answer is not None]


def move(found: list[dict[str, str]], folder: Path) -> list[dict[str, int]]:
    """Has every series sent to a storage server of our own; the last status and counts of each C-MOVE."""
    folder.mkdir()

    def keep(event: Any) -> int:
        (folder / f"{event.request.AffectedSOPInstanceUID}.dcm").write_bytes(event.encoded_dataset())
        return 0x0000

    client = AE(ae_title="MEDGAN")
    client.supported_contexts = StoragePresentationContexts
    client.add_requested_context(Move)
    store = client.start_server((SERVER[0], PORT), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)])
    told = []
    link = client.associate(*SERVER, ae_title="ORTHANC")
    for series in found:
        wanted = Dataset()
        wanted.QueryRetrieveLevel = "SERIES"
        wanted.StudyInstanceUID, wanted.SeriesInstanceUID = series["StudyInstanceUID"], series["SeriesInstanceUID"]
        status, _ = list(link.send_c_move(wanted, "MEDGAN", Move))[-1]
        told.append({"status": status.Status, "failed": int(status.get("NumberOfFailedSuboperations", 0)),
                     "warned": int(status.get("NumberOfWarningSuboperations", 0))})
    link.release()
    store.shutdown()
    return told


def main(folder: Path, manual: Path, server: str) -> dict[str, Any]:
    refuse_other_networks()
    raise_loopback()
    blocks = FENCE.findall(manual.read_text(encoding="utf-8"))
    said: list[str] = []
    shell = []
    # What the reader would see printed is kept apart from this program's own JSON.
    names: dict[str, Any] = {"print": lambda *words: said.append(" ".join(map(str, words)))}
    with orthanc(server, folder):
        told = {"echo": echo(), "stranger": echo("STRANGER")}
        for kind, block in blocks:
            if kind == "python":
                exec(compile(block, str(manual), "exec"), names)
            for line in block.splitlines() if kind == "sh" else []:
                words = shlex.split(line)
                assert words[0] == "python"
                done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, timeout=PATIENCE)
                shell.append({"line": line, "code": done.returncode, "said": done.stdout + done.stderr})
        found = find()
        return told | {"statuses": names["statuses"], "printed": said, "shell": shell, "found": found,
                       "moved": move(found, folder / "moved")}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])))
