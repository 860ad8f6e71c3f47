"""The limit of the data: particles posed by matching them to the true map, over all poses and offsets, then refined.

    python tests/benchmarks/match_truth.py PARTICLES.star --map TRUTH.mrc --start TRUTH.star -o DIR [--shift-sigma A]

For ``ab_initio.py --limit``. No search without a map can do better on average than this one with the map. The true
poses serve once: to find the scale between map and images. Where they are not known, ``--like MAP.mrc`` gives the true
map the power per shell of a map that was made from the images.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from scoring import with_power_of

from cryoeq.config.loading import load_config
from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.domain.events import result_of
from cryoeq.domain.pose import Poses, PoseSet
from cryoeq.geometry.disk_harmonics import disk_harmonics, support_radius
from cryoeq.io.mrc import read_map
from cryoeq.io.particles import ParticleStack, read_particles, write_particle_star
from cryoeq.physics.projection import extract_slices, prepare_slices
from cryoeq.pipelines.reconstruct.build import build_ab_initio_settings, build_dataset, build_stack
from cryoeq.reconstruction.expectation import expectation_step, hexagonal_offsets, offset_step_px
from cryoeq.reconstruction.global_realignment import search_poses_exhaustively
from cryoeq.reconstruction.local_refinement import RefinedPoses, refine_poses
from cryoeq.reconstruction.particle_transforms import ParticleTransforms, load_transforms
from cryoeq.reconstruction.pose_likelihood import PoseLikelihood, pose_grid
from cryoeq.reconstruction.reference import Reference
from cryoeq.reconstruction.state import RefinementSettings

_OFFSETS = 7  # sampled around that of the coarse search, where particles are shifted
_OFFSETS_PER_WAVELENGTH = 2.5


def match(
    particles: ParticleTransforms, volume: torch.Tensor, settings: RefinementSettings, generator: torch.Generator
) -> RefinedPoses:
    """The most likely pose found by a coarse search with all offsets, and a fine one around the offset found.

    Args:
        particles: CTF-multiplied transforms of all particles.
        volume: the map, at their scale.
        settings: of the search.
        generator: random number generator of grids.
    """
    n, rows = particles.plane.box_size_px, torch.arange(len(particles))
    reference, radius = Reference.prepare(volume, particles), settings.max_exhaustive_shell
    coarse = search_poses_exhaustively(particles, rows, reference, settings, generator)
    first = refine(particles, reference, coarse.poses, settings)
    harmonics = disk_harmonics(n, radius, support_radius(settings.mask_radius, n), volume.device)
    likelihood = PoseLikelihood.build(reference, pose_grid(radius, generator, volume.device), harmonics)
    count = _OFFSETS if settings.shift_sigma_px > 0 else 1
    step_px = offset_step_px(n, radius, _OFFSETS_PER_WAVELENGTH)
    offsets = hexagonal_offsets(first.poses.shifts_px, step_px, count, generator)
    steps = expectation_step(particles.within(radius, n), likelihood, offsets, shift_sigma_px=settings.shift_sigma_px)
    second = refine(particles, reference, result_of(steps).posterior.poses, settings)
    best = torch.where(second.log_likelihood > first.log_likelihood, rows + len(particles), rows)
    return RefinedPoses.cat([first, second]).rows(best)


def refine(
    particles: ParticleTransforms, reference: Reference, poses: PoseSet, settings: RefinementSettings
) -> RefinedPoses:
    """To the nearest maximum of the likelihood, at 10 cycles per box and then at all.

    Args:
        particles: CTF-multiplied transforms of all particles.
        reference: the map.
        poses: initial poses.
        settings: standard deviation of the offsets.
    """
    n = particles.plane.box_size_px
    for radius in (min(10, n // 2 - 1), n // 2 - 1):
        subset = particles.within(radius, n)
        refined = refine_poses(subset, reference, poses, shift_sigma_px=settings.shift_sigma_px)
        poses = refined.poses
    return refined


def scaled_to(
    particles: ParticleTransforms, volume: torch.Tensor, truth: Poses, pixel_size_angstrom: float
) -> torch.Tensor:
    """The map times the number by which its projections explain the particles best.

    Args:
        particles: CTF-multiplied transforms of all particles.
        volume: the true map.
        truth: the true poses.
        pixel_size_angstrom: of the particles.
    """
    plane = particles.plane
    poses = PoseSet.from_angstrom(truth, pixel_size_angstrom, plane.box_size_px).each(torch.Tensor.float)
    slices = extract_slices(prepare_slices(volume), poses.rotations, plane)
    explained = (particles.centred(poses.shifts_px) * slices.conj()).real @ plane.weights
    power = (particles.ctf_squared * slices.abs().square()) @ plane.weights
    return volume * float(explained.sum() / power.sum())


def true_poses(path: Path) -> tuple[ParticleStack, Poses]:
    """Of a star file.

    Args:
        path: with poses.
    """
    stack = read_particles(path, with_poses=True)
    if stack.table.poses is None:
        raise SystemExit(f"{path}: no poses")
    return stack, stack.table.poses


def main() -> None:
    """Match, write run_data.star."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("particles", type=Path)
    parser.add_argument("--map", type=Path, required=True, help="true map")
    scale = parser.add_mutually_exclusive_group(required=True)
    scale.add_argument("--start", type=Path, help="star file with the true poses")
    scale.add_argument("--like", type=Path, help="map made from the images")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--shift-sigma", type=float, help="Angstrom, as of cryoeq reconstruct")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    explicit = {"particles": given.particles, "output": given.output, "input.shift_sigma_angstrom": given.shift_sigma}
    config = load_config(ReconstructConfig, explicit=explicit)
    stack = build_stack(config, with_poses=False)
    dataset = build_dataset(config, stack, None)
    particles = result_of(load_transforms(dataset, torch.device("cpu")))
    volume = read_map(given.map, angpix=dataset.pixel_size_angstrom).values
    if given.like:
        volume = with_power_of(volume, read_map(given.like, angpix=dataset.pixel_size_angstrom).values)
    else:
        _, truth = true_poses(given.start)
        volume = scaled_to(particles, volume, truth, dataset.pixel_size_angstrom)
    settings = replace(build_ab_initio_settings(config, dataset).refinement, symmetry=torch.eye(3)[None])
    found = match(particles, volume, settings, torch.Generator().manual_seed(given.seed))
    given.output.mkdir(parents=True, exist_ok=True)
    poses = found.poses.to_angstrom(dataset.pixel_size_angstrom)
    write_particle_star(given.output / "run_data.star", stack.star, poses)


if __name__ == "__main__":
    main()
