"""CTF refinement between maps and poses: poses and maps use what it has mended."""

import re
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any

import pytest
import torch

from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Event, Note
from cryoeq.physics.ctf import with_defocus_moved
from cryoeq.pipelines.reconstruct import ctf
from cryoeq.pipelines.reconstruct.ctf import refine_ctf_and_poses, with_ctf
from cryoeq.pipelines.reconstruct.posed_particles import PosedParticles
from pipeline_events import events_and_result

Make = Callable[..., Any]
COUNT = 240
CPU = torch.device("cpu")


class _Poses:
    """A refinement that leaves all poses, and keeps the datasets that it was given."""

    def __init__(self) -> None:
        self.given: list[tuple[ParticleDataset, str]] = []

    def __call__(
        self, dataset: ParticleDataset, posed: PosedParticles, name: str
    ) -> Generator[Event, None, PosedParticles]:
        yield from ()
        self.given.append((dataset, name))
        return posed


def rms_error(one: Any, other: Any) -> float:
    return float((one.defocus_u_angstrom - other.defocus_u_angstrom).square().mean().sqrt())


def test_poses_and_maps_follow_with_the_ctf_that_was_mended(make_known: Make) -> None:
    known = make_known(COUNT, sigma=0.5)
    true = known.dataset.table.ctf
    error = 600 * torch.randn(COUNT, generator=torch.Generator().manual_seed(1))
    dataset = with_ctf(known.dataset, with_defocus_moved(true, error))
    posed, refine = PosedParticles(known.poses, torch.arange(COUNT) % 2 + 1), _Poses()
    events, found = events_and_result(refine_ctf_and_poses(dataset, posed, refine, "C1", CPU))
    assert rms_error(found.ctf, true) < 0.8 * rms_error(dataset.table.ctf, true)
    (first, name), (second, other) = refine.given
    assert (name, other) == ("ctf1_", "ctf2_")
    assert rms_error(first.table.ctf, true) < rms_error(dataset.table.ctf, true)
    assert second.table.ctf is found.ctf
    assert "CTF refinement: defocus moved by" in events[-1].text


def test_maps_that_are_too_coarse_leave_the_ctf_as_stated(make_known: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    known = make_known(COUNT, sigma=0.5)
    posed, refine = PosedParticles(known.poses, torch.arange(COUNT) % 2 + 1), _Poses()
    monkeypatch.setattr(ctf, "needed_resolution_angstrom", lambda _: 9.5)
    (note,), found = events_and_result(refine_ctf_and_poses(known.dataset, posed, refine, "C1", CPU))
    assert (found, refine.given) == (posed, [])
    assert note.level == "warning"
    assert re.search(r"left out, the stated CTF kept: the half maps agree to \d+\.\d Å .* 9.5 Å is needed", note.text)


@pytest.mark.parametrize(("wrong", "warned"), [(2600.0, False), (5500.0, True)])
def test_errors_beyond_the_range_widen_it_once_and_are_told(make_known: Make, wrong: float, warned: bool) -> None:
    known = make_known(COUNT, sigma=0.2)
    group = torch.arange(COUNT) // 20
    error = torch.where(group < 3, wrong, 0.0)
    true = known.dataset.table.ctf
    table = replace(known.dataset.table, ctf=with_defocus_moved(true, error), micrograph_index=group)
    posed, refine = PosedParticles(known.poses, torch.arange(COUNT) % 2 + 1), _Poses()
    events, found = events_and_result(
        refine_ctf_and_poses(replace(known.dataset, table=table), posed, refine, "C1", CPU)
    )
    told = [event.text for event in events if isinstance(event, Note) and "±4000 Å" in event.text]
    assert bool(told) is warned
    assert warned or rms_error(found.ctf, true) < 300


def test_no_ctf_leaves_the_particles_as_they_are(make_known: Make) -> None:
    dataset = make_known(8).dataset
    assert with_ctf(dataset, None) is dataset
    assert ctf.with_ctf(dataset, dataset.table.ctf[torch.arange(8)]).table.ctf is not dataset.table.ctf
