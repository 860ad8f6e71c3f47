"""Other scores of junk, from the folder of a run: what the probabilities of ``cryoeq reconstruct`` are compared with.

- evidence: two classes, particles (projection and noise) and none (noise of a spectrum of its own), whose spectra and
  shares follow by expectation-maximisation; the score is the log-likelihood ratio.
- scrambled: the gain in log-likelihood of the map at its best pose less that of a map of the same power and random
  phases at its own best pose, found alike.
- error, nearest neighbours: the scorers of ``cryoeq screen``.
"""

from pathlib import Path

import torch
from torch import Tensor

from cryoeq.config.loading import load_config
from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import result_of
from cryoeq.domain.pose import PoseSet
from cryoeq.domain.volume import HalfMaps
from cryoeq.evaluation.junk_comparison import (
    FIRST_SHELL,
    Comparison,
    PosedRows,
    compare_with,
    fit_amplitudes,
    matched_batches,
)
from cryoeq.evaluation.particle_scorers import ErrorScorer, KnnScorer
from cryoeq.evaluation.screened_particles import ScreenedParticles
from cryoeq.geometry.fourier import fft_map, ifft_map
from cryoeq.io.mrc import read_map
from cryoeq.io.particles import read_particles, star_half_set, star_poses
from cryoeq.io.star import read_star
from cryoeq.pipelines.reconstruct.build import build_ab_initio_settings
from cryoeq.reconstruction.global_realignment import search_poses_exhaustively
from cryoeq.reconstruction.local_refinement import refine_poses
from cryoeq.reconstruction.particle_transforms import load_transforms
from cryoeq.reconstruction.pose_likelihood import COARSE_SHELL
from cryoeq.reconstruction.reference import Reference

_CPU = torch.device("cpu")
_STEPS = 30


def rival_scores(output: Path, folder: Path, seed: int) -> dict[str, Tensor]:
    """Scores of every image, high for junk.

    Args:
        output: run folder of ``cryoeq reconstruct``.
        folder: the stack.
        seed: of random numbers.
    """
    config = load_config(ReconstructConfig, explicit={"particles": folder / "particles.star", "output": output})
    dataset = ParticleDataset.open(read_particles(folder / "particles.star"), sign=1)
    star = read_star(output / "run_data.star")
    poses, half_set = star_poses(star), star_half_set(star)
    assert half_set is not None
    first, second = (read_map(output / f"run_half{half}_class001_unfil.mrc") for half in (1, 2))
    halves = HalfMaps(first, second)
    n = dataset.box_size_px
    posed = PosedRows(
        PoseSet.from_angstrom(poses, dataset.pixel_size_angstrom, n), half_set, torch.zeros_like(half_set)
    )
    comparison = compare_with(dataset, [halves], posed, torch.arange(min(512, len(dataset))))
    assert comparison is not None
    screened = ScreenedParticles.from_maps(dataset, poses, half_set, halves)
    features = result_of(screened.measure_features())
    generator = torch.Generator().manual_seed(seed)
    return {
        "evidence": _evidence(comparison, dataset, posed),
        "scrambled": _scrambled(comparison, dataset, config, generator),
        "error": ErrorScorer().score(features),
        "nearest neighbours": KnnScorer.fit(screened.training_examples(features, generator)).score(features),
    }


def _evidence(comparison: Comparison, dataset: ParticleDataset, posed: PosedRows) -> Tensor:
    plane, parts = comparison.plane, list[tuple[Tensor, Tensor]]()
    for images, there in matched_batches(comparison, dataset, posed, torch.arange(len(dataset))):
        residual, _, centred = fit_amplitudes(comparison, images, there, comparison.project(there)[0][0])
        white = images.ctf_squared.clamp(min=0.05 * float(images.ctf_squared.mean()))
        parts.append(tuple(plane.shell_sums(z.abs().square() / white)[:, FIRST_SHELL:] for z in (residual, centred)))
    left, whole = (torch.cat(column).double() for column in zip(*parts, strict=True))
    counts = plane.shell_sums(torch.ones(len(plane)))[FIRST_SHELL:].double()
    is_junk = (left.sum(1).argsort().argsort() > 0.8 * len(left)).double()
    for _ in range(_STEPS):
        noise = ((1 - is_junk) @ left) / ((1 - is_junk).sum() * counts)
        null = (is_junk @ whole) / (is_junk.sum() * counts).clamp(min=1e-9)
        share = is_junk.mean().clamp(1e-3, 1 - 1e-3)
        # Each coefficient and its mate are one complex number.
        ratio = 0.5 * ((left / noise + counts * noise.log()) - (whole / null + counts * null.log())).sum(1)
        is_junk = torch.sigmoid(ratio + (share / (1 - share)).log())
    return ratio


def _scrambled(
    comparison: Comparison, dataset: ParticleDataset, config: ReconstructConfig, generator: torch.Generator
) -> Tensor:
    settings = build_ab_initio_settings(config, dataset).refinement
    particles, n = result_of(load_transforms(dataset, _CPU)), dataset.box_size_px
    mean = comparison.references[0].mean
    phases = fft_map(torch.randn(mean.shape, generator=generator))
    scrambled = ifft_map(fft_map(mean).abs() * phases / phases.abs().clamp(min=1e-12))
    coarse = particles.within(min(COARSE_SHELL, n // 2 - 1), n)
    rows, gains = torch.arange(len(particles)), []
    for values in (mean, scrambled):
        padded = torch.nn.functional.pad(fft_map(values), _padding(len(values), n))
        reference = Reference.prepare(ifft_map(padded), particles)
        found = search_poses_exhaustively(particles, rows, reference, settings, generator).poses
        gains.append(
            refine_poses(coarse, reference, found, shift_sigma_px=settings.shift_sigma_px, rows=rows).log_likelihood
        )
    return gains[1] - gains[0]


def _padding(small: int, large: int) -> tuple[int, ...]:
    before = large // 2 - small // 2
    return (before, large - small - before) * 3
