"""Settings of ``cryoeq reconstruct``."""

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt

from cryoeq.config.frozen import FrozenConfig

Group = Literal["c1", "c2", "c4", "c8", "c16", "d1", "d2", "d4", "d8", "so2", "o2"]


class InputConfig(FrozenConfig):
    """How to read the particles."""

    angpix: float | None = Field(
        default=None, gt=0, description="pixel size in Angstrom; fills in or overrides the file"
    )
    datadir: Path | None = Field(default=None, description="folder that image names are relative to")
    with_ctf: bool = Field(default=True, description="use the CTF of the star file")
    contrast: Literal["auto", "keep", "invert"] = Field(
        default="auto", description="protein must be bright: decide from the images, keep them, or invert them"
    )
    shift_sigma_angstrom: float | None = Field(
        default=None, ge=0, description="expected spread of the shifts per axis; None for 5 % of the box, 0 for centred"
    )
    scratch_dir: Path | None = Field(default=None, description="folder on a local disk for images beyond 1 GiB")
    mask: Path | None = Field(default=None, description="for the FSC of the half maps, with known poses")
    reference: Path | None = Field(default=None, description="map that the result is compared with")
    working_box_px: int | None = Field(
        default=None,
        ge=16,
        description="even box to Fourier-crop to while poses are inferred; None for at most 64, or 32 (amortized)",
    )


class SearchConfig(FrozenConfig):
    """How poses are searched for."""

    starts: int = Field(default=2, ge=1, le=64, description="random starts at least; 1 goes on unchecked")
    most_starts: int = Field(default=4, ge=1, le=64, description="random starts until the best was found twice")
    start_iterations: int = Field(default=150, ge=2, description="of each start, each with its own batch")
    batch_size: int = Field(default=200, ge=1, description="particles per iteration of a start")
    first_shell: int = Field(default=3, ge=2, description="radius at the start, in cycles per box")
    start_shell: int = Field(default=7, ge=4, description="radius at the end of the starts")
    settled_shells: tuple[PositiveInt, ...] = Field(
        default=(7, 7, 8, 8, 9, 9, 10, 10, 10), description="radii of the joint iterations that follow"
    )
    further_iterations: int = Field(
        default=24, ge=0, description="more of them at the last radius, at most, while the evidence grows"
    )
    settled_images: int = Field(default=4000, ge=2, description="particles in these iterations, at most")
    iterations: int = Field(default=3, ge=1, description="of the independent halves over all of SO(3)")
    searched_shell: int = Field(default=15, ge=4, le=40, description="radius up to which all of SO(3) is searched")
    polishing_iterations: int = Field(default=5, ge=0, description="local ones, beyond that radius")
    trial_shifts: int = Field(default=4, ge=1, le=37, description="shifts tried for each particle at low resolution")
    particle_radius: float = Field(default=0.42, gt=0.1, le=0.5, description="of the mask, as a fraction of the box")
    decoder_steps: int = Field(
        default=0, ge=0, description="of an implicit decoder fitted to the final poses, its map written beside; 0: none"
    )
    symmetry: str = Field(default="C1", description="point group to impose: Cn, Dn, T, O, I")


class EncoderConfig(FrozenConfig):
    """The network from images to poses."""

    group: Group = Field(default="d4", description="in-plane group that the encoder is equivariant to")
    heads: int = Field(default=8, ge=1, le=64, description="hypotheses per image")
    trunk: Literal["conv", "dense", "mobilenet"] = Field(
        default="dense",
        description="convolutions, one filter as large as the image (small boxes), or MobileNetV2's inverted residuals",
    )
    channels: tuple[PositiveInt, ...] | None = Field(
        default=None, description="widths of the feature maps; None for those of the box and mode"
    )
    head: Literal["rows", "columns"] = Field(default="rows", description="how a rotation is represented")
    kernel: Literal["analytic", "implicit", "implicit_ctf"] = Field(
        default="analytic",
        description="filters from circular harmonics, from an equivariant perceptron of the place in the filter, or "
        "from one that also knows each particle's defocus and astigmatism",
    )
    sampler: Literal["uniform", "adaptive"] = Field(
        default="uniform", description="where so2 and o2 are evaluated: on a grid, or where the features say"
    )
    degree: Literal["strict", "learnt"] = Field(
        default="strict", description="equivariant layers, or layers that begin so and learn how far to stay so"
    )
    samples: int | None = Field(
        default=None, ge=1, le=64, description="of the sampler; None for 12 (uniform) or 4 (adaptive)"
    )
    precision: Literal["float32", "bf16"] = Field(default="float32", description="of the trunk's products")
    compiled: bool = Field(
        default=False, description="by torch.compile, where a C++ compiler is found; pays in long trainings at most"
    )


