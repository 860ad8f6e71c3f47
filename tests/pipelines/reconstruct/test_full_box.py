"""Whether a run is refined at the full box, and the solvent that it flattens."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cryoeq.config.fsc import MaskConfig
from cryoeq.config.loading import load_config
from cryoeq.config.reconstruct import ReconstructConfig, RefinementConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Note, Progress
from cryoeq.domain.pose import Poses
from cryoeq.domain.volume import HalfMaps, Volume
from cryoeq.geometry.map_filter import low_pass
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.reconstruct import full_box
from cryoeq.pipelines.reconstruct.checkpoints import Checkpoints
from cryoeq.pipelines.reconstruct.full_box import (
    ClassRows,
    full_box_settings,
    refine_classes_where_it_gains,
    refine_where_it_gains,
    solvent_finder,
)
from cryoeq.pipelines.reconstruct.half_map_resolution import curves_in_automatic_mask
from cryoeq.pipelines.reconstruct.posed_particles import PosedParticles
from cryoeq.reconstruction.full_box_refinement import refine_at_full_box
from cryoeq.reconstruction.state import no_checkpoints
from known_particles import MakeDataset, N
from pipeline_events import events_and_result

COUNT, ANGPIX, SIDE = 4, 5.0, 80.0
Decide = Callable[..., tuple[bool, str]]


@pytest.fixture
def stored(make_dataset: MakeDataset) -> ParticleDataset:
    return make_dataset(torch.zeros(COUNT, N, N))


@pytest.fixture
def decide(stored: ParticleDataset, monkeypatch: pytest.MonkeyPatch) -> Decide:
    """Whether particles that were posed to a shell are refined, and what is said."""
    refined = PosedParticles(Poses(torch.eye(3).expand(COUNT, 3, 3), torch.zeros(COUNT, 2)), None)

    def refine(*_: object) -> Any:
        yield from ()
        return refined

    monkeypatch.setattr(full_box, "refine_posed_particles", refine)

    def of(shell: int | None, searched_px: int = 12, kind: type = ReconstructConfig, **changes: object) -> Any:
        explicit = {"particles": Path("p.star"), "output": Path("out")} | {
            key.replace("__", "."): value for key, value in changes.items()
        }
        searched = replace(stored, box_size_px=searched_px, pixel_size_angstrom=SIDE / searched_px)
        posed = replace(refined, half_set=torch.arange(COUNT) % 2 + 1, resolution_shell=shell)
        events, found = events_and_result(
            refine_where_it_gains(
                load_config(kind, explicit=explicit), searched, stored, posed, torch.device("cpu"), no_checkpoints
            )
        )
        return found is refined, " ".join(event.text for event in events)

    return of


def test_it_is_refined_where_the_search_came_far_in_its_box(decide: Decide) -> None:
    assert decide(3) == (True, "")
    is_refined, said = decide(2)
    assert not is_refined
    assert "agree to 40.0 Å only, where the box of the search would hold 13.3 Å" in said


def test_it_is_not_where_nothing_more_is_stored_or_wanted(decide: Decide) -> None:
    for shell, changes in ((7, {"searched_px": N}), (None, {}), (5, {"full_box__iterations": 0})):
        assert decide(shell, **changes) == (False, "")
    is_refined, said = decide(5, full_box__max_resolution_angstrom=18.0)
    assert not is_refined
    assert "agree to 16.0 Å already, beyond --max-resolution 18" in said
    assert decide(5, full_box__max_resolution_angstrom=14.0) == (True, "")


def test_what_was_asked_of_a_refinement_that_there_is_not_is_said(decide: Decide) -> None:
    asked = {"full_box__ctf_refinement": True, "full_box__max_resolution_angstrom": 18.0}
    is_refined, said = decide(7, searched_px=N, **asked)
    assert not is_refined
    assert "the search used all stored pixels): full_box.max_resolution_angstrom, full_box.ctf_refinement." in said
    assert "full_box.iterations is 0" in decide(5, full_box__iterations=0, **asked)[1]


def test_what_was_asked_for_is_refined_in_any_box(decide: Decide) -> None:
    for shell, box in ((1, 12), (7, N)):
        assert decide(shell, box, RefinementConfig, refine__reference="map.mrc") == (True, "")
        assert decide(shell, box, RefinementConfig, refine__local=True, full_box__max_resolution_angstrom=30.0)[0]


@pytest.mark.usefixtures("one_thread")
def test_each_class_is_refined_as_alone_and_other_particles_keep_their_poses(make_known: Callable[..., Any]) -> None:
    count, cpu = 60, torch.device("cpu")
    known = make_known(count, sigma=0.5)
    searched = replace(known.dataset, box_size_px=12, pixel_size_angstrom=SIDE / 12)
    config = load_config(
        ReconstructConfig,
        explicit={"particles": "p.star", "output": "out", "search.classes": 3},
        overrides=["full_box.iterations=1", "full_box.ctf_refinement=true"],
    )
    posed = PosedParticles(
        known.poses, torch.arange(count) % 2 + 1, known.poses, rotation_sigma_rad=torch.ones(count), resolution_shell=9
    )
    rows = torch.arange(count)
    classes = [
        ClassRows(rows[(rows // 2) % 3 == 0], "C2", 4),
        ClassRows(rows[(rows // 2) % 3 == 1], "C1", 4),
        ClassRows(rows[(rows // 2) % 3 == 2], "C1", 1),
    ]
    names = []

    def checkpoint(name: str, step: Any) -> Any:
        names.append(name)
        return step

    events, found = events_and_result(
        refine_classes_where_it_gains(
            config, searched, known.dataset, posed, classes, device=cpu, checkpoint=checkpoint
        )
    )
    assert [name for name in names if name.endswith("full_box_1")] == ["class1_full_box_1", "class2_full_box_1"]
    for part in classes[:2]:
        search = config.search.model_copy(update={"classes": 1, "symmetry": part.symmetry})
        alone = config.model_copy(update={"search": search})
        of_class = posed.rows(part.rows, part.resolution_shell)
        expected = events_and_result(
            full_box.refine_posed_particles(alone, known.dataset.rows(part.rows), of_class, cpu, no_checkpoints)
        )[1]
        assert found.half_poses is not None
        for ours, theirs in ((found.poses, expected.poses), (found.half_poses, expected.half_poses)):
            assert torch.equal(ours.rotations[part.rows], theirs.rotations)
            assert torch.equal(ours.shifts_angstrom[part.rows], theirs.shifts_angstrom)
            assert not torch.equal(ours.rotations[part.rows], known.poses.rotations[part.rows])
        assert torch.equal(found.rotation_sigma_rad[part.rows], expected.rotation_sigma_rad)
    last = classes[2].rows
    assert torch.equal(found.poses.rotations[last], known.poses.rotations[last])
    assert torch.equal(found.half_set, posed.half_set)
    (reason,) = [event.text for event in events if isinstance(event, Note) and event.text.startswith("Class 3")]
    assert "Class 3: No refinement at the full box: the half maps agree to 80.0 Å only" in reason


def test_classes_are_not_refined_where_no_more_pixels_are_stored(stored: ParticleDataset) -> None:
    posed = PosedParticles(Poses(torch.eye(3).expand(COUNT, 3, 3), torch.zeros(COUNT, 2)), None)
    config = load_config(
        ReconstructConfig,
        explicit={"particles": "p.star", "output": "out", "search.classes": 2, "full_box.max_resolution_angstrom": 9.0},
    )
    classes = [ClassRows(torch.tensor([number]), "C1", 5) for number in (0, 1)]
    steps = refine_classes_where_it_gains(
        config, stored, stored, posed, classes, device=torch.device("cpu"), checkpoint=no_checkpoints
    )
    (note,), found = events_and_result(steps)
    assert found is posed
    assert "Without effect" in note.text


def test_the_limit_is_a_shell_below_nyquist(stored: ParticleDataset) -> None:
    for limit, last in ((None, 7), (16.0, 5), (1.0, 7), (1000.0, 3)):
        config = load_config(
            ReconstructConfig,
            explicit={"particles": "p.star", "output": "out", "full_box.max_resolution_angstrom": limit},
        )
        settings = full_box_settings(config, stored, 6)
        assert (settings.last_shell, settings.first_shell) == (last, min(6, last))


@pytest.mark.parametrize("takes", [{"refine.local": True}, {"refine.local": True, "refine.keep_half_sets": True}])
def test_only_half_sets_of_a_refinement_are_trusted_from_the_start(
    stored: ParticleDataset, takes: dict[str, Any]
) -> None:
    config = load_config(RefinementConfig, explicit={"particles": "p.star", "output": "out"} | takes)
    assert full_box_settings(config, stored, 6).is_independent == ("refine.keep_half_sets" in takes)


def test_the_solvent_is_outside_of_what_both_half_maps_show() -> None:
    n, generator = 40, torch.Generator().manual_seed(0)
    x = torch.arange(n) - n // 2
    radius = (x[:, None, None].square() + x[:, None].square() + x.square()).float().sqrt()
    signal = low_pass((radius < 8).float() * (1 + 0.3 * torch.randn(n, n, n, generator=generator)), 15)
    first, second = (signal + 0.1 * torch.randn(n, n, n, generator=generator) for _ in range(2))
    found = solvent_finder(4.0 * n)((first, second))
    assert found is not None
    assert float(found.mask[radius < 7].min()) > 0.9
    assert float(found.mask[radius > 17].max()) == 0
    final = curves_in_automatic_mask(HalfMaps(Volume(first, 4.0), Volume(second, 4.0)), MaskConfig()).mask
    assert final is not None
    assert (found.mask <= final.values).all(), "tighter than that of the final curves"
    assert float(found.mask.sum()) < 0.8 * float(final.values.sum())
    assert found.fsc.shape == (n // 2 + 1,)
    assert float(found.fsc[1:10].min()) > 0.5


def test_half_maps_without_agreement_have_no_solvent() -> None:
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.randn(24, 24, 24, generator=generator) for _ in range(2))
    assert solvent_finder(96.0)((first, -first + 0.1 * second)) is None


@pytest.mark.usefixtures("one_thread")
def test_a_resumed_refinement_keeps_its_decisions(
    make_known: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The use of the non-uniform filter and the last shell, whatever noise and memory would say now."""
    count, cpu = 40, torch.device("cpu")
    known = make_known(count, sigma=0.5)
    half_set = torch.arange(count) % 2 + 1
    posed = PosedParticles(known.poses, half_set, known.poses, resolution_shell=4)
    config = load_config(
        ReconstructConfig,
        explicit={"particles": "p.star", "output": "out", "full_box.non_uniform": True},
        overrides=["full_box.iterations=2"],
    )

    def run(*, resume: bool, gain: float, shell: int) -> tuple[str, Any]:
        monkeypatch.setattr("cryoeq.pipelines.reconstruct.nonuniform.noise_gain", lambda *_: gain)
        monkeypatch.setattr(full_box, "affordable_shell", lambda *_: shell)
        checkpoints = Checkpoints.of_run(RunFolder(tmp_path), count, cpu, resume=resume)
        steps = full_box.refine_posed_particles(config, known.dataset, posed, cpu, checkpoints.run)
        events, found = events_and_result(steps)
        return " ".join(event.text for event in events if isinstance(event, Note)), found

    said, expected = run(resume=False, gain=0.001, shell=5)
    assert "gain 0.001 in correlation" in said
    assert "memory holds no more shells" in said
    (tmp_path / "checkpoints" / "full_box_2.pt").unlink(missing_ok=True)
    again, found = run(resume=True, gain=0.5, shell=7)
    assert "Resumed from checkpoint full_box_1." in again
    assert "gain 0.001 in correlation" in again
    assert "memory holds no more shells" in again
    assert torch.equal(found.poses.rotations, expected.poses.rotations)
    assert "was left out" in run(resume=False, gain=0.5, shell=7)[0]


