"""What a codec may do - crash, hang, eat memory, print - does not reach the program that reads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_makers import make_series, save
from PIL import Image
from pydicom.uid import RLELossless

from medgan.errors import Refused
from medgan.imaging import decoding, decoding_worker, files
from medgan.imaging.dicom import read_series
from medgan.imaging.rules import Rules

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals and limits as Linux has them")

ROWS = np.arange(12, dtype=np.uint8).reshape(3, 4)

#: What a decoding program does instead of decoding, and what the refusal then says.
MISHAPS = {
    "crashes": ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
    "aborts": ("import os; os.abort()", "SIGABRT"),
    "panics": ("import os; os._exit(101)", "exit code 101"),
    "hangs": ("import time; time.sleep(600)", "took too long"),
    "hangs in the kernel's eyes": ("import signal, os; os.kill(os.getpid(), signal.SIGSTOP)", "took too long"),
    "babbles": ("import os; os.write(1, b'oh no, a message of no known form')", "no sensible answer"),
    "leaves": ("raise SystemExit(0)", "exit code 0"),
    "breaks off": ("import os; os.write(1, b'\\0\\0\\0\\x02\\0\\0\\0\\0\\0\\0\\0\\x09{}few')", "exit code 0"),
}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    decoding.close_all()
    yield
    decoding.close_all()


def _png(folder: Path, name: str = "a.png") -> Path:
    Image.fromarray(ROWS).save(folder / name)
    return folder / name


def _series(folder: Path) -> Path:
    items = make_series()
    for item in items:
        item.compress(RLELossless, generate_instance_uid=False)
    return save(items, folder)


def _children() -> set[int]:
    found = set()
    for task in Path("/proc/self/task").iterdir():
        found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


def _is_gone(pid: int, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def _alter(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Has the decoding program wait for a request, then do what the script says."""
    monkeypatch.setattr(decoding, "COMMAND", (sys.executable, "-c", f"import os; os.read(0, 1)\n{script}"))


@pytest.mark.parametrize("name", MISHAPS)
def test_a_mishap_is_a_refusal_and_the_next_read_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    script, why = MISHAPS[name]
    path, before = _png(tmp_path), _children()
    with monkeypatch.context() as patched:
        patched.setattr(decoding, "START_SECONDS", 1.0)
        patched.setattr(decoding, "FRAME_SECONDS", 0.2)
        patched.setattr(decoding, "GRACE_SECONDS", 0.2)
        _alter(patched, script)
        with pytest.raises(Refused) as refused:
            files.read(path)
    assert refused.value.code == "PIX_DECODE_FAILED" and refused.value.where == str(path)
    assert why in refused.value.why
    assert _children() == before  # it is gone, and waited for
    assert np.array_equal(files.read(path).array[0].T, ROWS)


def test_a_command_that_is_not_there_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "COMMAND", (str(tmp_path / "nothing"),))
    with pytest.raises(Refused, match=r"PIX_DECODE_FAILED.*cannot be started"):
        files.read(_png(tmp_path))


