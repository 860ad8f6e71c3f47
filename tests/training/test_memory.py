"""A step for which memory does not suffice goes by micro-batches, and has the same loss and gradients."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cryoeq.config.loading import load_config
from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.domain.events import Note, Progress
from cryoeq.errors import ConfigError
from cryoeq.pipelines.reconstruct import batch_size
from cryoeq.pipelines.reconstruct.batch_size import choose_batch_size, find_batch_size
from cryoeq.pipelines.reconstruct.build_autoencoder import build_settings
from cryoeq.runtime.batching import MicroBatcher
from cryoeq.training.autoencoder import step as step_module
from cryoeq.training.autoencoder.loop import fit, fits_in_memory
from cryoeq.training.autoencoder.step import autoencoding_loss, observe

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Not more than five images fit; the sizes that were requested."""
    predict, tried = step_module.predict, []

    def limited(decoder: Any, proposals: Any, *rest: Any) -> torch.Tensor:
        tried.append(len(proposals))
        if len(proposals) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(decoder, proposals, *rest)

    monkeypatch.setattr(step_module, "predict", limited)
    return tried


@pytest.mark.parametrize("trains_encoder", [False, True])
def test_micro_batches_have_the_gradients_of_the_batch(
    make_known: Callable, start: Callable, request: pytest.FixtureRequest, trains_encoder: bool
) -> None:
    known = make_known(14)
    begin = start(known.dataset, {"encoder.group": "d4"})
    batch = observe(known.dataset, torch.arange(14), begin.plane, begin.state.data_scale)
    parameters = [*begin.state.encoder.parameters(), *begin.state.decoder.parameters()]
    micro_batcher = MicroBatcher()

    def loss_and_gradients() -> tuple[Any, list[torch.Tensor | None]]:
        result = autoencoding_loss(
            begin.state, batch, begin.plane, begin.plane.within(5.0), wta_epsilon=0.1, is_symmetric=True, centred=False,
            trains_encoder=trains_encoder, micro_batcher=micro_batcher,
        )  # fmt: skip
        return result, list(torch.autograd.grad(result.loss, parameters, allow_unused=True))

    whole, expected = loss_and_gradients()
    assert micro_batcher.max_rows is None
    request.getfixturevalue("little_memory")
    split, found = loss_and_gradients()
    assert micro_batcher.max_rows == 4
    torch.testing.assert_close(split.loss, whole.loss)
    torch.testing.assert_close(split.error, whole.error)
    torch.testing.assert_close(split.residual_power, whole.residual_power)
    assert torch.equal(split.rotations, whole.rotations)
    assert sum(gradient is not None for gradient in found) == sum(gradient is not None for gradient in expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5 * float(theirs.abs().max()) + 1e-9)


def test_a_training_continues_and_reports_it(make_known: Callable, start: Callable, little_memory: list[int]) -> None:
    dataset = make_known(32).dataset
    begin = start(dataset, {"training.epochs": 1})
    events = list(fit(begin.state, dataset, begin.plane, begin.settings))
    assert [type(event) for event in events] == [Note, Progress, Progress]
    assert "micro-batch reduced to 4 images" in events[0].text
    assert little_memory[:3] == [16, 8, 4]
    assert max(little_memory[3:]) == 4  # the next step does not try again


def test_an_image_that_does_not_fit_alone_is_an_error(
    make_known: Callable, start: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(step_module, "predict", full)
    dataset = make_known(8).dataset
    begin = start(dataset)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        next(fit(begin.state, dataset, begin.plane, begin.settings))


def test_a_probe_shows_what_fits_and_changes_nothing(
    make_known: Callable, start: Callable, little_memory: list[int]
) -> None:
    dataset = make_known(8).dataset
    begin, other = start(dataset), start(dataset)
    drawn = torch.random.get_rng_state()
    found = [
        fits_in_memory(begin.state, dataset, begin.plane, replace(begin.settings, batch_size=count))
        for count in (5, 12)
    ]
    assert found == [True, False]
    assert little_memory[-1] == 3  # of 12
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert begin.state.step == 0
    assert not begin.state.optimizer.state
    for ours, theirs in zip(begin.state.running_statistics, other.state.running_statistics, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(begin.state.decoder.to_map(), other.state.decoder.to_map())


@pytest.mark.parametrize(("room", "most", "expected"), [(300, 4096, 192), (10**6, 1000, 512), (10, 4096, 64)])
def test_a_batch_is_doubled_while_it_fits(room: int, most: int, expected: int) -> None:
    tried: list[int] = []

    def fits(count: int) -> bool:
        tried.append(count)
        return count <= room

    assert find_batch_size(fits, 64, most) == expected
    assert tried == [64 * 2**k for k in range(len(tried))]


def test_who_chooses_the_batch(make_known: Callable, start: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_known(80).dataset
    begin = start(dataset)
    paths = {"particles": Path("none.star"), "output": Path("none")}
    given = load_config(ReconstructConfig, explicit=paths | {"training.batch_size": 12})
    automatic = load_config(ReconstructConfig, explicit=paths | {"training.batch_size": "auto"})
    rest = (begin.state, dataset, begin.plane)
    assert choose_batch_size(given, *rest, None) is None
    assert choose_batch_size(automatic, *rest, None) == 64  # on a CPU
    assert choose_batch_size(automatic, *rest, {"batch_size": 48}) == 48  # of the run that goes on
    settings = build_settings(automatic, dataset, 48)
    assert (settings.batch_size, settings.synthetic_batch_size) == (48, 48)
    assert build_settings(given, dataset, 48).batch_size == 12
    monkeypatch.setattr(batch_size, "world_size", lambda: 2)
    with pytest.raises(ConfigError, match="auto on 2 processes"):
        choose_batch_size(automatic, *rest, None)
