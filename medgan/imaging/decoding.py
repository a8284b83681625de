"""Native decoding in a program of its own, where a crash, a panic, a hang or a bomb cannot take this one down.

The program (`decoding_worker.py`) is started when the first compressed frame or raster is read, asked again for the
next, and ends when there is no more to do. Each thread that decodes has its own; a forked process starts new ones.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from medgan.errors import Refused
from medgan.imaging import decoding_worker
from medgan.imaging.decoding_worker import LEFT_IDLE, MESSAGE, seconds_for

#: What starts the decoding program. `-P`: no module is taken from the folder that the script lies in.
COMMAND: tuple[str, ...] = (sys.executable, "-P", str(Path(decoding_worker.__file__).resolve()))
#: Time that one frame gets, whatever its size; what `SECONDS_PER_MEGAPIXEL` gives is added.
FRAME_SECONDS = 60.0
#: More time, in which the program ends itself, before it is ended from here.
GRACE_SECONDS = 5.0
#: What starting the program may take, on a busy machine.
START_SECONDS = 60.0
#: Programs that are kept for the next request; more are needed only while more threads decode at once.
KEPT = 4

#: What a pipe holds at most, where the system lets it.
_PIPE_BYTES = 2**20
#: Longest head of an answer; only shapes and messages are in it.
_HEAD_BYTES = 2**20
_FIX = "Decompress the file with the tool of its maker, or leave it out"


class _Failed(Exception):
    """The decoding program did not answer; carries why."""

    def __init__(self, why: str, *, idle: bool = False) -> None:
        super().__init__(why)
        self.why, self.idle = why, idle


class _Program:
    """A running decoding program and the pipes to it."""

    def __init__(self) -> None:
        # One thread: a codec needs no more, and each would take memory from the limit.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        try:
            # A session of its own, so that Ctrl-C reaches this program only, which then ends that one.
            self.process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            stderr=subprocess.DEVNULL, bufsize=0, start_new_session=True,
                                            env=environment)
        except OSError as error:
            raise _Failed(f"the decoding program cannot be started ({error.strerror})") from error
        self.fresh = True
        self._allowance = START_SECONDS
        self._room = bytearray(_PIPE_BYTES)
        self._early = memoryview(b"")
        for pipe in self._pipes():
            os.set_blocking(pipe.fileno(), False)
        with contextlib.suppress(OSError, AttributeError, ValueError):  # so that a slice comes in one go
            fcntl.fcntl(self._pipes()[1].fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self.process.stdin is not None and self.process.stdout is not None
        return self.process.stdin, self.process.stdout

    def allow(self, seconds: float) -> None:
        """Sets how long the next answer may take."""
        self._deadline = time.monotonic() + seconds + GRACE_SECONDS + self._allowance

    def send(self, head: dict[str, Any]) -> None:
        """Sends a request."""
        target = self._pipes()[0].fileno()
        text = json.dumps(head).encode()
        left = memoryview(MESSAGE.pack(len(text), 0) + text)
        while left:
            try:
                left = left[os.write(target, left):]
            except BlockingIOError:
                self._wait(target, select.POLLOUT)
            except BrokenPipeError:
                raise self._ended() from None

    def receive(self, limit: int) -> tuple[dict[str, Any], NDArray[np.uint8]]:
        """Waits for an answer: its head, and at most `limit` raw bytes."""
        head_bytes, size = MESSAGE.unpack(self._exactly(MESSAGE.size).data)
        if head_bytes > _HEAD_BYTES or size > limit:
            raise _Failed("the decoding program gave no sensible answer")
        try:
            head = json.loads(bytes(self._exactly(head_bytes)))
        except ValueError as error:
            raise _Failed("the decoding program gave no sensible answer") from error
        self._allowance = 0.0
        return head, self._exactly(size)

    def _exactly(self, size: int) -> NDArray[np.uint8]:
        """The next bytes; what comes along with them, up to a pipe's worth, is kept for the next question."""
        data = np.empty(size, dtype=np.uint8)
        source, left = self._pipes()[1].fileno(), memoryview(data.data)
        while left:
            if self._early:
                count = min(len(left), len(self._early))
                left[:count], self._early = self._early[:count], self._early[count:]
                left = left[count:]
                continue
            self._wait(source, select.POLLIN)
            try:
                count = os.readv(source, [left, self._room])
            except BlockingIOError:
                continue
            if not count:
                raise self._ended()
            self._early = memoryview(self._room)[: max(0, count - len(left))]
            left = left[count:]
        return data

    def _wait(self, pipe: int, event: int) -> None:
        poll = select.poll()
        poll.register(pipe, event)
        if not poll.poll(max(0.0, self._deadline - time.monotonic()) * 1000):
            self.close()
            raise _Failed("decoding took too long, so that it was killed")

    def _ended(self) -> _Failed:
        """Why the program has closed its side."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE_SECONDS)
        code = self.process.returncode
        self.close()
        if code is None or code >= 0:
            return _Failed("the decoding program ended" + (f" with exit code {code}" if code is not None else ""),
                           idle=code == LEFT_IDLE and not self.fresh)
        if code == -signal.SIGALRM:
            return _Failed("decoding took too long, so that it was ended (SIGALRM)")
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return _Failed(f"the decoding program crashed ({name})")

    @property
    def is_alive(self) -> bool:
        """Whether it still runs, as far as is known."""
        return self.process.poll() is None

    def close(self) -> None:
        """Ends the program, whatever it does, and waits until it is gone."""
        with contextlib.suppress(OSError):
            self.process.kill()
        for pipe in self._pipes():
            with contextlib.suppress(OSError):
                pipe.close()
        self.process.wait()
        _running.discard(self)

    def forget(self) -> None:
        """Lets go of it in a forked process, to which it does not belong."""
        for pipe in self._pipes():
            with contextlib.suppress(OSError):
                pipe.close()
        self.process.returncode = 0  # it is no child of this process, which therefore must not wait for it


_lock = threading.Lock()
_idle: list[_Program] = []
_running: set[_Program] = set()


def decoded(kind: str, request: dict[str, Any], where: Path, *, limit: int,
            pixels: int = 0) -> Generator[tuple[dict[str, Any], NDArray[Any]], None, None]:
    """Has a request answered by `decoders.DECODERS[kind]` in the decoding program.

    Args:
        kind: Which decoder.
        request: What it wants to know, as JSON values.
        where: The file, for refusals.
        limit: The most bytes that decoding may take in the other program, and one array in this one.
        pixels: How many pixels a frame has, where that is known: larger ones get more time.

    Yields:
        The head of each answer, and its array.

    Raises:
        Refused: What the decoder refuses; `PIX_DECODE_FAILED` where it crashes or takes too long; `LIMIT` where it
            takes more memory than it may.
    """
    asked = {**request, "kind": kind, "limit": limit, "pixels": pixels, "seconds": FRAME_SECONDS}
    program: _Program | None = None
    whole = False
    try:
        program, head, data = _begin(asked, limit)
        while True:
            whole = "refused" in head or bool(head.get("last"))
            if "refused" in head:
                code, why, fix = head["refused"]
                raise Refused(code, where, why, fix)
            if "dtype" in head:
                yield head, _array(head, data)
            if whole:
                return
            program.allow(seconds_for(head.get("pixels", pixels), FRAME_SECONDS))
            head, data = program.receive(limit)
    except _Failed as failed:
        raise Refused("PIX_DECODE_FAILED", where, failed.why, _FIX) from None
    finally:
        if program is not None:
            _give_back(program, whole)


def _begin(asked: dict[str, Any], limit: int) -> tuple[_Program, dict[str, Any], NDArray[np.uint8]]:
    """Sends a request to a program that is free, or a new one; gives it and its first answer."""
    while True:
        program = _take()
        try:
            program.allow(seconds_for(asked["pixels"], asked["seconds"]))
            program.send({**asked, "path": [os.path.abspath(each) for each in sys.path]} if program.fresh else asked)
            return (program, *program.receive(limit))
        except _Failed as failed:
            program.close()
            if not failed.idle:  # one that had just gone, for want of work, is replaced
                raise
        except BaseException:  # Ctrl-C above all
            program.close()
            raise


def _array(head: dict[str, Any], data: NDArray[np.uint8]) -> NDArray[Any]:
    try:
        array: NDArray[Any] = data.view(np.dtype(head["dtype"])).reshape(head["shape"])
        return array
    except (ValueError, TypeError) as error:
        raise _Failed("the decoding program gave no sensible answer") from error


def _take() -> _Program:
    while True:
        with _lock:
            program = _idle.pop() if _idle else None
        if program is None:
            program = _Program()
            _running.add(program)
            return program
        if program.is_alive:
            return program
        program.close()


def _give_back(program: _Program, whole: bool) -> None:
    """Keeps a program that is ready for the next request; ends one that is in the middle of something."""
    program.fresh = False
    with _lock:
        kept = whole and program.process.returncode is None and len(_idle) < KEPT
        if kept:
            _idle.append(program)
    if not kept:
        program.close()


def close_all() -> None:
    """Ends all decoding programs; the next request starts one anew."""
    with _lock:
        _idle.clear()
    for program in list(_running):
        program.close()


def _forget() -> None:
    """Starts afresh in a forked process."""
    global _lock
    _lock = threading.Lock()
    for program in list(_running):
        program.forget()
    _idle.clear()
    _running.clear()


atexit.register(close_all)
os.register_at_fork(after_in_child=_forget)
