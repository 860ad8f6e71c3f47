"""``cryoeq demo``: simulation, reconstruction and evaluation on a packaged model, with a verdict."""

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cryoeq.config.demo import DemoConfig
from cryoeq.config.evaluate import EvaluateConfig
from cryoeq.config.fsc import FscConfig
from cryoeq.config.loading import load_config, packaged_file
from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.config.simulate import SimulateConfig
from cryoeq.domain.events import Event, Note, Report
from cryoeq.errors import DivergedError
from cryoeq.io.mrc import read_map
from cryoeq.io.particles import read_particles
from cryoeq.io.text import read_json, write_json
from cryoeq.outputs.reconstruction_plots import plot_comparison
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.evaluate import evaluate
from cryoeq.pipelines.reconstruct.reconstruct import reconstruct
from cryoeq.pipelines.resolution.fsc import fsc
from cryoeq.pipelines.simulate.simulate import simulate
from cryoeq.runtime.device import choose_device

MODEL = "data_samples/1wcm_ca.pdb.gz"
COMPARISON = "comparison.png"

# The structure counts as found when both hold. Random poses have a median error of 126 degrees, and their map agrees
# with the truth in the first few shells only, as any blob of the right size does.
MAX_MEDIAN_DEG = 10.0
MAX_SHELLS_LOST = 2


@dataclass(frozen=True)
class Setting:
    """Particles of the demo.

    Args:
        box_size_px: side of the images.
        count: number of particles.
        snr: variance of the signal divided by that of the noise; about 0.1 in real data.
        shift_sigma_angstrom: standard deviation of the shifts per axis.
    """

    box_size_px: int
    count: int
    snr: float
    shift_sigma_angstrom: float


FULL = Setting(box_size_px=32, count=2000, snr=0.1, shift_sigma_angstrom=12.5)
QUICK = Setting(box_size_px=32, count=1000, snr=0.1, shift_sigma_angstrom=12.5)


@dataclass(frozen=True)
class Verdict:
    """Whether the structure was found, with the metrics behind it.

    Args:
        median_rotation_error_deg: median rotation error of the inferred poses.
        resolution_angstrom: resolution at FSC 0.5 with the truth of the map from inferred poses; None for no shell.
        shell: that resolution as a shell; 0 for none.
        known_pose_resolution_angstrom: resolution of the map from the true poses, the upper bound for these images.
        known_pose_shell: that resolution as a shell; 0 for none.
    """

    median_rotation_error_deg: float
    resolution_angstrom: float | None
    shell: int
    known_pose_resolution_angstrom: float | None
    known_pose_shell: int

    @property
    def is_found(self) -> bool:
        """Whether the poses are right and the map is nearly as good as from true poses."""
        is_pose_right = self.median_rotation_error_deg < MAX_MEDIAN_DEG
        return is_pose_right and self.known_pose_shell > 0 and self.shell >= self.known_pose_shell - MAX_SHELLS_LOST


def demonstrate(config: DemoConfig) -> Iterator[Event]:
    """Simulate particles, reconstruct them without their poses, compare with the truth, and report the verdict.

    Yields:
        The events of all steps, and the verdict.

    Raises:
        DivergedError: the structure was not found.
    """
    started_s = time.monotonic()
    setting = QUICK if config.quick else FULL
    model = packaged_file(MODEL)
    settings = config.model_dump(mode="json")
    device = str(choose_device(config.device))
    with RunFolder.create(config.output, command=sys.argv, settings=settings, inputs=[model], device=device) as run:
        particles, truth = run.path("particles"), run.path("particles") / "truth.star"
        yield from _step("1 of 4: simulated particles of RNA polymerase II, with noise; their poses are set aside")
        yield from simulate(_simulation(config, setting, model, particles))
        yield from _step("2 of 4: reconstruction without poses")
        yield from reconstruct(_reconstruction(config, setting, particles / "particles.star", run.path("map"), None))
        yield from _step("3 of 4: reconstruction from the true poses, as an upper bound")
        yield from reconstruct(_reconstruction(config, setting, truth, run.path("known_poses"), "known"))
        yield from _step("4 of 4: comparison with the truth")
        yield from _compare(config, run)
        _draw_comparison(run)
        verdict = _read_verdict(run)
        results = asdict(verdict) | {"is_found": verdict.is_found, "seconds": round(time.monotonic() - started_s, 1)}
        write_json(run.path("verdict.json"), results)
        run.finish("done" if verdict.is_found else "failed", results)
    yield from _report_verdict(verdict, run)


