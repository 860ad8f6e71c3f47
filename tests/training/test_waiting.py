"""A training step never reads a number: a GPU would have to finish its queue first."""

import math
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cryoeq.errors import DivergedError
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.runtime.batching import MicroBatcher
from cryoeq.runtime.distributed import BatchShard
from cryoeq.training.autoencoder import loop
from cryoeq.training.autoencoder import step as step_module
from cryoeq.training.autoencoder.loop import fit
from cryoeq.training.autoencoder.state import TrainingState
from cryoeq.training.autoencoder.step import observe, transform

pytestmark = pytest.mark.usefixtures("one_thread")

# Their results are Python numbers, have a shape that depends on values, or are built from Python numbers.
WAITING = (
    "_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique", "_unique2", "unique_dim", "bincount",
    "repeat_interleave", "lift_fresh", "equal", "histc",
)  # fmt: skip


class NoWaiting(TorchDispatchMode):
    """Refuses operations that wait for a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in WAITING, f"{func} in a training step"
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            assert all(index is None or index.dtype != torch.bool for index in args[1]), f"{func} by a mask"
        return func(*args, **(kwargs or {}))


class NoCopies(TorchDispatchMode):
    """Refuses copies from one device to another."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        moved = func.overloadpacket.__name__ == "_to_copy" and options.get("device") is not None
        assert not moved or args[0].device == torch.device(options["device"]), "a copy from another device"
        return func(*args, **options)


@pytest.mark.parametrize(
    "statement",
    [
        lambda values: float(values.sum()),
        lambda values: values[values > 0],
        lambda values: values.nonzero(),
        lambda values: values.new_tensor([1.0, 2.0]),
        lambda values: bool(values.isfinite().all()),
    ],
    ids=["a number", "a mask", "indices", "a list", "a test"],
)
def test_what_is_refused(statement: Callable[[torch.Tensor], object]) -> None:
    with NoWaiting(), pytest.raises(AssertionError, match=r"in a training step|by a mask"):
        statement(torch.randn(5))


SETTINGS = {
    "dense": {"encoder.group": "d4"},
    "implicit, symmetric": {
        "encoder.group": "so2", "encoder.design.trunk": "conv", "decoder.kind": "implicit", "loss.symmetric": True,
        "training.image_loss_start": 0.0,
    },
    "adaptive": {
        "encoder.group": "so2", "encoder.design.trunk": "conv", "encoder.design.sampler": "adaptive",
        "training.augment": True,
    },
    "learnt degree": {
        "encoder.group": "d4", "encoder.design.trunk": "conv", "encoder.design.degree": "learnt",
        "training.image_loss_start": 0.0,
    },
}  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_step_waits_for_nothing(make_known: Callable, start: Callable, settings: dict[str, object]) -> None:
    begin = start(make_known(12).dataset, settings | {"training.synthetic_batch_size": 8})
    found_nonfinite = torch.zeros(())
    for step in range(2):  # the first one fills caches
        begin.state.step = step
        batch = observe(begin.dataset, torch.arange(12), begin.plane, begin.state.data_scale)
        if step == 0:
            loop._step(begin.state, batch, begin.plane, begin.settings, found_nonfinite, MicroBatcher())
            continue
        with NoWaiting():
            loop._step(begin.state, batch, begin.plane, begin.settings, found_nonfinite, MicroBatcher())


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_step_asks_the_cpu_for_nothing(
    make_known: Callable, start: Callable, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]
) -> None:
    """On a device that holds no numbers: none can be read, and tensors of the CPU do not go together with its own."""
    device = torch.device("meta")
    known = make_known(12)
    begin = start(known.dataset, settings | {"training.synthetic_batch_size": 8, "training.augment": False})
    state, near = begin.state, begin.plane
    plane = HalfPlane(near.box_size_px, *(part.to(device) for part in (near.coords, near.flat_index, near.weights)))
    plane.__dict__["_squared_radii"] = near._squared_radii  # what is found out once
    plane.__dict__["shell_counts"] = near.shell_counts.to(device)
    plane.__dict__["_pairs"] = tuple(part.to(device) for part in near._pairs)
    state.encoder.to(device), state.decoder.to(device)
    state.residual_power, state.rotations = state.residual_power.to(device), state.rotations.to(device)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # there is none for it
    monkeypatch.setattr(state.optimizer, "step", lambda: None)
    monkeypatch.setattr(TrainingState, "step_generator", lambda *_: None)
    monkeypatch.setattr(step_module, "random_rotations", lambda count, _: torch.randn(count, 3, 3, device=device))
    batch = known.dataset.batch(torch.arange(12)).to(device)
    batch = transform(batch, plane, 5.0, state.data_scale, BatchShard.local(12))
    found_nonfinite = torch.zeros((), device=device)
    with NoCopies():
        metrics = loop._step(state, batch, plane, begin.settings, found_nonfinite, MicroBatcher())
    assert metrics.device == device
    assert metrics.shape == (4,)


def all_of(value: Any) -> Iterator[object]:
    """Every tensor and number of a checkpoint."""
    if isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from all_of(part)
    else:
        yield value


def assert_same_state(first: Any, second: Any) -> None:
    ours, theirs = (list(all_of(state.to_checkpoint())) for state in (first, second))
    for one, other in zip(ours, theirs, strict=True):
        if isinstance(one, torch.Tensor):
            assert torch.equal(one, other)
        else:
            assert one == other or math.isnan(one)


def test_metrics_that_are_read_late_are_the_same(make_known: Callable, start: Callable) -> None:
    dataset = make_known(40).dataset  # six steps
    each, late = start(dataset), start(dataset)
    expected = [event.metrics for event in fit(each.state, dataset, each.plane, each.settings)]
    events = list(fit(late.state, dataset, late.plane, replace(late.settings, log_every=4)))
    assert [event.done for event in events] == [4, 6]
    assert events[-1].metrics == expected[-1]
    assert_same_state(late.state, each.state)


@pytest.mark.parametrize("log_every", [1, 4])
def test_the_state_after_a_loss_that_is_not_finite(
    make_known: Callable, start: Callable, monkeypatch: pytest.MonkeyPatch, log_every: int
) -> None:
    """The state is that before the step, whatever followed before its loss was read; its particles are named."""
    dataset = make_known(40).dataset
    good, bad = start(dataset), start(dataset)
    with closing(fit(good.state, dataset, good.plane, good.settings)) as events:
        while next(events).done < 4:
            pass
    original = loop.autoencoding_loss
    rows: list[list[int]] = []

    def with_infinite_loss(state: Any, batch: Any, *arguments: Any, **options: Any) -> object:
        rows.append(batch.indices.tolist())
        result = original(state, batch, *arguments, **options)
        return replace(result, loss=result.loss * torch.inf) if state.step == 4 else result

    monkeypatch.setattr(loop, "autoencoding_loss", with_infinite_loss)
    with pytest.raises(DivergedError, match="training step 4: the loss is inf") as caught:
        list(fit(bad.state, dataset, bad.plane, replace(bad.settings, log_every=log_every)))
    assert caught.value.rows == tuple(rows[4])
    assert len(rows) == (5 if log_every == 1 else 6)
    for state in (bad.state, good.state):
        for group in state.optimizer.param_groups:
            group["lr"] = 0.0  # each step sets it
    assert_same_state(bad.state, good.state)
