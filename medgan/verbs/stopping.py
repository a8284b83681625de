"""Stopping when asked to: Ctrl-C and SIGTERM wait for the end of a step."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from medgan.errors import Interrupted


@contextlib.contextmanager
def stoppable(at_once: str) -> Iterator[Callable[[], bool]]:
    """Lets Ctrl-C wait for the end of a step: a state saved in the middle of one would not go on as it was.

    So does SIGTERM, by which schedulers ask for an end. A signal that is ignored, as under `nohup`, stays so.

    Args:
        at_once: What is said when a second Ctrl-C does not wait; what the last report saved is kept then.

    Yields:
        Whether a stop was asked for.
    """
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    heard = [each for each in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(each) not in (signal.SIG_IGN, None)]
    before = {each: signal.signal(each, ask) for each in heard}
    try:
        yield lambda: asked
    except KeyboardInterrupt:
        raise Interrupted(at_once) from None
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
