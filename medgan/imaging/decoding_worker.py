"""The program that decodes for `decoding.py`: a script that answers requests on its standard input until that ends.

A message is a JSON head, then raw bytes; nothing in it is ever executed. What a codec makes of hostile bytes - a crash,
a panic, a hang, all the memory - happens here, where it ends this program and no other.
"""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import struct
import sys
from typing import Any

#: Length of the JSON head and of the raw bytes that follow it.
MESSAGE = struct.Struct(">IQ")
#: What Python, its libraries and the codecs may take beside the pixels.
INTERPRETER_BYTES = 256 * 2**20
#: More time for more pixels: the slowest codec decodes several million a second, on a machine that does nothing else.
SECONDS_PER_MEGAPIXEL = 2.0
#: Without work for so long, the program ends: nobody pays for it while a network trains.
IDLE_SECONDS = 120.0
#: Exit code of a program that was left without work.
LEFT_IDLE = 0

_LARGEST_ADDRESS = 2**62


def seconds_for(pixels: int, base: float) -> float:
    """How long decoding a frame of so many pixels may take, in seconds."""
    return base + SECONDS_PER_MEGAPIXEL * pixels / 1e6


def main() -> None:
    """Answers requests until the other side closes the pipe, or forgets about this program."""
    source, target = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # what a codec prints must not get into the messages, nor onto anyone's screen
        os.dup2(nowhere, stream)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _no_core()
    while True:
        if not select.select([source], [], [], IDLE_SECONDS)[0]:
            sys.exit(LEFT_IDLE)
        request = _receive(source)
        if request is None:
            sys.exit(LEFT_IDLE)
        if "path" in request:  # so that the same packages are found, wherever the other side found them
            sys.path[:] = request.pop("path")
        _answer(request, target)


def _answer(request: dict[str, Any], target: int) -> None:
    """Decodes what is asked for and sends it, frame by frame, up to the one that is called the last."""
    base: float = request["seconds"]
    # The default action of the alarm ends the program, even where a codec keeps the interpreter's lock for ever.
    signal.setitimer(signal.ITIMER_REAL, seconds_for(request.get("pixels", 0), base))
    _cap(request["limit"])
    try:
        from medgan.imaging.decoders import DECODERS

        for head, pixels in DECODERS[request["kind"]](request):
            signal.setitimer(signal.ITIMER_REAL, 0)
            _send(target, head, pixels)
            if head.get("last"):
                return
            signal.setitimer(signal.ITIMER_REAL, seconds_for(head.get("pixels", request.get("pixels", 0)), base))
        answer: dict[str, Any] = {"refused": ("PIX_DECODE_FAILED", "fewer images came out than there should be",
                                              "Decompress the file with the tool of its maker")}
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the Rust codecs raise PanicException, which is no Exception
        answer = {"refused": _refusal(error)}
    signal.setitimer(signal.ITIMER_REAL, 0)
    _send(target, answer, None)


def _refusal(error: BaseException) -> tuple[str, str, str]:
    """Code, cause and fix of what went wrong."""
    from medgan.errors import Refused

    if isinstance(error, Refused):
        return error.code, error.why, error.fix
    if isinstance(error, MemoryError) or "MemoryError" in str(error) or "nable to allocate" in str(error):
        return "LIMIT", "decoding it takes more memory than it may", "Give a smaller image, or raise data.max_gib"
    return ("PIX_DECODE_FAILED", f"the compressed pixels cannot be decoded ({type(error).__name__})",
            "Decompress the file with the tool of its maker")


def _receive(source: int) -> dict[str, Any] | None:
    """The next request; there is never more than one on the way."""
    data = bytearray()
    while len(data) < MESSAGE.size or len(data) < MESSAGE.size + MESSAGE.unpack_from(data)[0]:
        part = os.read(source, 2**16)
        if not part:
            return None
        data += part
    request: dict[str, Any] = json.loads(data[MESSAGE.size:])
    return request


def _send(target: int, head: dict[str, Any], pixels: memoryview | None) -> None:
    text = json.dumps(head).encode()
    parts = [memoryview(MESSAGE.pack(len(text), 0 if pixels is None else pixels.nbytes) + text)]
    if pixels is not None:
        parts.append(pixels)
    while parts:
        sent = os.writev(target, parts)
        while parts and sent >= len(parts[0]):
            sent -= len(parts.pop(0))
        if parts:
            parts[0] = parts[0][sent:]


def _no_core() -> None:
    """A crash leaves no image of the memory, which holds a patient's pixels."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):
        pass


@functools.lru_cache(maxsize=1)  # asked again only where the limit is another one
def _cap(limit: int) -> None:
    """Lets this program take `limit` bytes more than it has, and what the interpreter needs."""
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        wanted = min(taken + INTERPRETER_BYTES + limit, _LARGEST_ADDRESS)
        resource.setrlimit(resource.RLIMIT_AS, (wanted if hard < 0 else min(wanted, hard), hard))
    except (ImportError, ValueError, OSError):  # a system without these limits still has the checks of the readers
        pass


if __name__ == "__main__":
    main()
