"""Streams, events and waiting: which memory is touched in no known order."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from pretended_cuda.machine import MACHINE, PretendedCudaError


def launch(read: set[int], written: set[int], what: str) -> None:
    """A kernel on the current stream.

    Args:
        read: data pointers of what it reads.
        written: data pointers of what it writes.
        what: the kernel, and the line that started it.

    Raises:
        PretendedCudaError: another stream uses the same memory, and no event orders the two.
    """
    if MACHINE.streams == 1:
        return
    me = MACHINE.thread.stream
    with MACHINE.lock:
        clock = MACHINE.clock[me]
        _merge(clock, MACHINE.host_clock)
        clock[me] = number = clock.get(me, 0) + 1
        for pointer in read | written:
            stream, then, who = MACHINE.writes.get(pointer, (me, 0, ""))
            if stream != me and clock.get(stream, 0) < then:
                _refuse(f"{what} on stream {me} uses memory that {who} on stream {stream} wrote; no event orders them")
        for pointer in written:
            for stream, (then, who) in MACHINE.reads.get(pointer, {}).items():
                if stream != me and clock.get(stream, 0) < then:
                    _refuse(f"{what} on stream {me} overwrites memory that {who} on stream {stream} reads; unordered")
            MACHINE.writes[pointer] = (me, number, what)
            MACHINE.reads.pop(pointer, None)
        for pointer in read - written:
            MACHINE.reads[pointer][me] = (number, what)


def _refuse(message: str) -> None:
    MACHINE.complain(message)
    raise PretendedCudaError(message)


def _merge(clock: dict[int, int], seen: dict[int, int]) -> None:
    for stream, number in seen.items():
        clock[stream] = max(clock.get(stream, 0), number)


def put_off(deliver: object) -> None:
    """Deliver an asynchronous copy of the current stream once the host has waited for it."""
    me = MACHINE.thread.stream
    with MACHINE.lock:
        MACHINE.clock[me][me] = number = MACHINE.clock[me].get(me, 0) + 1
        MACHINE.pending.append((me, number, deliver))  # type: ignore[arg-type]


def _host_has_seen(*clocks: dict[int, int]) -> None:
    with MACHINE.lock:
        for clock in clocks:
            _merge(MACHINE.host_clock, clock)
        due = [entry for entry in MACHINE.pending if entry[1] <= MACHINE.host_clock.get(entry[0], 0)]
        MACHINE.pending = [entry for entry in MACHINE.pending if entry not in due]
    for _, _, deliver in due:
        deliver()


def waited(why: str, site: str) -> None:
    """The host has waited for the current stream."""
    MACHINE.waits[site, why] += 1
    _host_has_seen(MACHINE.clock[MACHINE.thread.stream])


class Event:
    """torch.cuda.Event."""

    def __init__(
        self, enable_timing: bool = False, *, blocking: bool = False, interprocess: bool = False, external: bool = False
    ) -> None:
        self.clock: dict[int, int] = {}

    def record(self, stream: "Stream | None" = None) -> None:
        self.clock = dict(MACHINE.clock[MACHINE.thread.stream if stream is None else stream.number])

    def wait(self, stream: "Stream | None" = None) -> None:
        (stream or current_stream()).wait_event(self)

    def synchronize(self) -> None:
        MACHINE.waits[MACHINE.site(), "Event.synchronize"] += 1
        _host_has_seen(self.clock)

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: "Event") -> float:
        return 1.0


class Stream:
    """torch.cuda.Stream."""

    def __init__(self, device: object = None, priority: int = 0, *, number: int | None = None) -> None:
        with MACHINE.lock:
            if number is None:
                number, MACHINE.streams = MACHINE.streams, MACHINE.streams + 1
                MACHINE.clock[number] = {number: 0}
        self.number = self.cuda_stream = self.stream_id = number
        self.device = torch.device("cuda", MACHINE.index(device))

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        with MACHINE.lock:
            _merge(MACHINE.clock[self.number], event.clock)

    def wait_stream(self, stream: "Stream") -> None:
        self.wait_event(stream.record_event())

    def synchronize(self) -> None:
        MACHINE.waits[MACHINE.site(), "Stream.synchronize"] += 1
        _host_has_seen(MACHINE.clock[self.number])

    def query(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other.number == self.number

    def __hash__(self) -> int:
        return hash(self.number)


def current_stream(device: object = None) -> Stream:
    return Stream(device, number=MACHINE.thread.stream)


def default_stream(device: object = None) -> Stream:
    return Stream(device, number=0)


def set_stream(stream: Stream) -> None:
    MACHINE.thread.stream = stream.number


@contextlib.contextmanager
def stream_context(stream: Stream | None) -> Iterator[None]:
    """torch.cuda.stream."""
    if stream is None:
        yield
        return
    before = MACHINE.thread.stream, MACHINE.thread.device
    MACHINE.thread.stream, MACHINE.thread.device = stream.number, stream.device.index or 0
    try:
        yield
    finally:
        MACHINE.thread.stream, MACHINE.thread.device = before


def synchronize(device: object = None) -> None:
    """torch.cuda.synchronize."""
    MACHINE.waits[MACHINE.site(), "torch.cuda.synchronize"] += 1
    _host_has_seen(*MACHINE.clock.values())


def record_stream(self: Tensor, stream: Stream) -> None:
    """torch.Tensor.record_stream."""
    if not self.is_cuda:
        raise NotImplementedError("Could not run 'aten::record_stream' with arguments from the 'CPU' backend.")
    MACHINE.recorded[self.untyped_storage().data_ptr()].add(stream.number)