def _altered_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Runs the real decoding program with another decoder of rasters."""
    script = tmp_path / "altered.py"
    script.write_text(
        f"import sys\nsys.path[:] = {sys.path!r}\nfrom medgan.imaging import decoders, decoding_worker\n"
        f"def altered(request):\n    {body}\n    yield\n"
        "decoders.DECODERS['raster'] = altered\ndecoding_worker.main()\n")
    monkeypatch.setattr(decoding, "COMMAND", (sys.executable, "-P", str(script)))


@pytest.mark.parametrize(("body", "code", "why"), [
    # Holds the interpreter's lock for ever, as a codec does: only the kernel can end it.
    ("import re; re.match('(a+)+$', 'a' * 60 + 'b')", "PIX_DECODE_FAILED", "ended (SIGALRM)"),
    ("bytearray(2**31)", "LIMIT", "more memory"),
    ("raise type('PanicException', (BaseException,), {})", "PIX_DECODE_FAILED", "PanicException"),
    ("return iter(())", "PIX_DECODE_FAILED", "fewer images"),
])
def test_the_program_itself_ends_what_goes_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, code: str, why: str
) -> None:
    monkeypatch.setattr(decoding, "FRAME_SECONDS", 1.0)
    _altered_decoder(tmp_path, monkeypatch, body)
    path = _png(tmp_path)
    with pytest.raises(Refused) as refused:
        files.read(path, rules=Rules(2**20))
    assert refused.value.code == code and why in refused.value.why


def test_what_a_codec_prints_goes_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    body = "import os; os.write(1, b'out'); os.write(2, b'err'); yield from decoders.raster(request)"
    _altered_decoder(tmp_path, monkeypatch, body)
    assert np.array_equal(files.read(_png(tmp_path)).array[0].T, ROWS)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_a_series_and_rasters_share_one_program(tmp_path: Path) -> None:
    (tmp_path / "series").mkdir()
    before, path = _children(), _png(tmp_path)
    whole = read_series(_series(tmp_path / "series"))[0]
    started = _children() - before
    for _ in range(3):
        files.read(path)
        assert np.array_equal(read_series(tmp_path / "series")[0].array, whole.array)
    assert len(started) == 1 and _children() - before == started


def test_a_program_that_was_left_idle_is_replaced(tmp_path: Path) -> None:
    path = _png(tmp_path)
    files.read(path)
    [program] = decoding._idle
    program.process.kill()
    program.process.wait()
    assert np.array_equal(files.read(path).array[0].T, ROWS)
    # One that goes in the very moment it is asked leaves with 0, not by a signal, and is replaced as well.
    [program] = decoding._idle
    script = f"import os, time; time.sleep(1); os._exit({decoding_worker.LEFT_IDLE})"
    program.close()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(decoding, "COMMAND", (sys.executable, "-c", script))
        leaving = decoding._take()
    leaving.fresh = False
    decoding._idle.append(leaving)
    assert np.array_equal(files.read(path).array[0].T, ROWS)


def test_threads_decode_at_the_same_time(tmp_path: Path) -> None:
    paths = [_png(tmp_path, f"{number}.png") for number in range(12)]
    folder = tmp_path / "series"
    folder.mkdir()
    _series(folder)
    barrier = threading.Barrier(3)

    def work(_: int) -> bool:
        barrier.wait(60)
        alike = all(np.array_equal(files.read(path).array[0].T, ROWS) for path in paths)
        return alike and len(read_series(folder)) == 1

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(work, range(3)))
    assert 1 <= len(decoding._idle) <= decoding.KEPT


def _read_in_child(path: Path, answers: object) -> None:
    taken_over = len(decoding._running)  # whose pipes would stay open here when their owner is gone
    values = files.read(path).array
    answers.put((values, taken_over, [program.process.pid for program in decoding._idle]))  # type: ignore[attr-defined]


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_another_process_has_its_own(tmp_path: Path, way: str) -> None:
    path = _png(tmp_path)
    files.read(path)
    own = decoding._idle[0].process.pid
    context: Any = get_context(way)
    answers = context.Queue()
    child = context.Process(target=_read_in_child, args=(path, answers))
    child.start()
    values, taken_over, theirs = answers.get(timeout=60)
    child.join(60)
    assert np.array_equal(values[0].T, ROWS) and taken_over == 0
    assert len(theirs) == 1 and theirs[0] != own
    assert _is_gone(theirs[0])  # it ended with the process that it worked for
    files.read(path)
    assert decoding._idle[0].process.pid == own  # which has not touched this one's


@pytest.mark.parametrize("busy", [False, True])
def test_it_ends_when_its_reader_is_killed(tmp_path: Path, busy: bool) -> None:
    script = [
        "import sys, os", "from pathlib import Path", "from medgan.imaging import decoding, files",
        f"files.read({str(_png(tmp_path))!r})", "program = decoding._idle[0]", "print(program.process.pid, flush=True)",
    ]
    if busy:  # in the middle of a request that it cannot finish, since nobody takes its answer
        script += ["program.allow(9)", "decoding._Program.receive = lambda *_: os.kill(os.getpid(), 9)",
                   f"files.read({str(_png(tmp_path))!r})"]
    script += ["sys.stdin.read()"]
    reader = subprocess.Popen([sys.executable, "-c", "\n".join(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert reader.stdout is not None
    pid = int(reader.stdout.readline())
    reader.kill()
    reader.communicate()
    assert _is_gone(pid)


def test_an_interrupt_reaches_the_reader_alone(tmp_path: Path) -> None:
    script = (
        "import os, signal\nfrom medgan.imaging import decoding, files\n"
        f"path = {str(_png(tmp_path))!r}\nfiles.read(path)\n"
        "try:\n    os.killpg(0, signal.SIGINT)\n    while True: pass\nexcept KeyboardInterrupt: pass\n"
        "files.read(path)\nprint('still', len(decoding._running))\n")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120,
                          start_new_session=True)
    assert done.stdout == "still 1\n" and done.stderr == ""


def test_nothing_is_decoded_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "series").mkdir()
    _series(tmp_path / "series")
    for module, name in (("PIL.Image", "open"), ("pydicom.pixels.decoders.base.DecodeRunner", "decode")):
        monkeypatch.setattr(f"{module}.{name}", lambda *_, **__: pytest.fail("decoded in this process"))
    assert np.array_equal(files.read(_png(tmp_path)).array[0].T, ROWS)
    assert len(read_series(tmp_path / "series")) == 1


def test_the_program_leaves_no_image_of_its_memory(tmp_path: Path) -> None:
    files.read(_png(tmp_path))
    limits = Path(f"/proc/{decoding._idle[0].process.pid}/limits").read_text().splitlines()
    found = {line[:26].strip(): line[26:].split()[0] for line in limits}
    assert found["Max core file size"] == "0" and found["Max address space"].isdigit()
    assert os.getsid(decoding._idle[0].process.pid) != os.getsid(0)
