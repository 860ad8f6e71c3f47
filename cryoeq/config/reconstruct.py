"""Settings of ``cryoeq reconstruct``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from cryoeq.config.choices import PoseInference
from cryoeq.config.frozen import FrozenConfig, Removed
from cryoeq.config.hybrid import UNUSED_BY_POSTERIOR, HybridConfig
from cryoeq.config.older_keys import REMOVED, RENAMED
from cryoeq.config.refine import FullBoxConfig, RefineConfig
from cryoeq.config.symmetry import PointGroups, point_groups

Group = Literal["c1", "c2", "c4", "c8", "c16", "d1", "d2", "d4", "d8", "so2", "o2"]


MOST_CLASSES = 16
LEAST_PARTICLES_OF_CLASS = 20  # below which there is no map to refine
_UNUSED_BY_CLASSES = (
    "in_plane_symmetry", "search.multi_start.max", "search.consensus.max_extra_iterations", "full_box.ctf_refinement",
    "search.e_step", "search.amortized",
)  # fmt: skip
_UNUSED_BY_LOCAL = (
    "refine.reference", "search.half_sets", "search.local_refinement", "search.offset_samples", "input.working_box_px",
)  # fmt: skip


class InputConfig(FrozenConfig):
    """How to read the particles."""

    angpix: float | None = Field(
        default=None, ge=0.01, le=1000, description="pixel size in Å; fills in or overrides the file"
    )
    datadir: Path | None = Field(default=None, description="folder that image names are relative to")
    with_ctf: bool = Field(default=True, description="use the CTF of the star file")
    contrast: Literal["auto", "keep", "invert"] = Field(
        default="auto", description="protein must be bright: decide from the images, keep them, or invert them"
    )
    particle_diameter_angstrom: float | None = Field(
        default=None,
        gt=0,
        description="diameter of the particle in Å, which mask, background and offsets follow; None for a mask of 0.84 "
        "of the box and a background beyond 0.75",
    )
    shift_sigma_angstrom: float | None = Field(
        default=None,
        ge=0,
        description="standard deviation of the offsets per axis, in Å; None for 6 % of the particle diameter, where "
        "that is given, else for 5 % of the box; 0 for centred",
    )
    scratch_dir: Path | None = Field(default=None, description="folder on a local disk for images beyond 1 GiB")
    mask: Path | None = Field(default=None, description="mask for the FSC of the half maps, with known poses")
    compare_to: Path | None = Field(default=None, description="map that the result is compared with")
    working_box_px: int | None = Field(
        default=None,
        ge=16,
        multiple_of=2,
        description="even box in px to which images are Fourier-cropped while poses are inferred; None for 64 at most, "
        "or 32 (amortized)",
    )


class InitialModelConfig(FrozenConfig):
    """Stochastic expectation-maximisation from noise: one initial model for each random start."""

    iterations: int = Field(default=150, ge=2, description="iterations of each random start, each with its own batch")
    batch_size: int = Field(default=200, ge=1, description="particles per iteration")
    first_shell: int = Field(default=3, ge=2, description="resolution of the first iterations, in cycles per box")
    last_shell: int = Field(default=7, ge=4, description="resolution of the last iterations, in cycles per box")


class MultiStartConfig(FrozenConfig):
    """Random starts until the best initial model is reproduced."""

    min: int = Field(
        default=2,
        ge=1,
        le=64,
        description="random starts at least, 4 with T, O, I; 1 skips the check of reproducibility",
    )
    max: int = Field(
        default=4,
        ge=1,
        le=64,
        description="random starts at most, until the best map is reproduced (8 with T, O, I); twice as many where the "
        "best stands out",
    )


class ConsensusConfig(FrozenConfig):
    """Refinement of one reference that both half sets share, at low resolution."""

    shells: tuple[PositiveInt, ...] = Field(
        default=(7, 7, 8, 8, 9, 9, 10, 10, 10),
        min_length=1,
        description="resolution of each iteration, in cycles per box",
    )
    max_extra_iterations: int = Field(
        default=24, ge=0, description="further iterations at the last resolution, until the log-likelihood converges"
    )
    max_particles: int = Field(default=4000, ge=2, description="particles used, at most")


class HalfSetsConfig(FrozenConfig):
    """Gold-standard refinement of two independent half sets over all orientations."""

    iterations: int = Field(default=3, ge=1, description="iterations over all orientations")
    max_exhaustive_shell: int = Field(
        default=15, ge=4, le=40, description="resolution up to which all orientations are searched, in cycles per box"
    )


class LocalRefinementConfig(FrozenConfig):
    """Local angular searches of each half set beyond the exhaustive search."""

    iterations: int = Field(default=5, ge=0, description="iterations")


class AmortizedEStepConfig(FrozenConfig):
    """Views that a network proposes in each iteration from noise to the consensus, and how it learns them."""

    group: Group = Field(default="d4", description="in-plane group under which the network is invariant")
    channels: PositiveInt = Field(default=256, description="width of the network's hidden layers")
    likely_views: int = Field(default=8, ge=1, description="views of each particle that the network proposes")
    random_views: int = Field(default=4, ge=1, description="views of each particle that are drawn among the others")
    training_steps: int = Field(
        default=6, ge=1, description="gradient steps after each E-step, at least; more where there are more particles"
    )
    batch_size: int = Field(default=64, ge=2, description="particles of each of these steps")
    learning_rate: float = Field(default=3e-3, gt=0, description="learning rate")


class SearchConfig(FrozenConfig):
    """Ab initio reconstruction by expectation-maximisation, stage by stage."""

    e_step: Literal["exhaustive", "amortized"] = Field(
        default="exhaustive",
        description="poses that iterations try from noise to the consensus: all of a grid, or those of a few views, "
        "which a network proposes that learns from iteration to iteration",
    )
    amortized: AmortizedEStepConfig = AmortizedEStepConfig()
    initial_model: InitialModelConfig = InitialModelConfig()
    multi_start: MultiStartConfig = MultiStartConfig()
    consensus: ConsensusConfig = ConsensusConfig()
    half_sets: HalfSetsConfig = HalfSetsConfig()
    local_refinement: LocalRefinementConfig = LocalRefinementConfig()
    mask_radius: float = Field(
        default=0.42,
        gt=0.1,
        le=0.5,
        description="radius of the spherical mask, as a fraction of the box, where no particle diameter is given",
    )
    offset_samples: int = Field(
        default=4, ge=1, le=37, description="offsets sampled for each particle at low resolution"
    )
    symmetry: PointGroups = Field(
        default="C1",
        description="point group to impose: Cn, Dn, T, O, I; with several classes one for all, or one for each, in any "
        "order: C4,C1",
    )
    classes: Annotated[int, Field(ge=1, le=MOST_CLASSES)] | Literal["auto"] = Field(
        default=1, description="number of structures; auto for as many as held-out particles tell apart"
    )


class EncoderDesignConfig(FrozenConfig):
    """Architecture of the pose encoder beyond its group and its number of hypotheses."""

    trunk: Literal["conv", "dense", "mobilenet"] = Field(
        default="dense",
        description="convolutions, one filter as large as the image (small boxes), or MobileNetV2's inverted residuals",
    )
    kernel: Literal["analytic", "implicit", "implicit_ctf"] = Field(
        default="analytic",
        description="steerable filters from circular harmonics, from an equivariant perceptron of the position in the "
        "filter, or from one that also takes each particle's defocus and astigmatism",
    )
    sampler: Literal["uniform", "adaptive"] = Field(
        default="uniform",
        description="sampling of so2 and o2 in Fourier nonlinearities: on a grid, or adapted to the features",
    )
    samples: int | None = Field(
        default=None, ge=1, le=64, description="number of samples; None for 12 (uniform) or 4 (adaptive)"
    )
    degree: Literal["strict", "learnt"] = Field(
        default="strict", description="exactly equivariant layers, or layers that learn their degree of equivariance"
    )


class EncoderConfig(FrozenConfig):
    """The network from images to poses, or to views."""

    group: Group = Field(default="d4", description="in-plane group that the encoder is equivariant to, or invariant")
    heads: int = Field(default=8, ge=1, le=64, description="pose hypotheses per image")
    channels: tuple[PositiveInt, ...] | None = Field(
        default=None, description="widths of the feature maps; None for those of the box and mode"
    )
    precision: Literal["float32", "bf16"] = Field(
        default="float32", description="number format of the trunk's products"
    )
    compiled: bool = Field(
        default=False, description="use torch.compile, where a C++ compiler is found; pays in long trainings at most"
    )
    design: EncoderDesignConfig = EncoderDesignConfig()


class DecoderConfig(FrozenConfig):
    """The model of the volume."""

    kind: Literal["voxel", "implicit"] = Field(
        default="voxel", description="a voxel grid, or a network of Fourier coordinates"
    )
    width: int = Field(default=64, ge=8, le=1024, description="hidden width of the implicit decoder")


class LossConfig(FrozenConfig):
    """Loss functions."""

    symmetric: bool = Field(default=False, description="minimum over the image and its half-turn (cryoAI)")
    wta_epsilon: float = Field(
        default=0.02, ge=0, le=1, description="weight of all hypotheses but the best (relaxed winner-takes-all)"
    )
    synthetic_weight: float = Field(
        default=1.0, ge=0, description="weight of the pose loss on synthetic projections; 0 for the pure autoencoder"
    )


class TrainingConfig(FrozenConfig):
    """Training of encoder and decoder, end to end."""

    epochs: int | None = Field(default=None, ge=1, description="passes over the images; None for about 6,000 steps")
    batch_size: PositiveInt | Literal["auto"] = Field(
        default=64,
        description="images per step, of all processes together; auto for as many as a GPU has memory for, 64 on a CPU",
    )
    synthetic_batch_size: int = Field(default=64, ge=1, le=10**6, description="synthetic projections per step")
    encoder_learning_rate: float = Field(default=2e-3, gt=0, description="learning rate of the encoder")
    decoder_learning_rate: float | None = Field(
        default=None, gt=0, description="learning rate of the decoder; None for 1e-2 (voxel), 1e-3 (implicit)"
    )
    image_loss_start: float = Field(
        default=0.3, ge=0, le=1,
        description="fraction of the training after which the encoder's loss includes the images' residuals",
    )  # fmt: skip
    first_shell: float = Field(default=3.0, ge=1, description="resolution at the start, in cycles per box")
    frequency_marching: float = Field(
        default=0.6, ge=0, le=1, description="fraction of the training after which the full resolution is used"
    )
    augment: bool = Field(
        default=False, description="rotate and mirror each image by a random element of D4, and its pose with it"
    )
    checkpoint_seconds: float = Field(default=60.0, ge=0, description="seconds between checkpoints")


class ReconstructConfig(FrozenConfig):
    """From a particle stack to a map."""

    options: ClassVar[Mapping[str, str]] = {
        "particles": "PARTICLES", "output": "-o/--output", "threads": "-j/--threads",
        "input.with_ctf": "--no-ctf", "input.contrast": "--invert-data/--uninvert-data",
        "input.particle_diameter_angstrom": "--particle-diameter", "input.shift_sigma_angstrom": "--shift-sigma",
        "input.working_box_px": "-D/--box", "search.symmetry": "--sym", "search.classes": "--classes",
        "full_box.max_resolution_angstrom": "--max-resolution",
    }  # fmt: skip
    usage: ClassVar[str] = "cryoeq reconstruct PARTICLES.star -o map"
    renamed: ClassVar[Mapping[str, str]] = RENAMED
    removed: ClassVar[Mapping[str, Removed]] = REMOVED

    # Modes that use a setting or section; what is not listed counts in every mode.
    used_by: ClassVar[Mapping[str, tuple[PoseInference, ...]]] = {
        "search": ("search", "hybrid"),
        "search.symmetry": ("search", "hybrid", "known", "refine"),
        "search.half_sets": ("search", "hybrid", "refine"),
        "search.local_refinement": ("search", "hybrid", "refine"),
        "search.mask_radius": ("search", "hybrid", "refine"),
        "search.offset_samples": ("search", "hybrid", "refine"),
        "search.classes": ("search",),
        "search.e_step": ("search",),
        "search.amortized": ("search",),
        "full_box": ("search", "hybrid", "refine"),
        "refine": ("refine",),
        "hybrid": ("hybrid",),
        "encoder": ("hybrid", "amortized"),
        "decoder": ("amortized",),
        "loss": ("amortized",),
        "training": ("amortized",),
        "input.shift_sigma_angstrom": ("search", "hybrid", "amortized", "refine"),
        "input.working_box_px": ("search", "hybrid", "amortized", "refine"),
        "input.scratch_dir": ("amortized",),  # the others read each image once or twice
    }

    particles: Path = Field(description="RELION star file, or a bare stack with angpix")
    output: Path = Field(description="run folder")
    pose_inference: PoseInference = Field(
        default="search",
        description="where poses come from: a search, a search that trains an encoder too, an encoder trained with the "
        "map, the star file, or a refinement from a map (cryoeq refine)",
    )
    both_hands: bool = Field(default=False, description="write the mirror image of the map and its poses too")
    in_plane_symmetry: bool = Field(
        default=False, description="test whether particles look alike in every direction of the detector"
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="random seed")
    device: str = Field(default="auto", description="device: auto, cpu or cuda:N")
    threads: int | None = Field(default=None, ge=1, le=4096, description="CPU threads; None for all cores")
    input: InputConfig = InputConfig()
    search: SearchConfig = SearchConfig()
    full_box: FullBoxConfig = FullBoxConfig()
    refine: RefineConfig = RefineConfig()
    hybrid: HybridConfig = HybridConfig()
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _symmetry_is_imposed(self) -> "ReconstructConfig":
        if self.pose_inference == "amortized" and self.search.symmetry.strip().upper() != "C1":
            raise ValueError(
                f"--sym {self.search.symmetry} with --pose-inference amortized, which imposes no symmetry: leave --sym "
                "out, or choose --pose-inference search"
            )
        return self

    @model_validator(mode="after")
    def _one_group_for_each_class(self) -> "ReconstructConfig":
        groups, classes = point_groups(self.search.symmetry), self.search.classes
        if len(groups) > 1 and len(groups) != classes:
            raise ValueError(
                f"--sym {self.search.symmetry} names {len(groups)} point groups, for {classes} classes: name one for "
                "all, or one for each of --classes"
            )
        return self

    @model_validator(mode="after")
    def _refinement_has_a_start(self) -> "ReconstructConfig":
        if self.pose_inference == "refine" and not self.refine.local and self.refine.reference is None:
            raise ValueError(
                "nothing to start from: use cryoeq refine, and give a map with --ref, or --local for the poses of the "
                "star file"
            )
        return self

    @model_validator(mode="after")
    def _classes_are_searched(self) -> "ReconstructConfig":
        if self.search.classes != 1 and self.pose_inference != "search":
            raise ValueError(
                f"--classes {self.search.classes} with --pose-inference {self.pose_inference}: classes are found by a "
                "search only; leave one of them out"
            )
        return self

    def unused(self) -> Mapping[str, str | None]:
        """What the mode of pose inference, the diameter of the particle or several classes leave without effect."""
        mode = self.pose_inference
        why = "cryoeq refine" if mode == "refine" else f"--pose-inference {mode}"
        unused = {key: None if mode in modes else why for key, modes in self.used_by.items()}
        if self.refine.local and mode == "refine":
            unused |= dict.fromkeys(("search", *_UNUSED_BY_LOCAL), "--local")
            unused["search.symmetry"] = unused["search.mask_radius"] = None
        if unused["search.mask_radius"] is None and self.input.particle_diameter_angstrom is not None:
            unused["search.mask_radius"] = "--particle-diameter"
        if mode == "hybrid":
            posterior = self.hybrid.posterior
            unused |= dict.fromkeys(UNUSED_BY_POSTERIOR[posterior], f"hybrid.posterior={posterior}")
        if self.search.e_step == "exhaustive" and mode == "search":
            unused["search.amortized"] = "search.e_step=exhaustive"
        if self.search.symmetry.strip().upper()[:1] in {"T", "O", "I"} and mode == "search":
            unused |= dict.fromkeys(("search.e_step", "search.amortized"), f"--sym {self.search.symmetry}")
        if self.search.classes != 1:
            unused |= dict.fromkeys(_UNUSED_BY_CLASSES, f"--classes {self.search.classes}")
        return unused


class RefinementConfig(ReconstructConfig):
    """A reconstruction that starts from a map, or from poses: ``cryoeq refine``."""

    options: ClassVar[Mapping[str, str]] = {
        "particles": "PARTICLES", "output": "-o/--output", "threads": "-j/--threads",
        "input.with_ctf": "--no-ctf", "input.contrast": "--invert-data/--uninvert-data",
        "input.particle_diameter_angstrom": "--particle-diameter", "input.shift_sigma_angstrom": "--shift-sigma",
        "search.symmetry": "--sym", "full_box.max_resolution_angstrom": "--max-resolution",
        "refine.reference": "--ref", "refine.ini_high_angstrom": "--ini-high",
    }  # fmt: skip
    usage: ClassVar[str] = "cryoeq refine PARTICLES.star --ref MAP.mrc -o refined"
    pose_inference: PoseInference = Field(default="refine", description="where poses come from: a refinement")
