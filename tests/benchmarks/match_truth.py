"""The limit of the data: particles posed by matching them to the true map, over all poses and shifts, then refined.

    python tests/benchmarks/match_truth.py PARTICLES.star --map TRUTH.mrc --start TRUTH.star -o DIR [--shift-sigma A]

For ``ab_initio.py --limit``. No search without a map can do better on average than this one with the map. The true
poses serve once: to find the scale between map and images.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from cryoeq.config.loading import load_config
from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.domain.pose import Poses
from cryoeq.geometry.disk_harmonics import disk_harmonics, support_radius
from cryoeq.io.mrc import read_map
from cryoeq.io.particles import ParticleStack, read_particles, write_particle_star
from cryoeq.physics.projection import extract_slices, prepare_slices
from cryoeq.pipelines.reconstruct.build import build_dataset, build_refinement_settings, build_stack
from cryoeq.reconstruction.expectation import expectation_step, hexagonal_offsets
from cryoeq.reconstruction.global_realignment import search_poses_exhaustively
from cryoeq.reconstruction.local_refinement import Reference, RefinedPoses, refine_poses
from cryoeq.reconstruction.noise_model import noise_precision
from cryoeq.reconstruction.particle_transforms import ParticleTransforms, cat_transforms, load_batches
from cryoeq.reconstruction.pose_likelihood import PoseLikelihood, pose_grid
from cryoeq.reconstruction.state import RefinementSettings

_TRIALS = 7  # shifts tried around that of the coarse search, where there are any


def match(
    images: ParticleTransforms, volume: torch.Tensor, settings: RefinementSettings, generator: torch.Generator
) -> RefinedPoses:
    """The most likely pose of each image found by a coarse search with all shifts, and a fine one around its shift.

    Args:
        images: all of them.
        volume: the map, at their scale.
        settings: of the search.
        generator: of grids.
    """
    n, every = images.plane.box_size_px, torch.arange(len(images))
    coarse = search_poses_exhaustively(images, every, volume, settings, generator)
    first = refine(images, volume, (coarse.rotations, coarse.shifts_px), settings)
    part = images.within(settings.searched_shell, n)
    harmonics = disk_harmonics(n, settings.searched_shell, support_radius(settings.particle_radius, n), volume.device)
    grid = pose_grid(settings.searched_shell, generator, volume.device)
    scores = PoseLikelihood.build(volume, grid, harmonics, noise_precision(images, volume, part))
    count = _TRIALS if settings.shift_sigma_px > 0 else 1
    trials = hexagonal_offsets(first.shifts_px, n / (2.5 * settings.searched_shell), count, generator)
    *_, (_, found) = expectation_step(part, scores, trials, shift_sigma_px=settings.shift_sigma_px)
    if found is None:
        raise ValueError("there are no images")
    second = refine(images, volume, (found.posterior.rotations, found.posterior.shifts_px), settings)
    rows = torch.where(second.log_likelihood > first.log_likelihood, every + len(images), every)
    return RefinedPoses.join([first, second]).rows(rows)


def refine(
    images: ParticleTransforms,
    volume: torch.Tensor,
    start: tuple[torch.Tensor, torch.Tensor],
    settings: RefinementSettings,
) -> RefinedPoses:
    """To the nearest maximum of the likelihood, at 10 cycles per box and then at all.

    Args:
        images: all of them.
        volume: the map.
        start: rotations and shifts.
        settings: spread of the shifts.
    """
    n = images.plane.box_size_px
    for radius in (min(10, n // 2 - 1), n // 2 - 1):
        part = images.within(radius, n)
        reference = Reference.build(volume, part.plane, noise_precision(images, volume, part))
        refined = refine_poses(part, reference, *start, shift_sigma_px=settings.shift_sigma_px)
        start = (refined.rotations, refined.shifts_px)
    return refined


def scaled_to(
    images: ParticleTransforms, volume: torch.Tensor, truth: Poses, pixel_size_angstrom: float
) -> torch.Tensor:
    """The map times the number by which its projections explain the images best.

    Args:
        images: all of them.
        volume: the true map.
        truth: the true poses.
        pixel_size_angstrom: of the images.
    """
    slices = extract_slices(prepare_slices(volume), truth.rotations.float(), images.plane)
    centred = images.centred(truth.shifts_angstrom.float() / pixel_size_angstrom)
    explained = (centred * slices.conj()).real @ images.plane.weights
    power = (images.power * slices.abs().square()) @ images.plane.weights
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
    parser.add_argument("--start", type=Path, required=True, help="star file with the true poses")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--shift-sigma", type=float, help="Angstrom, as of cryoeq reconstruct")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    explicit = {"particles": given.particles, "output": given.output, "input.shift_sigma_angstrom": given.shift_sigma}
    config = load_config(ReconstructConfig, explicit=explicit)
    stack = build_stack(config, with_poses=False)
    dataset = build_dataset(config, stack, None)
    images = cat_transforms([part for _, part in load_batches(dataset, torch.device("cpu"))])
    _, truth = true_poses(given.start)
    volume = read_map(given.map, angpix=dataset.pixel_size_angstrom).values
    settings = replace(build_refinement_settings(config, dataset), symmetry=torch.eye(3)[None])
    volume = scaled_to(images, volume, truth, dataset.pixel_size_angstrom)
    found = match(images, volume, settings, torch.Generator().manual_seed(given.seed))
    given.output.mkdir(parents=True, exist_ok=True)
    poses = Poses(found.rotations, found.shifts_px * dataset.pixel_size_angstrom)
    write_particle_star(given.output / "run_data.star", stack.star, poses)


if __name__ == "__main__":
    main()