class HybridConfig(FrozenConfig):
    """How an encoder takes over from the search."""

    held_out: float = Field(default=0.1, ge=0, le=0.5, description="share of the particles that are never searched")
    shell: int = Field(default=10, ge=4, description="radius up to which the encoder sees, in cycles per box")
    steps: int | None = Field(
        default=None, ge=1, description="of training on renderings of the first map; None for 800, or 1,400 with shifts"
    )
    final_steps: int = Field(default=300, ge=0, description="of training on renderings of the last map, for encoder.pt")
    batch_size: int = Field(default=256, ge=2, description="images per step")
    rate: float = Field(default=1e-2, gt=0, description="learning rate")
    sharpness: float = Field(default=2.0, gt=0, description="of the heads, for the squared distance of rotations")
    first_noise: float = Field(
        default=0.2, ge=0, le=1, description="amplitude of the renderings' noise at first, over that of the particles"
    )
    least_confidence: float = Field(
        default=0.9, ge=0.5, lt=1, description="of a refined proposal; particles with less go back to the search"
    )
    iterations: int = Field(
        default=5, ge=1, description="of the independent halves, refined locally, where the search does not reach"
    )


class DecoderConfig(FrozenConfig):
    """The model of the volume."""

    kind: Literal["voxel", "implicit"] = Field(
        default="voxel", description="a grid, or a network of Fourier coordinates"
    )
    width: int = Field(default=64, ge=8, le=1024, description="hidden width of the implicit decoder")


class LossConfig(FrozenConfig):
    """What is made small."""

    symmetric: bool = Field(default=False, description="minimum over the image and its half-turn (cryoAI)")
    leak: float = Field(default=0.02, ge=0, le=1, description="weight of the hypotheses that are not the best")
    rendered_weight: float = Field(
        default=1.0, ge=0, description="of the poses of renderings of the current map; 0 for the pure autoencoder"
    )


class TrainingConfig(FrozenConfig):
    """How encoder and decoder learn."""

    epochs: int | None = Field(default=None, ge=1, description="passes over the images; None for about 6,000 steps")
    batch_size: PositiveInt | Literal["auto"] = Field(
        default=64,
        description="images per step, of all processes together; auto for as many as a GPU has memory for, 64 on a CPU",
    )
    rendered_batch_size: int = Field(default=64, ge=1, description="images per step")
    encoder_rate: float = Field(default=2e-3, gt=0, description="learning rate of the encoder")
    decoder_rate: float | None = Field(default=None, gt=0, description="of the decoder; None for 1e-2 (voxel), 1e-3")
    images_from: float = Field(
        default=0.3, ge=0, le=1,
        description="fraction of the training from which the encoder learns from the images' residuals too",
    )  # fmt: skip
    first_shell: float = Field(default=3.0, ge=1, description="radius at the start, in cycles per box")
    marching: float = Field(default=0.6, ge=0, le=1, description="fraction after which the last shell is reached")
    augment: bool = Field(
        default=False, description="turn and mirror each image by a random element of D4, and its pose with it"
    )
    checkpoint_seconds: float = Field(default=60.0, ge=0, description="time between checkpoints")


class ReconstructConfig(FrozenConfig):
    """From a particle stack to a map."""

    particles: Path = Field(description="RELION star file, or a bare stack with angpix")
    output: Path = Field(description="run folder")
    pose_inference: Literal["search", "hybrid", "amortized", "known"] = Field(
        default="search",
        description="search for the poses, search and let an encoder take over, let an encoder infer them, or take "
        "those of the star file",
    )
    both_hands: bool = Field(default=False, description="write the mirror image of the map and its poses too")
    in_plane_symmetry: bool = Field(
        default=False, description="test whether particles look alike in every direction of the detector"
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="of all that is random")
    device: str = Field(default="auto", description="auto, cpu or cuda:N")
    threads: int | None = Field(default=None, ge=1, description="of the CPU; None for all")
    input: InputConfig = InputConfig()
    search: SearchConfig = SearchConfig()
    hybrid: HybridConfig = HybridConfig()
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
