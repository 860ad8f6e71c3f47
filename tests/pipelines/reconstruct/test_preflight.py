"""What cannot work is refused before anything is written: offsets, boxes, too few particles, too little memory."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cryoeq.config.loading import load_config
from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.domain.events import Note
from cryoeq.errors import ConfigError, CryoEqError, InsufficientMemoryError, ParticleFileError
from cryoeq.io.particles import ParticleStack
from cryoeq.pipelines.reconstruct import preflight
from cryoeq.pipelines.reconstruct.build import build_stack
from cryoeq.pipelines.reconstruct.reconstruct import reconstruct
from cryoeq.runtime.memory_limits import MemoryLimit

CPU = torch.device("cpu")
Check = Callable[..., list[Note]]


@pytest.fixture
def check(tiny_particles: Path) -> Check:
    """Check a run on the 48 particles of 16 px and 5 Å, or on the first of them."""

    def run(count: int | None = None, star: str = "particles.star", **settings: Any) -> list[Note]:
        config = configure(tiny_particles / star, settings)
        stack = build_stack(config, with_poses=config.pose_inference == "known")
        return list(preflight.check_run(config, stack if count is None else first(stack, count), CPU))

    return run


def configure(particles: Path, settings: dict[str, Any]) -> ReconstructConfig:
    named = {key.replace("__", "."): value for key, value in settings.items()}
    return load_config(ReconstructConfig, explicit={"particles": particles, "output": Path("none"), **named})


def first(stack: ParticleStack, count: int) -> ParticleStack:
    table = stack.table
    kept = replace(
        table,
        stack_index=table.stack_index[:count],
        slice_index=table.slice_index[:count],
        optics_index=table.optics_index[:count],
        ctf=None,
        micrograph_index=None,
    )
    return replace(stack, table=kept)


@pytest.mark.parametrize("mode", ["search", "hybrid", "amortized", "known"])
def test_the_memory_of_a_run_is_told(check: Check, mode: str) -> None:
    (note,) = check(star="truth.star", pose_inference=mode)
    assert note.level == "info"
    assert note.text.startswith("Memory: about ")


def test_offsets_are_at_most_half_the_box(check: Check) -> None:
    check(input__shift_sigma_angstrom=40.0)
    with pytest.raises(ConfigError, match=r"--shift-sigma 41 Å is more than half the box, which is 80 Å wide"):
        check(input__shift_sigma_angstrom=41.0)
    check(star="truth.star", input__shift_sigma_angstrom=41.0, pose_inference="known")  # which does not use it


@pytest.mark.parametrize("mode", ["search", "known"])
def test_the_particle_fits_into_the_box_and_fills_some_of_it(check: Check, mode: str) -> None:
    settings = {"star": "truth.star", "pose_inference": mode}
    for diameter in (16.0, 80.0):
        check(**settings, input__particle_diameter_angstrom=diameter)
    with pytest.raises(ConfigError, match=r"--particle-diameter 81 Å is more than the box, which is 80 Å wide.*larger"):
        check(**settings, input__particle_diameter_angstrom=81.0)
    with pytest.raises(ConfigError, match=r"--particle-diameter 15 Å is less than 0.2 of the box.*from 16 to 80 Å"):
        check(**settings, input__particle_diameter_angstrom=15.0)


def test_a_box_beyond_the_images(check: Check) -> None:
    with pytest.raises(ConfigError, match="working box of 18 px"):
        check(input__working_box_px=18)


@pytest.mark.parametrize(("processes", "needed"), [(1, 2), (3, 6)])
def test_too_few_particles(check: Check, monkeypatch: pytest.MonkeyPatch, processes: int, needed: int) -> None:
    monkeypatch.setattr(os, "environ", os.environ | torchrun(processes))
    check(needed)
    for mode in ("search", "hybrid", "amortized"):
        with pytest.raises(ParticleFileError, match=f"too few particles: {needed - 1}.* needs {needed} at least"):
            check(needed - 1, pose_inference=mode)


@pytest.mark.parametrize(("classes", "needed"), [(2, 40), ("auto", 20)])
def test_too_few_particles_for_the_classes(check: Check, classes: int | str, needed: int) -> None:
    check(needed, search__classes=classes)
    with pytest.raises(ParticleFileError, match=f"too few particles for --classes {classes}: {needed - 1}.*{needed}"):
        check(needed - 1, search__classes=classes)
    check(needed - 1)


@pytest.mark.parametrize("mode", ["search", "known"])
def test_a_ctf_that_cannot_be_refined_is_refused_before_the_run(tiny_particles: Path, mode: str) -> None:
    def check_images(field: str | None, **settings: Any) -> list[Note]:
        config = configure(
            tiny_particles / "truth.star", {"full_box__ctf_refinement": True, "pose_inference": mode} | settings
        )
        stack = build_stack(config, with_poses=mode == "known")
        ctf = stack.table.ctf
        if field is not None and ctf is not None:
            stack = replace(
                stack, table=replace(stack.table, ctf=replace(ctf, **{field: torch.ones(len(stack.table))}))
            )
        return list(preflight.check_run(config, stack, CPU))

    assert len(check_images(None)) == 1
    if mode == "known":  # nothing is refined
        assert len(check_images("is_premultiplied")) == 1
        return
    with pytest.raises(ParticleFileError, match="no CTF to refine, as --no-ctf leaves it unread"):
        check_images(None, input__with_ctf=False)
    with pytest.raises(ParticleFileError, match="multiplied by the stated CTF, which cannot be undone"):
        check_images("is_premultiplied")
    doubt, _ = check_images("is_phase_flipped")
    assert doubt.level == "warning"
    assert "the sign of the stated CTF" in doubt.text
    with pytest.raises(ConfigError, match=r"maps of 20.0 Å at best, by --max-resolution.*Å is needed"):
        check_images(None, full_box__max_resolution_angstrom=19.0)


def torchrun(processes: int) -> dict[str, str]:
    if processes == 1:
        return {}
    names = ("RANK", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT")
    sizes = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "GROUP_WORLD_SIZE": 1}
    return {"TORCHELASTIC_RUN_ID": "x"} | dict.fromkeys(names, "0") | {name: str(size) for name, size in sizes.items()}


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"input__working_box_px": 16, "input__shift_sigma_angstrom": 0.0}, "--shift-sigma"),
        ({"input__shift_sigma_angstrom": 40.0, "threads": 64}, "--shift-sigma"),
        ({"pose_inference": "amortized"}, "batch"),
    ],
)
def test_too_little_memory_is_refused_with_the_setting_that_would_help(
    check: Check, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], advice: str
) -> None:
    monkeypatch.setattr(preflight, "memory_limits", lambda: [MemoryLimit("the memory of a toaster", 10**6, 10**5)])
    for fixed in ("_FIGURES", "COMPILER_BYTES"):  # which no setting changes
        monkeypatch.setattr(f"cryoeq.reconstruction.memory.{fixed}", 0)
    monkeypatch.setattr(preflight, "COMPILER_BYTES", 0)
    with pytest.raises(InsufficientMemoryError, match=r"about [\d.]+ GB of memory.*toaster is 0.001 GB") as caught:
        check(**settings)
    assert advice in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_tight_machine_is_warned_of(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    (note,) = check()
    needed = 1e9 * float(note.text.split()[2])
    limit = MemoryLimit("the memory of this machine", round(0.95 * needed), preflight.memory_limits()[0].in_use)
    monkeypatch.setattr(preflight, "memory_limits", lambda: [limit])
    assert check()[0].level == "warning"


def test_processes_of_one_machine_share_its_memory(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ | torchrun(3))
    assert "by 3 processes; the memory" in check()[0].text


@pytest.mark.parametrize(
    "settings", [{"input__shift_sigma_angstrom": 9999.0}, {"input__working_box_px": 18}, {"device": "gpu"}]
)
def test_what_is_refused_leaves_nothing(tiny_particles: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    config = configure(tiny_particles / "particles.star", settings | {"output": tmp_path / "run"})
    with pytest.raises(CryoEqError):
        list(reconstruct(config))
    assert not (tmp_path / "run").exists()


def test_the_full_box_is_refined_as_far_as_memory_holds(tiny_particles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It never refuses a run: the box of the search is another matter."""
    config = configure(tiny_particles / "particles.star", {})
    table = build_stack(config, with_poses=False).table
    shells = []
    for room in (10**12, sum(preflight.full_box_memory(len(table), 16, 5).values()), 0):
        limit = MemoryLimit("the memory of a toaster", room + 10**5, 10**5)
        monkeypatch.setattr(preflight, "memory_limits", lambda limit=limit: [limit])
        shells.append(preflight.affordable_shell(config, table, CPU))
    assert shells == [7, 5, 1]
    limited = configure(tiny_particles / "particles.star", {"full_box__max_resolution_angstrom": 20.0})
    monkeypatch.setattr(preflight, "memory_limits", list)
    assert preflight.affordable_shell(limited, table, CPU) == 4


@pytest.mark.parametrize("classes", [1, 2])
def test_the_full_box_counts_for_one_structure_and_for_several(
    tiny_particles: Path, monkeypatch: pytest.MonkeyPatch, classes: int
) -> None:
    config = configure(tiny_particles / "particles.star", {"search__classes": classes, "input__working_box_px": 16})
    stack = build_stack(config, with_poses=False)
    stack = replace(stack, table=replace(stack.table, box_size_px=24, pixel_size_angstrom=3.0))
    monkeypatch.setattr(preflight, "memory_limits", list)
    monkeypatch.setattr(preflight, "full_box_memory", lambda *_: {"maps at full size": 7 * 10**12})
    (note,) = preflight.check_run(config, stack, CPU)
    assert "7e+03 GB" in note.text
