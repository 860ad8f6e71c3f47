"""Random starts, and whether two of them found the same structure."""

from collections.abc import Generator
from dataclasses import replace

from jaxtyping import Int
from torch import Tensor

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Event, Note, Progress
from cryoeq.domain.volume import Volume
from cryoeq.errors import DivergedError
from cryoeq.evaluation.alignment import align_map, mirror_map
from cryoeq.geometry.fourier import crop_centred, fft_map, ifft_map
from cryoeq.geometry.shells import fourier_shell_correlation, remove_round_part
from cryoeq.pipelines.build import build_basin_settings
from cryoeq.pipelines.device import threads
from cryoeq.pipelines.kept_steps import Keep, run_anew
from cryoeq.training.basin import Basin, BasinSettings, find_basin
from cryoeq.training.growth import GrowthSettings, GrowthState, begin_growth, settle
from cryoeq.training.observed_images import ObservedImages

MOST_ATTEMPTS = 2  # with starts of their own, where a map shows both hands
_TRIAL_SHELLS = 3  # joint iterations after which random starts are compared
# Mean FSC, without the round part that all maps of noise share, from which two starts found the same map. It was 0.94
# to 0.99 on 1WCM, 8BK7 (D2) and 7L2I (C4) at SNR 0.1, and 0.31 to 0.40 on images of noise.
_SAME_MAP = 0.7
_COMPARED = slice(2, 7)  # shells
# Two settled maps are compared where a wrong one has detail of its own: 0.97 on 1WCM at SNR 0.1, found; 0.25 at SNR
# 0.03, not found, where trial maps had agreed by 0.85 over the first shells.
_SAME_DETAIL = 0.5
_FINE = slice(5, 11)


def choose_start(
    config: ReconstructConfig,
    dataset: ParticleDataset,
    images: ObservedImages,
    settings: GrowthSettings,
    half_set: Int[Tensor, " particles"],
    *,
    attempt: int = 0,
    keep: Keep = run_anew,
) -> Generator[Event, None, GrowthState]:
    """Random starts until the one with the highest evidence was found twice; each is settled for a few iterations.

    Args:
        config: how many starts.
        dataset: pixel size and box of the particles.
        images: those that are searched, in the box of the joint iterations.
        settings: of the joint iterations.
        half_set: 1 or 2 for each particle.
        attempt: each has starts of its own.
        keep: of finished starts.

    Raises:
        DivergedError: no two starts agree.
    """
    basin_settings = replace(build_basin_settings(config, dataset), shift_sigma_px=settings.shift_sigma_px)
    shells = settings.settled_shells[:_TRIAL_SHELLS]
    trial = replace(settings, settled_shells=shells, further_iterations=0)
    candidates: list[tuple[float, GrowthState]] = []
    agreement = -1.0
    most = max(config.search.starts, config.search.most_starts)
    for start in range(attempt * most, (attempt + 1) * most):
        step = _start_and_settle(images, basin_settings, trial, half_set, config.seed, start=start)
        state = yield from keep(f"start_{start}", step)
        candidates.append((float(state.log_evidence[state.log_evidence != 0].mean()), state))
        candidates.sort(key=lambda candidate: -candidate[0])
        if len(candidates) >= config.search.starts:
            best, *others = [_low_resolution(candidate, basin_settings.last_shell) for _, candidate in candidates]
            agreement = max((_agreement(best, other, _COMPARED, _SAME_MAP) for other in others), default=1.0)
        if agreement > _SAME_MAP:
            break
    if len(candidates) > 1:
        evidences = ", ".join(f"{evidence:.2f}" for evidence, _ in candidates)
        yield Note(
            f"{len(candidates)} random starts, log evidence per particle {evidences}; the best agrees with another "
            f"by a correlation of {agreement:.2f}."
        )
    _require_agreement(agreement, len(candidates))
    return candidates[0][1]


