"""The classes of a recorded run, or all of a run of one: maps, half maps, particles, and facts for the verdict."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.domain.pose import Poses
from cryoeq.domain.volume import HalfMaps, Volume
from cryoeq.errors import MapFileError
from cryoeq.evaluation.class_verdict import ClassFacts, emptied_classes
from cryoeq.evaluation.orientations import OrientationSummary, summarise_orientations
from cryoeq.evaluation.resolution import HALF_MAP_THRESHOLD, require_mask
from cryoeq.evaluation.unexplained import JUNK_CUT
from cryoeq.evaluation.verdict import RunFacts, RunVerdict
from cryoeq.io.euler import rotations_from_euler_deg
from cryoeq.io.labels import JUNK_PROBABILITY, MAX_PROBABILITY
from cryoeq.io.mrc import read_map
from cryoeq.io.particles import star_ctf, star_euler_deg, star_junk_probability, star_poses
from cryoeq.io.star import StarTable
from cryoeq.outputs.map_names import MapNames, map_names
from cryoeq.outputs.report_contents import ClassContents, ComparedParticles
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.class_choice import rows_of_class
from cryoeq.pipelines.reconstruct.build import initial_shell, searched_box
from cryoeq.pipelines.reconstruct.half_map_resolution import HalfMapResolution, compare_half_maps
from cryoeq.pipelines.reconstruct.metrics import ClassMetrics, ReconstructionMetrics


@dataclass(frozen=True)
class ClassOfRun:
    """What a run left of one class, or of all where there is one; None where it left nothing.

    Args:
        number: of the class, from 1.
        rows: its rows of ``run_data.star``.
        volume: map of all its particles.
        postprocessed: post-processed map within the mask.
        resolved: agreement of its half maps.
        poses: poses of its particles.
        views: summary of their orientations.
        junk: their probability of being junk.
        facts: on it, as of a run of it alone.
        recorded: metrics of the class; None for a run of one.
    """

    number: int
    rows: Int[Tensor, " rows"]
    volume: Volume | None
    postprocessed: Volume | None
    resolved: HalfMapResolution | None
    poses: Poses | None
    views: OrientationSummary | None
    junk: Float[Tensor, " rows"] | None
    facts: RunFacts
    recorded: ClassMetrics | None

    @property
    def class_facts(self) -> ClassFacts:
        """Facts for the verdict on a class; of a run of one the whole is the class."""
        reproduced, share = (None, 1.0) if self.recorded is None else (self.recorded.reproduced, self.recorded.share)
        return ClassFacts(self.number, self.facts, reproduced, share)

    def contents(self, row: Mapping[str, str], particles: ComparedParticles | str) -> ClassContents:
        """What the report shows of it.

        Args:
            row: its row of the table of classes.
            particles: its particles with their predictions, or the reason why there are none.
        """
        resolved = self.resolved
        return ClassContents(
            number=self.number,
            facts=row,
            volume=self.volume,
            postprocessed=self.postprocessed,
            curves=None if resolved is None else resolved.curves,
            ctf_power=None if resolved is None else resolved.ctf_power,
            dips=() if resolved is None else resolved.dips,
            poses=self.poses,
            particles=particles,
        )

    def row(self, verdict: RunVerdict) -> dict[str, str]:
        """Its row of the table of classes.

        Args:
            verdict: on the class.
        """
        recorded, junk = self.recorded, self.junk
        share = "–" if recorded is None else f"{recorded.share:.1%}"
        again = "–" if recorded is None or recorded.reproduced is None else f"{recorded.reproduced:.0%}"
        is_junk = "–" if junk is None or not len(junk) else f"{float((junk >= JUNK_CUT).float().mean()):.1%}"
        resolutions = self.resolution_facts()
        return {
            "Particles": f"{len(self.rows):,}",
            "Share": share,
            "Half maps, unmasked": resolutions.get("Half maps, unmasked", "–"),
            "Corrected for the mask": resolutions.get("Half maps, corrected for the mask", "–"),
            "Symmetry": "–" if recorded is None else recorded.symmetry,
            "In the matching class of another start": again,
            "Junk": is_junk,
            "Views: E_od, SCF*": next(iter(self.view_facts().values()), "–"),
            "Verdict": verdict.level,
        }

    def resolution_facts(self) -> dict[str, str]:
        """Resolution of the half maps, by label."""
        found, resolution = dict[str, str](), self.facts.resolution_angstrom
        if resolution is not None:
            found["Half maps, unmasked"] = f"{resolution:.1f} Å" if math.isfinite(resolution) else "no resolution"
        corrected = None if self.resolved is None else self.resolved.resolution_angstrom("corrected")
        if corrected is not None:
            found["Half maps, corrected for the mask"] = f"{corrected:.1f} Å"
        return found

    def view_facts(self) -> dict[str, str]:
        """How even the views are, by label."""
        views = self.views
        return {} if views is None else {"Views: E_od, SCF*": f"{views.efficiency:.2f}, {views.scf_star:.2f}"}


def read_class(run: RunFolder, job: Mapping[str, Any], star: StarTable | None, number: int) -> ClassOfRun:
    """Read what a run left of one of its classes.

    Args:
        run: run folder of a reconstruction, finished or not.
        job: its record, by ``read_reconstruction_job``.
        star: its ``run_data.star``; None without.
        number: of the class, from 1.

    Raises:
        CryoEqError: a file is damaged, or does not fit the others.
    """
    metrics = ReconstructionMetrics.from_json(job.get("results", {}))
    names, recorded = map_names(number, metrics.n_classes), metrics.classes[number - 1] if metrics.classes else None
    none = torch.zeros(0, dtype=torch.long)
    rows = none if star is None else rows_of_class(star, number if metrics.n_classes > 1 else None)
    of_class = None if star is None or not len(rows) else star.rows(rows.tolist())
    volume, resolved = _read_map(run, names.whole), _read_halves(run, job, of_class, names)
    symmetry = job["settings"]["search"]["symmetry"] if recorded is None else recorded.symmetry
    views = _summarise_views(symmetry, of_class)
    metrics = metrics if recorded is None else metrics.of_class(number)
    facts = _facts(job, metrics, volume, resolved, of_class, views)
    if recorded is not None:
        dependent = facts.dependent_halves or (None if resolved is None else resolved.dependence)
        facts = replace(facts, starts=0, symmetry=symmetry, dependent_halves=dependent)
    return ClassOfRun(
        number=number,
        rows=rows,
        volume=volume,
        postprocessed=_read_surface(run, resolved, names),
        resolved=resolved,
        poses=None if of_class is None else star_poses(of_class),
        views=views,
        junk=_junk_probabilities(of_class),
        facts=facts,
        recorded=recorded,
    )


def _junk_probabilities(star: StarTable | None) -> Float[Tensor, " rows"] | None:
    return None if star is None or JUNK_PROBABILITY not in star.particles else star_junk_probability(star)


def _read_map(run: RunFolder, name: str) -> Volume | None:
    path = run.path(name)
    return read_map(path) if path.is_file() else None


def _read_halves(
    run: RunFolder, job: Mapping[str, Any], star: StarTable | None, names: MapNames
) -> HalfMapResolution | None:
    """Agreement of the half maps, within the mask of the run; None where they are not there."""
    first, second = (_read_map(run, name) for name in (names.first_half, names.second_half))
    if first is None or second is None:
        return None
    ctf = star_ctf(star) if star is not None and job["settings"]["input"]["with_ctf"] else None
    mask = _read_map(run, names.mask)
    if mask is not None:
        require_mask(mask, first, name=str(run.path(names.mask)))
    return compare_half_maps(HalfMaps(first, second), mask, ctf)


def _read_surface(run: RunFolder, resolved: HalfMapResolution | None, names: MapNames) -> Volume | None:
    """The post-processed map within the mask of the run; None for runs without."""
    postprocessed = _read_map(run, names.postprocessed)
    if postprocessed is None or resolved is None or resolved.mask is None:
        return None
    if (n := postprocessed.box_size_px) != resolved.mask.box_size_px:
        found = f"{run.path(names.postprocessed)} has a box of {n} px, the half maps {resolved.mask.box_size_px} px"
        raise MapFileError(found, "Expected the files of one run", "Restore the file, or remove it")
    return replace(postprocessed, values=postprocessed.values * resolved.mask.values)


def _summarise_views(symmetry: str, star: StarTable | None) -> OrientationSummary | None:
    if star is None:
        return None
    euler, generator = star_euler_deg(star), torch.Generator().manual_seed(0)
    rotations = rotations_from_euler_deg(euler)
    return summarise_orientations(rotations, euler[:, 2].deg2rad(), symmetry=symmetry, generator=generator)


def _shared_angstrom(settings: Mapping[str, Any], volume: Volume) -> float | None:
    """Resolution up to which both half sets started from one map, or from given poses; None where they did not."""
    side_angstrom = volume.box_size_px * volume.pixel_size_angstrom
    match settings["pose_inference"]:
        case "search" | "hybrid" as mode:
            last = searched_box(settings["input"]["working_box_px"], mode, volume.box_size_px) // 2 - 1
            return float(side_angstrom / min(last, max(settings["search"]["consensus"]["shells"])))
        case "refine" if settings["refine"]["local"] and settings["refine"]["keep_half_sets"]:
            return None
        case "refine":
            searched = searched_box(settings["input"]["working_box_px"], "refine", volume.box_size_px)
            widest = min(settings["search"]["half_sets"]["max_exhaustive_shell"], searched // 2 - 1)
            return side_angstrom / initial_shell(settings["refine"]["ini_high_angstrom"], side_angstrom, widest)
        case _:
            return None


def _facts(
    job: Mapping[str, Any],
    metrics: ReconstructionMetrics,
    volume: Volume | None,
    resolved: HalfMapResolution | None,
    star: StarTable | None,
    views: OrientationSummary | None,
) -> RunFacts:
    settings = job["settings"]
    curves = None if resolved is None else resolved.curves
    side = 0.0 if volume is None else volume.box_size_px * volume.pixel_size_angstrom
    asked, left = settings["search"].get("classes", 1), metrics.n_classes
    has_probabilities = star is not None and MAX_PROBABILITY in star.particles
    return RunFacts(
        status=job["status"],
        error=job.get("results", {}).get("error"),
        pose_inference=settings["pose_inference"],
        starts=settings["search"]["multi_start"]["min"],
        side_angstrom=side,
        resolution_angstrom=None if curves is None else curves.resolutions_angstrom(HALF_MAP_THRESHOLD)["unmasked"],
        shared_angstrom=None if volume is None else _shared_angstrom(settings, volume),
        probabilities=star.floats(MAX_PROBABILITY).tolist() if star is not None and has_probabilities else None,
        warnings=[note["text"] for note in job.get("notes", []) if note["level"] == "warning"],
        scf_star=None if views is None else views.scf_star,
        dependent_halves=metrics.dependent_halves,
        nonspherical_share=metrics.nonspherical_share,
        nonspherical_angstrom=metrics.nonspherical_resolution_angstrom,
        unexplained_share=metrics.unexplained_share,
        explained_signal=metrics.explained_signal_share,
        junk_share=metrics.junk_share,
        wrong_optimum_share=metrics.wrong_optimum_share,
        hand=metrics.hand,
        symmetry=settings["search"]["symmetry"],
        apparent_symmetry=metrics.apparent_symmetry,
        emptied=emptied_classes(asked, left) if asked != "auto" and asked > left else None,
        has_given_poses=settings["pose_inference"] == "refine" and settings["refine"]["local"],
    )
