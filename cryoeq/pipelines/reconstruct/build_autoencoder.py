"""From settings to the objects of the amortized mode: encoder, decoder, optimizer, training settings."""

import math
from collections.abc import Iterator

import torch

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Note
from cryoeq.equivariance import learnt_degrees
from cryoeq.errors import ConfigError, ParticleFileError
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.models.implicit_decoder import ImplicitDecoder
from cryoeq.models.pose_encoder import EncoderDesign, PoseEncoder
from cryoeq.models.voxel_decoder import VoxelDecoder
from cryoeq.pipelines.reconstruct.particle_diameter import shift_sigma_px
from cryoeq.training.autoencoder.loop import TrainingSettings
from cryoeq.training.autoencoder.schedule import Schedule
from cryoeq.training.autoencoder.state import TrainingState
from cryoeq.training.autoencoder.step import observe

DEFAULT_BATCH = 64
_DEFAULT_STEPS = 6000
_SAMPLE = 512


def build_plane(dataset: ParticleDataset, device: torch.device) -> HalfPlane:
    """Coefficients of the encoder's input: all below Nyquist."""
    return HalfPlane.up_to(dataset.box_size_px, dataset.box_size_px / 2 - 1, device)


def build_decoder(
    config: ReconstructConfig, box_size_px: int, generator: torch.Generator
) -> VoxelDecoder | ImplicitDecoder:
    """Model of the map, with random initial values."""
    match config.decoder.kind:
        case "voxel":
            return VoxelDecoder(box_size_px, generator)
        case "implicit":
            return ImplicitDecoder(box_size_px, generator, width=config.decoder.width)


def report_learnt_equivariance(encoder: torch.nn.Module) -> Iterator[Note]:
    """Report the learnt equivariance of each layer, where there is one."""
    if divergences := [float(degree.divergence().detach()) for degree in learnt_degrees(encoder)]:
        layers = ", ".join(f"{value:.3f}" for value in divergences)
        yield Note(f"Learnt equivariance, divergence from uniform of each layer (0: equivariant): {layers}.")


def encoder_design(config: ReconstructConfig) -> EncoderDesign:
    """Design of the encoder's blocks.

    Raises:
        ConfigError: its samples do not fit the group, or its degree not the kernels.
    """
    shape, design = config.encoder, config.encoder.design
    is_finite = shape.group not in ("so2", "o2")
    if is_finite and (design.sampler == "adaptive" or design.samples is not None):
        raise ConfigError(
            f"encoder.design.sampler={design.sampler}, encoder.design.samples={design.samples} with "
            f"encoder.group={shape.group}",
            "a finite group is evaluated on all its elements, only so2 and o2 are sampled",
            "Leave both out, or choose encoder.group=so2 or o2",
        )
    if design.degree == "learnt" and (design.kernel != "analytic" or design.trunk == "mobilenet"):
        raise ConfigError(
            f"encoder.design.degree=learnt with encoder.design.kernel={design.kernel}, "
            f"encoder.design.trunk={design.trunk}",
            "only analytic kernels of a conv or dense trunk have a degree to learn",
            "Leave encoder.design.degree out, or choose encoder.design.kernel=analytic and encoder.design.trunk=conv "
            "or dense",
        )
    return EncoderDesign(design.kernel, design.sampler, design.samples, design.degree)


def build_encoder(config: ReconstructConfig, box_size_px: int) -> PoseEncoder:
    """Network from images to poses, with random initial weights.

    Raises:
        ConfigError: its widths do not fit the box, its samples not the group, or its degree not the kernels.
    """
    shape, design = config.encoder, encoder_design(config)
    try:
        return PoseEncoder(
            shape.group,
            box_size_px,
            shape.heads,
            shape.channels,
            trunk=shape.design.trunk,
            design=design,
            is_bf16=shape.precision == "bf16",
        )
    except ValueError as error:
        raise widths_error(error) from error


def widths_error(error: ValueError) -> ConfigError:
    """Widths that do not fit the box, as an error of the settings."""
    return ConfigError(
        f"encoder.channels: {error}", "", "Leave encoder.channels out, or give as many widths as are needed"
    )


def build_state(config: ReconstructConfig, dataset: ParticleDataset, plane: HalfPlane) -> TrainingState:
    """Encoder, decoder and optimizer before the training; scale and initial residual from a sample of the images.

    Raises:
        ParticleFileError: the images are constant.
    """
    device = plane.coords.device
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global generator
        torch.manual_seed(config.seed)
        encoder = build_encoder(config, dataset.box_size_px).to(device)
    decoder = build_decoder(config, dataset.box_size_px, generator).to(device)
    settings = build_settings(config, dataset)
    optimizer = torch.optim.Adam(
        [
            {"params": list(encoder.parameters()), "lr": settings.encoder_learning_rate},
            {"params": list(decoder.parameters()), "lr": settings.decoder_learning_rate},
        ],
        fused=True,
    )
    rows = torch.linspace(0, len(dataset) - 1, min(_SAMPLE, len(dataset))).round().long()
    power = observe(dataset, rows, plane, 1.0).coefficients.abs().square().mean(0)
    variance = float(power @ plane.weights / plane.weights.sum())
    if variance == 0:
        raise ParticleFileError(
            f"{config.particles}: the images are constant", "there is no particle in them", "Extract them again"
        )
    shells = plane.shells
    by_shell = power.new_zeros(int(shells.max()) + 1).index_add(0, shells, power) / plane.shell_counts
    return TrainingState(
        encoder=encoder,
        decoder=decoder,
        optimizer=optimizer,
        data_scale=1 / math.sqrt(variance),
        residual_power=by_shell / variance,
        rotations=torch.eye(3, device=device).repeat(len(dataset), 1, 1),
        seed=config.seed,
    )


def build_settings(
    config: ReconstructConfig, dataset: ParticleDataset, batch_size: int | None = None
) -> TrainingSettings:
    """Settings of the training, defaults filled in.

    Args:
        config: settings of the run.
        dataset: particles at the working box.
        batch_size: images per step where the settings leave it open; the number of projections scales with it.
    """
    training, synthetic_batch_size = config.training, config.training.synthetic_batch_size
    if training.batch_size == "auto":
        batch_size = min(batch_size or DEFAULT_BATCH, len(dataset))
        synthetic_batch_size = max(1, synthetic_batch_size * batch_size // DEFAULT_BATCH)
    else:
        batch_size = min(training.batch_size, len(dataset))
    per_epoch = -(-len(dataset) // batch_size)
    epochs = training.epochs or -(-_DEFAULT_STEPS // per_epoch)
    return TrainingSettings(
        batch_size=batch_size,
        synthetic_batch_size=synthetic_batch_size,
        schedule=Schedule(
            epochs * per_epoch, training.first_shell, dataset.box_size_px / 2 - 1, marching=training.frequency_marching
        ),
        encoder_learning_rate=training.encoder_learning_rate,
        decoder_learning_rate=training.decoder_learning_rate or {"voxel": 1e-2, "implicit": 1e-3}[config.decoder.kind],
        synthetic_weight=config.loss.synthetic_weight,
        image_loss_start=training.image_loss_start if config.loss.synthetic_weight > 0 else 0.0,
        wta_epsilon=config.loss.wta_epsilon,
        is_symmetric=config.loss.symmetric,
        shift_sigma_px=shift_sigma_px(config, dataset.box_size_px, dataset.pixel_size_angstrom),
        is_augmented=training.augment,
    )
