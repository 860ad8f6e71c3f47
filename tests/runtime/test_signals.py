"""Signals wait until the state is consistent, and are then handled as they would have been."""

import signal
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from cryoeq.errors import Terminated
from cryoeq.runtime.signals import deferred_signals

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Python's own handlers, which a shell's background job does not have; pytest gets back those that it had."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_nothing_happens_without_a_signal() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with deferred_signals():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_ctrl_c_waits_for_the_end_of_the_block() -> None:
    done = []

    def work() -> None:
        with deferred_signals():
            signal.raise_signal(signal.SIGINT)
            done.append("after the signal")
        done.append("after the block")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["after the signal"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_is_called_once_with_its_signal() -> None:
    calls: list[tuple[int, bool]] = []

    def handler(number: int, frame: FrameType | None) -> None:
        calls.append((number, frame is not None))

    signal.signal(signal.SIGTERM, handler)
    with deferred_signals():
        signal.raise_signal(signal.SIGTERM)
        assert calls == []
    assert calls == [(signal.SIGTERM, True)]
    assert signal.getsignal(signal.SIGTERM) is handler


def terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def test_a_block_inside_a_block_waits_for_the_outer_one() -> None:
    """A checkpoint within a step."""
    signal.signal(signal.SIGTERM, terminate)
    done = []

    def work() -> None:
        with deferred_signals():
            with deferred_signals():
                signal.raise_signal(signal.SIGTERM)
            done.append("outer")

    with pytest.raises(Terminated):
        work()
    assert done == ["outer"]


def test_an_error_in_the_block_passes() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def work() -> None:
        with deferred_signals():
            raise ValueError("of the block")

    with pytest.raises(ValueError, match="of the block"):
        work()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_during_an_error_wins() -> None:
    """The program was asked to stop; the error is kept as the context."""
    signal.signal(signal.SIGTERM, terminate)

    def work() -> None:
        with deferred_signals():
            signal.raise_signal(signal.SIGTERM)
            raise ValueError("of the block")

    with pytest.raises(Terminated) as caught:
        work()
    assert isinstance(caught.value.__context__, ValueError)


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with deferred_signals():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN


def test_other_threads_work_as_they_are() -> None:
    done: list[str] = []

    def work() -> None:
        with deferred_signals():
            done.append("worked")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == ["worked"]
