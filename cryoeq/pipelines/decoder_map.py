"""The implicit decoder's map at the poses that a search found, to look at beside the closed-form one."""

from collections.abc import Generator

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Progress
from cryoeq.domain.randomness import Stream, stream_generator
from cryoeq.domain.volume import Volume
from cryoeq.models.decoder import ImplicitDecoder
from cryoeq.training.decoder_fit import DecoderFitSettings, fit_decoder
from cryoeq.training.growth import GrowthState, map_precision
from cryoeq.training.local_refinement import RefinedPoses
from cryoeq.training.observed_images import ObservedImages

_BATCH, _RATE = 64, 1e-3


def decode_map(
    config: ReconstructConfig,
    dataset: ParticleDataset,
    images: ObservedImages,
    joint: GrowthState,
    refined: RefinedPoses,
) -> Generator[Progress, None, Volume | None]:
    """Fit the decoder, where steps are asked for; its map, at the box where poses were inferred.

    Args:
        config: how many steps, and how wide the network is.
        dataset: the particles.
        images: the same, in Fourier space.
        joint: the map of all of them, from which the noise is estimated.
        refined: their poses.
    """
    if config.search.decoder_steps == 0:
        return None
    generator = stream_generator(config.seed, Stream.DECODER_FIT, 1)
    decoder = ImplicitDecoder(dataset.box_size_px, generator, width=config.decoder.width).to(images.matched.device)
    settings = DecoderFitSettings(config.search.decoder_steps, _BATCH, _RATE)
    poses, precision = (refined.rotations, refined.shifts_px), map_precision(images, joint.maps[0], images)
    yield from fit_decoder(decoder, images, poses, precision, settings, seed=config.seed)
    return Volume(decoder.to_map().cpu(), dataset.pixel_size_angstrom)
