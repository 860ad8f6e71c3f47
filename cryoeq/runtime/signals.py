"""Signals deferred until the state is consistent."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def deferred_signals() -> Iterator[Callable[[], bool]]:
    """Defer Ctrl-C, SIGTERM and SIGUSR1 to the end of the block, where their usual handlers run.

    Outside the main thread, which alone receives signals, nothing is deferred.

    Yields:
        A function that says whether a signal is waiting.
    """
    received: list[tuple[int, FrameType | None]] = []

    def remember(number: int, frame: FrameType | None) -> None:
        received.append((number, frame))

    try:
        before = {number: signal.signal(number, remember) for number in _SIGNALS}
    except ValueError:  # signal.signal works in the main thread only
        yield lambda: False
        return
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late, frame in received:
            handler = before[signal.Signals(late)]
            if callable(handler):
                handler(late, frame)
            elif handler == signal.SIG_DFL:
                signal.raise_signal(late)
