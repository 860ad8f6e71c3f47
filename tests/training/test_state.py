"""The whole state of a training: what is random, and what a checkpoint keeps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cryoeq.errors import DivergedError
from cryoeq.io.checkpoint import load_checkpoint, save_checkpoint
from cryoeq.runtime.random_streams import Stream, stream_generator
from cryoeq.training.autoencoder.loop import fit
from cryoeq.training.autoencoder.state import TrainingState

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


def drawn(generator: torch.Generator) -> list[int]:
    return torch.randint(2**31, (8,), generator=generator).tolist()


def run(begin: Any, steps: int | None = None) -> list[dict[str, float]]:
    metrics = []
    for event in fit(begin.state, begin.dataset, begin.plane, begin.settings):
        metrics.append(dict(event.metrics))
        if len(metrics) == steps:
            break
    return metrics


def assert_equal(first: object, second: object) -> None:
    """Bit by bit, through all containers; NaN equals itself."""
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert isinstance(second, torch.Tensor)
        assert first.dtype == second.dtype
        assert torch.equal(first.nan_to_num(nan=1.25), second.nan_to_num(nan=1.25))
    elif isinstance(first, dict):
        assert isinstance(second, dict)
        assert list(first) == list(second)
        for key in first:
            assert_equal(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert isinstance(second, list | tuple)
        assert len(first) == len(second)
        for ours, theirs in zip(first, second, strict=True):
            assert_equal(ours, theirs)
    else:
        assert first == second or (first != first and second != second)  # noqa: PLR0124 - NaN


def test_randomness_depends_on_seed_and_step_only(make_known: Callable, start: Callable) -> None:
    begin = start(make_known(8).dataset)
    state = begin.state

    def at(seed: int, step: int) -> TrainingState:
        state.seed, state.step = seed, step
        return state

    first = drawn(at(3, 5).step_generator())
    run(begin, 1)
    torch.manual_seed(77)
    assert drawn(at(3, 5).step_generator()) == first
    draws = {tuple(drawn(at(seed, step).step_generator())) for seed in range(5) for step in range(50)}
    orders = {tuple(at(seed, 0).epoch_order(epoch, 100).tolist()) for seed in range(5) for epoch in range(50)}
    assert len(draws) == len(orders) == 250
    assert all(sorted(order) == list(range(100)) for order in orders)


def test_an_epoch_visits_each_particle_once(make_known: Callable, start: Callable) -> None:
    begin = start(make_known(40).dataset)  # three batches of 16, 16 and 8
    before = begin.state.rotations.clone()
    run(begin, 2)
    assert int((begin.state.rotations != before).any(-1).any(-1).sum()) == 32
    run(begin, 1)
    assert bool((begin.state.rotations != before).any(-1).any(-1).all())


def test_the_global_generator_is_left_alone(make_known: Callable, start: Callable) -> None:
    known = make_known(16)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    run(start(known.dataset))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    "settings",
    [
        {"encoder.group": "d4", "decoder.kind": "voxel"},
        {"decoder.kind": "implicit", "loss.symmetric": True, "input.shift_sigma_angstrom": 0.0},
        {"loss.synthetic_weight": 0.0},
    ],
    ids=["d4", "implicit and symmetric", "autoencoder"],
)
def test_a_training_in_two_parts_is_the_training_in_one(
    tmp_path: Path, make_known: Callable, start: Callable, settings: dict[str, object]
) -> None:
    """Through a checkpoint on the disk, in the midst of an epoch, into a state that began elsewhere."""
    dataset = make_known(40, sigma=0.5).dataset
    whole = start(dataset, settings)
    expected = run(whole)
    total = whole.settings.schedule.total_steps
    assert total == len(expected) == 6

    first = start(dataset, settings)
    metrics = run(first, 4)
    save_checkpoint(tmp_path / "checkpoint.pt", first.state.to_checkpoint())
    second = start(dataset, settings | {"seed": 12})
    second.state.restore(load_checkpoint(tmp_path / "checkpoint.pt", CPU))
    metrics += run(second)

    assert_equal(metrics, expected)
    assert_equal(second.state.to_checkpoint(), whole.state.to_checkpoint())
    assert len(second.state.history["loss"]) == 2


def test_a_checkpoint_brings_everything_back(tmp_path: Path, make_known: Callable, start: Callable) -> None:
    dataset = make_known(20).dataset
    begin = start(dataset)
    run(begin, 3)
    saved = begin.state.to_checkpoint()
    save_checkpoint(tmp_path / "checkpoint.pt", saved)
    loaded = load_checkpoint(tmp_path / "checkpoint.pt", CPU)
    other = start(dataset, {"seed": 9})
    assert not torch.equal(other.state.decoder.to_map(), begin.state.decoder.to_map())
    other.state.restore(loaded)
    assert_equal(other.state.to_checkpoint(), saved)
    assert drawn(other.state.step_generator()) == drawn(begin.state.step_generator())


def test_another_seed_is_another_training(make_known: Callable, start: Callable) -> None:
    dataset = make_known(16).dataset
    losses = [run(start(dataset, {"seed": seed}))[-1]["loss"] for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("cause", ["rate", "pixels"])
def test_numbers_that_blow_up_are_reported(make_known: Callable, start: Callable, cause: str) -> None:
    known = make_known(16)
    begin = start(known.dataset, {"training.decoder_learning_rate": 1e30} if cause == "rate" else {})
    if cause == "pixels":
        known.dataset.cache[3, 4, 5] = torch.nan
    with pytest.raises(DivergedError, match=r"the loss is (inf|nan)\..*--set"):
        run(begin)
    assert begin.state.step < begin.settings.schedule.total_steps


@pytest.mark.gpu
def test_a_training_on_the_gpu_can_go_on(tmp_path: Path, make_known: Callable, start: Callable) -> None:
    dataset = make_known(20).dataset
    device = torch.device("cuda:0")
    begin = start(dataset, device=device)
    run(begin, 3)
    save_checkpoint(tmp_path / "checkpoint.pt", begin.state.to_checkpoint())
    again = start(dataset, device=device)
    again.state.restore(load_checkpoint(tmp_path / "checkpoint.pt", device))
    run(again)
    assert again.state.step == again.settings.schedule.total_steps


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_streams_of_one_seed_share_no_number(seed: int) -> None:
    """A reconstruction with the seed of a simulation must not draw that simulation's poses."""
    streams = [stream_generator(seed, stream, number) for stream in Stream for number in (0, 1)]
    streams.append(torch.Generator().manual_seed(seed))  # the weights at the start
    drawn = torch.stack([torch.rand(1000, generator=generator) for generator in streams])
    assert len(drawn.unique()) > 0.99 * drawn.numel(), "few float32 of 16 million coincide by chance"
    agreement = torch.corrcoef(drawn) - torch.eye(len(drawn))
    assert agreement.abs().max() < 0.2
