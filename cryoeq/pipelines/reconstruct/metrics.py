"""Metrics of a reconstruction, as ``job.json`` records them under "results"."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from cryoeq.evaluation.hand import Hand


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of one class of a run of several; None where one was not measured.

    Args:
        number: of the class, from 1.
        particles: number of its particles.
        share: share of all particles, 0 to 1.
        half_map_resolution_angstrom: where the unmasked FSC of its half maps first drops below 0.143.
        masked_resolution_angstrom: where their FSC within its mask does.
        corrected_resolution_angstrom: where that does, corrected for the mask by phase randomisation.
        symmetry: point group that was imposed on it.
        reproduced: share of its particles that are in the matched class of another random start.
        nonspherical_share: share of its map's variance that is not spherical.
        nonspherical_resolution_angstrom: where the unmasked FSC of its half maps, without their spherical averages,
            first drops below 0.143.
        unexplained_share: share of its particles that its map does not explain.
        explained_signal_share: power of its map's projections over that of its images' signal.
        hand_t: sign and size of the hand of its map, positive for right-handed helices.
        hand_probability: probability that its helices turn right.
    """

    number: int
    particles: int
    share: float
    half_map_resolution_angstrom: float | None = None
    masked_resolution_angstrom: float | None = None
    corrected_resolution_angstrom: float | None = None
    symmetry: str = "C1"
    reproduced: float | None = None
    nonspherical_share: float | None = None
    nonspherical_resolution_angstrom: float | None = None
    unexplained_share: float | None = None
    explained_signal_share: float | None = None
    hand_t: float | None = None
    hand_probability: float | None = None

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "ClassMetrics":
        """The metrics of a class of a recorded run; other entries are left out."""
        return cls(**_known(cls, record))


@dataclass(frozen=True)
class ReconstructionMetrics:
    """Metrics of a reconstruction; None where one was not measured.

    Args:
        log_evidence: mean log marginal likelihood per particle, up to a constant of the images; higher is better.
        median_rotation_sigma_deg: median standard deviation of the particles' rotations.
        explained_variance: fraction of the images' variance that the model explains (amortized).
        held_out_median_deg: median difference of the encoder's poses of held-out particles from their final poses.
        half_map_resolution_angstrom: where the unmasked FSC of the half maps first drops below 0.143.
        masked_resolution_angstrom: where their FSC within the mask does.
        corrected_resolution_angstrom: where that does, corrected for the mask by phase randomisation.
        resolution_beyond_ctf_zeros_angstrom: where the unmasked FSC does, where its dips at zeros of the CTF that all
            particles share do not count; None without such dips.
        bfactor_angstrom2: B-factor of the post-processed map, 0 for none.
        map_diameter_angstrom: diameter of the dense region of the map that the automatic mask surrounds.
        reference_resolution_angstrom: where the FSC with a supplied reference first drops below 0.5.
        in_plane_divergence: learnt divergence of in-plane angles from the uniform distribution.
        in_plane_p_value: probability of such a divergence where in-plane symmetry holds.
        missing_astigmatism_angstrom: defocus U - V that the CTF leaves out.
        repeated_images: number of images that appear in more than one row of the particle table.
        repeated_rows: number of rows that show such an image.
        repeated_across_halves: number of images with copies in both half sets of the particle file.
        nonspherical_share: share of the density's variance that is not spherical.
        nonspherical_resolution_angstrom: where the unmasked FSC of the half maps, without their spherical averages,
            first drops below 0.143.
        unexplained_share: share of the particles that the map does not explain.
        explained_signal_share: power of the map's projections over that of the images' signal, where the half maps
            agree almost fully.
        hand_t: sign and size of the hand of the map, positive for right-handed helices.
        hand_probability: probability that the map's helices turn right, as they do in molecules.
        junk_share: share of the particles that are expected to be junk, the mean of their probabilities.
        broken_share: share that is expected to be broken, which is part of that, or of another structure.
        junk_auc: area under the ROC curve of the simulated junk that these probabilities were learnt from.
        wrong_optimum_share: share of the particles for which the map has a better pose elsewhere (amortized).
        apparent_symmetry: point group that a map made without symmetry has, where map and particles speak for it.
        symmetry_score: agreement of the map's copies under that group: 1 as of the half maps, 0 as at random.
        symmetry_gain_nats: log-likelihood per particle that averaging over that group adds.
        dependent_halves: reason why the half maps are not independent, so that their FSC is no gold standard; a clause.
        classes: of a run of several classes, in the order of their numbers.
        class_agreement: agreement of the classes of two random starts, matched, over all particles: 1 where they are
            the same, 0 as by chance.
        class_moves: number of particles in each class here (rows) and in each matched class of the other start
            (columns).
    """

    log_evidence: float | None = None
    median_rotation_sigma_deg: float | None = None
    explained_variance: float | None = None
    held_out_median_deg: float | None = None
    half_map_resolution_angstrom: float | None = None
    masked_resolution_angstrom: float | None = None
    corrected_resolution_angstrom: float | None = None
    resolution_beyond_ctf_zeros_angstrom: float | None = None
    bfactor_angstrom2: float | None = None
    map_diameter_angstrom: float | None = None
    reference_resolution_angstrom: float | None = None
    in_plane_divergence: float | None = None
    in_plane_p_value: float | None = None
    missing_astigmatism_angstrom: float | None = None
    repeated_images: int | None = None
    repeated_rows: int | None = None
    repeated_across_halves: int | None = None
    nonspherical_share: float | None = None
    nonspherical_resolution_angstrom: float | None = None
    unexplained_share: float | None = None
    explained_signal_share: float | None = None
    hand_t: float | None = None
    hand_probability: float | None = None
    junk_share: float | None = None
    broken_share: float | None = None
    junk_auc: float | None = None
    wrong_optimum_share: float | None = None
    apparent_symmetry: str | None = None
    symmetry_score: float | None = None
    symmetry_gain_nats: float | None = None
    dependent_halves: str | None = None
    classes: tuple[ClassMetrics, ...] | None = None
    class_agreement: float | None = None
    class_moves: tuple[tuple[int, ...], ...] | None = None

    @property
    def hand(self) -> Hand | None:
        """Hand of the map; None where it was not measured."""
        t, probability = self.hand_t, self.hand_probability
        return None if t is None or probability is None else Hand(t, probability)

    @property
    def n_classes(self) -> int:
        """Number of classes of the run."""
        return len(self.classes) if self.classes else 1

    def of_class(self, number: int) -> "ReconstructionMetrics":
        """The metrics of one class of a run of several, under the names of those of a run.

        Args:
            number: of the class, from 1.
        """
        ours, theirs = {field.name for field in fields(self)}, asdict((self.classes or ())[number - 1])
        return replace(self, **{name: value for name, value in theirs.items() if name in ours})

    def to_json(self) -> dict[str, Any]:
        """What was measured."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, results: Mapping[str, Any]) -> "ReconstructionMetrics":
        """The metrics of a recorded run; other entries of its results are left out."""
        known = _known(cls, results)
        if (classes := known.get("classes")) is not None:
            known["classes"] = tuple(map(ClassMetrics.from_json, classes))
        if (moves := known.get("class_moves")) is not None:
            known["class_moves"] = tuple(map(tuple, moves))
        return cls(**known)


def _known(cls: type[ClassMetrics | ReconstructionMetrics], record: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(cls)}
    return {name: value for name, value in record.items() if name in names}
