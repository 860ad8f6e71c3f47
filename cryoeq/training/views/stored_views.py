"""The view encoders of a run, one for each half set of each class: learnt from its maps, and kept in ``encoder.pt``.

An encoder is made of one half map, and of the particles of that half set alone: their CTFs, their noise, and the
posterior that the search has of them. So poses of new particles by either are as independent as the half maps are.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.domain.events import Event, Progress
from cryoeq.domain.pose import PoseSet
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.reference import Reference
from cryoeq.runtime.random_streams import Stream, stream_generator
from cryoeq.training.views.encoder import ViewEncoder, ViewSettings
from cryoeq.training.views.network_training import NetworkSettings, train_network
from cryoeq.training.views.network_views import NetworkViews
from cryoeq.training.views.posing import RIGHT_RAD, Calibration, InferredPoses, ViewPoser, errors_rad
from cryoeq.training.views.projections import simulate_particles
from cryoeq.training.views.training import ViewTrainingSettings, train_views

KIND = "views"
"""Value of ``kind`` in a file of view encoders."""
CALIBRATION_STAGE = "view encoder calibration"
_SEARCHED = 4000  # particles of a half set in the training, at most
_CALIBRATED = 300  # images of either kind in the calibration, at most
_CALIBRATED_SHARE, _FEWEST = 0.25, 20  # of the particles, for the calibration; and how many at least, where there are
_CALIBRATION_NUMBER, _CHOICE_NUMBER = 1000, 2000  # of the generators: beyond any of a training


@dataclass(frozen=True)
class StoredHalf:
    """A half map and its encoder's head.

    Args:
        volume: the map, at the box where poses are inferred.
        head: weights of the head; of the slices, which a network takes the place of where there is one.
        bare: calibration of poses as the encoder gives them.
        refined: calibration of poses after local refinement.
        usual_bare_fit: mean and standard deviation of the fit of particles that the map is made of, as the encoder
            poses them.
        usual_fit: the same after local refinement.
        usual_confidence: mean confidence of these particles, as the encoder poses them and after local refinement.
        network: state of the network that gives the logits; None where slices and head do.
    """

    volume: Float[Tensor, "n n n"]
    head: Mapping[str, Tensor]
    bare: Calibration
    refined: Calibration
    usual_bare_fit: tuple[float, float]
    usual_fit: tuple[float, float]
    usual_confidence: tuple[float, float]
    network: Mapping[str, Any] | None = None

    def poser(
        self, particles: ParticleTransforms, settings: ViewSettings, precision: Float[Tensor, " points"] | None = None
    ) -> ViewPoser:
        """Poses particles like the given ones.

        Args:
            particles: some of them, from which the noise is estimated.
            settings: of the training.
            precision: of the noise, where other maps are compared with it; None for that of the particles beside this.
        """
        encoder = ViewEncoder.build(self.volume, particles, settings, precision).with_head_of(self.head)
        if self.network is not None:
            encoder = encoder.with_network(NetworkViews.from_state(self.network, encoder.reference.volume))
        return ViewPoser(encoder, Reference.prepare(self.volume, particles))

    def to_state(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {
            "volume": self.volume.cpu(),
            "head": {name: values.detach().cpu() for name, values in self.head.items()},
            "bare": self.bare.weights.cpu(),
            "refined": self.refined.weights.cpu(),
            "usual_bare_fit": list(self.usual_bare_fit),
            "usual_fit": list(self.usual_fit),
            "usual_confidence": list(self.usual_confidence),
            "network": self.network,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device) -> "StoredHalf":
        """What ``to_state`` gave, on a device."""
        bare, refined = ((float(mean), float(sd)) for mean, sd in (state["usual_bare_fit"], state["usual_fit"]))
        return cls(
            state["volume"].to(device),
            {name: values.to(device) for name, values in state["head"].items()},
            Calibration(state["bare"].to(device)),
            Calibration(state["refined"].to(device)),
            bare,
            refined,
            (float(state["usual_confidence"][0]), float(state["usual_confidence"][1])),
            state["network"],
        )


@dataclass(frozen=True)
class StoredClass:
    """Both half sets of one class.

    Args:
        halves: of half set 1 and 2.
        settings: what their encoders assume.
    """

    halves: tuple[StoredHalf, StoredHalf]
    settings: ViewSettings


@dataclass(frozen=True)
class StoredViews:
    """The view encoders of a run.

    Args:
        classes: at least one.
        box_size_px: box of the particles of the training.
        pixel_size_angstrom: their pixel size.
        has_ctf: whether they have a CTF.
        particle_diameter_angstrom: diameter by which their background was told; None where the box did.
    """

    classes: tuple[StoredClass, ...]
    box_size_px: int
    pixel_size_angstrom: float
    has_ctf: bool
    particle_diameter_angstrom: float | None

    def to_state(self) -> dict[str, Any]:
        """Tensors and plain values for ``encoder.pt``."""
        classes = [
            {
                "halves": [half.to_state() for half in each.halves],
                "shift_sigma": each.settings.shift_sigma,
                "mask_radius": each.settings.mask_radius,
                "symmetry": each.settings.symmetry.cpu(),
                "last_shell": each.settings.last_shell,
            }
            for each in self.classes
        ]
        return {
            "kind": KIND,
            "classes": classes,
            "box_size_px": self.box_size_px,
            "pixel_size_angstrom": self.pixel_size_angstrom,
            "has_ctf": self.has_ctf,
            "particle_diameter_angstrom": self.particle_diameter_angstrom,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device) -> "StoredViews":
        """The encoders of a state that ``to_state`` gave, on a device.

        Raises:
            KeyError: something is missing.
            RuntimeError: the weights do not fit.
        """
        classes = []
        for each in state["classes"]:
            first, second = (StoredHalf.from_state(half, device) for half in each["halves"])
            settings = ViewSettings(
                each["shift_sigma"], each["mask_radius"], each["symmetry"].to(device), each["last_shell"]
            )
            classes.append(StoredClass((first, second), settings))
        return cls(
            tuple(classes),
            state["box_size_px"],
            state["pixel_size_angstrom"],
            state["has_ctf"],
            state["particle_diameter_angstrom"],
        )


def learn_half(
    volume: Float[Tensor, "n n n"],
    particles: ParticleTransforms,
    poses: PoseSet,
    settings: ViewSettings,
    training: ViewTrainingSettings,
    *,
    seed: int,
    number: int,
    learns_from_poses: bool = True,
    network: NetworkSettings | None = None,
) -> Generator[Event, None, tuple[StoredHalf, ViewPoser]]:
    """Train the encoder of one half set, and calibrate it on particles that were not in the training.

    Args:
        volume: its map, at the particles' box.
        particles: its particles.
        poses: their poses against that map.
        settings: what the encoder assumes.
        training: length of the training.
        seed: random seed of the run.
        number: number of the encoder in the run.
        learns_from_poses: whether the head is trained on the particles, too: not where their poses know the other map.
        network: of a network in place of slices and head, trained on projections alone; None for these.
    """
    encoder = ViewEncoder.build(volume, particles, settings)
    searched, held_out = (rows.to(particles.device) for rows in _chosen(len(particles), seed, number))
    known = (particles.rows(searched), poses.rows(searched)) if learns_from_poses else None
    if network is None:
        yield from train_views(encoder, particles, known, training, seed=seed, number=number)
    else:
        views = yield from train_network(encoder, particles, network, seed=seed, number=number)
        encoder = encoder.with_network(views)
    poser = ViewPoser(encoder, Reference.prepare(volume, particles))
    generator = stream_generator(seed, Stream.SYNTHETIC_PROJECTIONS, _CALIBRATION_NUMBER + number)
    box, last = encoder.box_size_px, encoder.last_shell
    simulated = simulate_particles(
        particles.within(last, box), encoder.reference, _CALIBRATED, settings.shift_sigma * box, generator
    )
    known = particles.rows(held_out), poses.rows(held_out)
    calibrations, usual, sure = [], [], []
    for refines in (False, True):
        yield Progress(CALIBRATION_STAGE, int(refines), 2)
        calibration, inferred = _calibrate(poser, (simulated, known), refines=refines)
        calibrations.append(calibration)
        usual.append((float(inferred.fit.mean()), float(inferred.fit.std()) if len(held_out) > 1 else 1.0))
        sure.append(float(calibration.probability(inferred).mean()))
    yield Progress(CALIBRATION_STAGE, 2, 2)
    head = {name: values.detach().clone() for name, values in encoder.head.state_dict().items()}
    trained = None if network is None else views.to_state()
    half = StoredHalf(
        volume, head, calibrations[0], calibrations[1], usual[0], usual[1], (sure[0], sure[1]), trained
    )  # fmt: skip
    return half, poser


def _chosen(count: int, seed: int, number: int) -> tuple[Int[Tensor, " searched"], Int[Tensor, " held_out"]]:
    """Random particles for the training, and others for the calibration."""
    order = torch.randperm(
        count, generator=stream_generator(seed, Stream.SYNTHETIC_PROJECTIONS, _CHOICE_NUMBER + number)
    )
    n_held_out = min(_CALIBRATED, max(int(_CALIBRATED_SHARE * count), min(count, _FEWEST)))
    held_out, searched = order[:n_held_out], order[n_held_out : n_held_out + _SEARCHED]
    return searched.sort().values, held_out.sort().values


def _calibrate(
    poser: ViewPoser, images: Sequence[tuple[ParticleTransforms, PoseSet]], *, refines: bool
) -> tuple[Calibration, InferredPoses]:
    """Calibration by images of known pose, and the poses of the last of them."""
    symmetry, margins, fits, is_right = poser.encoder.settings.symmetry, [], [], []
    for particles, truth in images:
        inferred = poser.pose(particles, refines=refines)
        margins.append(inferred.margin)
        fits.append(inferred.fit)
        is_right.append(errors_rad(inferred.poses, truth, symmetry) < RIGHT_RAD)
    return Calibration.fitted(torch.cat(margins), torch.cat(fits), torch.cat(is_right)), inferred