def require_repeat(
    config: ReconstructConfig,
    dataset: ParticleDataset,
    images: ObservedImages,
    settings: GrowthSettings,
    found: GrowthState,
) -> Generator[Event, None, None]:
    """Settle another random start, and stop where it ends in another map.

    Args:
        config: numbers the starts.
        dataset: pixel size and box of the particles.
        images: those that are searched, in the box of the joint iterations.
        settings: of the joint iterations.
        found: the settled state that is doubted.

    Raises:
        DivergedError: the maps differ in their detail.
    """
    basin_settings = replace(build_basin_settings(config, dataset), shift_sigma_px=settings.shift_sigma_px)
    unused = MOST_ATTEMPTS * max(config.search.starts, config.search.most_starts)
    basin = yield from _start(images, basin_settings, config.seed, unused)
    state = begin_growth(basin, images, found.half_set, settings, basin_settings.last_shell)
    state = yield from follow(settle(state, images, settings, seed=config.seed))
    last = max(settings.settled_shells)
    agreement = _agreement(_low_resolution(found, last), _low_resolution(state, last), _FINE, _SAME_DETAIL)
    shared = dataset.box_size_px * dataset.pixel_size_angstrom / last
    doubt = f"the half maps agree no further than the {shared:.0f} Angstrom up to which they shared their first map"
    if agreement < _SAME_DETAIL:
        raise DivergedError(
            f"the search found no structure: {doubt}, and another random start ended in another map, which agrees "
            f"with it by a correlation of {agreement:.2f} in its detail",
            f"Expected half maps that agree beyond it, or a second map that agrees by more than {_SAME_DETAIL}",
            "Give more or cleaner particles; check CTF, contrast, pixel size and --shift-sigma",
        )
    yield Note(f"Although {doubt}, another random start ended in the same map (correlation {agreement:.2f}).")


def follow(events: Generator[tuple[Progress, GrowthState], None, GrowthState]) -> Generator[Event, None, GrowthState]:
    """Pass on the progress; the state at the end."""
    while True:
        try:
            progress, _ = next(events)
        except StopIteration as end:
            state: GrowthState = end.value
            return state
        yield progress


def _start(images: ObservedImages, settings: BasinSettings, seed: int, start: int) -> Generator[Event, None, Basin]:
    """One random start; its tensors are so small that two threads would wait for each other."""
    with threads(1):
        for event in find_basin(images, settings, seed=seed, start=start):
            if isinstance(event, Basin):
                return event
            yield event
    raise ValueError("no iterations were asked for")


def _start_and_settle(
    images: ObservedImages, basin_settings: BasinSettings, settings: GrowthSettings,
    half_set: Int[Tensor, " particles"], seed: int, *, start: int,
) -> Generator[Event, None, GrowthState]:  # fmt: skip
    basin = yield from _start(images, basin_settings, seed, start)
    state = begin_growth(basin, images, half_set, settings, basin_settings.last_shell)
    return (yield from follow(settle(state, images, settings, seed=seed)))


def _low_resolution(state: GrowthState, last_shell: int) -> Volume:
    cropped = ifft_map(crop_centred(fft_map(state.maps[0].cpu()), 2 * (last_shell + 1), 3))
    return Volume(remove_round_part(cropped), 1.0)


def _agreement(best: Volume, other: Volume, shells: slice, enough: float) -> float:
    """Mean FSC of two maps after alignment over rotation and shift; in the other hand too, if that is not enough."""
    agreement = -1.0
    for candidate in (other, replace(other, values=mirror_map(other.values))):
        moved = align_map(candidate, best, with_hand=False).apply(candidate)
        agreement = max(agreement, float(fourier_shell_correlation(moved.values, best.values)[shells].mean()))
        if agreement > enough:
            break
    return agreement


def _require_agreement(agreement: float, count: int) -> None:
    if agreement < _SAME_MAP:
        raise DivergedError(
            f"no structure was found twice: {count} random starts ended in different maps, the best of which agrees "
            f"with another by a correlation of {agreement:.2f}",
            f"Expected more than {_SAME_MAP}, before a map is believed; noise alone gives 0.3 to 0.4",
            "Check CTF, contrast, pixel size and --shift-sigma; give more or cleaner particles; or search longer: "
            "--set search.start_iterations=600 --set search.most_starts=8",
        )