@pytest.mark.usefixtures("one_thread")
def test_a_refinement_that_was_stopped_goes_on_from_its_last_iteration(
    make_known: Callable[..., Any], observe: Callable[..., Any], tmp_path: Path
) -> None:
    known = make_known(40, sigma=0.5)
    particles, half_set = observe(known.dataset), torch.arange(40) % 2 + 1
    config = load_config(
        ReconstructConfig, explicit={"particles": "p.star", "output": "out"}, overrides=["full_box.iterations=2"]
    )
    settings = full_box_settings(config, known.dataset, 4)

    def load(radius: int) -> Any:
        yield Progress("reading", 1, 1)
        return particles.within(radius, N)

    def run(*, resume: bool) -> tuple[list[str], Any]:
        checkpoints = Checkpoints.of_run(RunFolder(tmp_path), 40, torch.device("cpu"), resume=resume)
        steps = refine_at_full_box(known.pose_set, half_set, load, settings, checkpoint=checkpoints.run)
        events, found = events_and_result(steps)
        return [event.text for event in events if isinstance(event, Note) and event.text.startswith("Resumed")], found

    resumed, expected = run(resume=False)
    assert resumed == []
    (tmp_path / "checkpoints" / "full_box_2.pt").unlink()
    resumed, found = run(resume=True)
    assert resumed == ["Resumed from checkpoint full_box_0.", "Resumed from checkpoint full_box_1."]
    for ours, theirs in ((found.half_poses, expected.half_poses), (found.refined.poses, expected.refined.poses)):
        assert torch.equal(ours.rotations, theirs.rotations)
        assert torch.equal(ours.shifts_px, theirs.shifts_px)