def _step(title: str) -> Iterator[Event]:
    yield Note(f"Step {title}.")


def _simulation(config: DemoConfig, setting: Setting, model: Path, output: Path) -> SimulateConfig:
    return SimulateConfig(
        model=model,
        output=output,
        box_size_px=setting.box_size_px,
        count=setting.count,
        snr=setting.snr,
        shift_sigma_angstrom=setting.shift_sigma_angstrom,
        seed=config.seed,
        device=config.device,
    )


def _reconstruction(
    config: DemoConfig, setting: Setting, particles: Path, output: Path, pose_inference: str | None
) -> ReconstructConfig:
    explicit = {
        "particles": particles,
        "output": output,
        "pose_inference": pose_inference,
        "seed": config.seed,
        "device": config.device,
    }
    return load_config(ReconstructConfig, explicit=explicit)


def _compare(config: DemoConfig, run: RunFolder) -> Iterator[Event]:
    """Compare the poses and both maps with the truth; only the map without poses needs alignment."""
    yield from evaluate(
        EvaluateConfig(
            predicted=run.path("map") / "run_data.star",
            truth=run.path("particles") / "truth.star",
            output=run.path("poses_against_truth"),
            seed=config.seed,
            device=config.device,
        )
    )
    for name, with_alignment in (("map", True), ("known_poses", False)):
        yield from fsc(
            FscConfig(
                first=run.path(name) / "run_class001.mrc",
                second=run.path("particles") / "truth_volume.mrc",
                with_alignment=with_alignment,
                output=run.path(f"{name}_against_truth"),
                seed=config.seed,
                device=config.device,
            )
        )


def _draw_comparison(run: RunFolder) -> None:
    folder = run.path("particles")
    particles = read_particles(folder / "particles.star").images.read(torch.arange(5))
    recovered, truth = read_map(run.path("map_against_truth") / "aligned.mrc"), read_map(folder / "truth_volume.mrc")
    plot_comparison(run.path(COMPARISON), particles, recovered, truth)


def _read_verdict(run: RunFolder) -> Verdict:
    poses = read_json(run.path("poses_against_truth") / "pose_errors.json")
    inferred = read_json(run.path("map_against_truth") / "fsc.json")
    known = read_json(run.path("known_poses_against_truth") / "fsc.json")
    return Verdict(
        median_rotation_error_deg=poses["rotation_deg"]["median"],
        resolution_angstrom=inferred["resolution_angstrom_half"]["unmasked"],
        shell=_shell(inferred),
        known_pose_resolution_angstrom=known["resolution_angstrom_half"]["unmasked"],
        known_pose_shell=_shell(known),
    )


def _shell(results: dict[str, Any]) -> int:
    resolution = results["resolution_angstrom_half"]["unmasked"]
    return 0 if resolution is None else round(results["box_size_px"] * results["pixel_size_angstrom"] / resolution)


def _report_verdict(verdict: Verdict, run: RunFolder) -> Iterator[Event]:
    yield Report(
        "The structure was found" if verdict.is_found else "The structure was NOT found",
        {
            "median rotation error": f"{verdict.median_rotation_error_deg:.1f}° (found: below {MAX_MEDIAN_DEG:g}°)",
            "FSC 0.5 with the truth, without poses": _resolution_text(verdict.resolution_angstrom, verdict.shell),
            "FSC 0.5 with the truth, true poses": _resolution_text(
                verdict.known_pose_resolution_angstrom, verdict.known_pose_shell
            ),
            "shells lost": f"{verdict.known_pose_shell - verdict.shell} (found: at most {MAX_SHELLS_LOST})",
            "report": str(run.path("map") / "report.html"),
            "picture of particles, map and truth": str(run.path(COMPARISON)),
        },
    )
    if not verdict.is_found:
        raise DivergedError(
            f"the structure was not found in {run.folder}",
            f"It counts as found with a median rotation error below {MAX_MEDIAN_DEG:g}° and at most {MAX_SHELLS_LOST} "
            "shells lost",
            "Try another --seed; if several fail, please report it",
        )


def _resolution_text(resolution_angstrom: float | None, shell: int) -> str:
    return "at no shell" if resolution_angstrom is None else f"{resolution_angstrom:.1f} Å (shell {shell})"
