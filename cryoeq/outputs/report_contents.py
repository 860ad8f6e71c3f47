"""Contents of a report: of the run, and of each of its classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from cryoeq.domain.events import Note
from cryoeq.domain.pose import Poses
from cryoeq.domain.volume import Volume
from cryoeq.evaluation.fsc_dips import CtfDip
from cryoeq.evaluation.particle_fit import ParticleFits
from cryoeq.evaluation.resolution import FscCurves
from cryoeq.evaluation.verdict import RunVerdict
from cryoeq.outputs.progress_file import ProgressRow


@dataclass(frozen=True)
class ComparedParticles:
    """A sample of particles with their predictions.

    Args:
        fits: fits of the sample.
        total: number of particles that it was taken from.
        names: image name of each particle of the sample.
        resolution_angstrom: resolution of the comparison.
    """

    fits: ParticleFits
    total: int
    names: Sequence[str]
    resolution_angstrom: float


@dataclass(frozen=True)
class ClassContents:
    """What there is of one class, or of a run of one; None or empty where there is nothing.

    Args:
        number: of the class, from 1.
        facts: its figures by label, a row of the table of classes; empty for a run of one.
        volume: map of all its particles.
        postprocessed: post-processed map within the mask, whose surface is drawn; without it that of the map.
        curves: FSC of the half maps.
        ctf_power: mean |CTF|^2 of the particles per shell of the curves.
        dips: dips of the unmasked curve at zeros of the CTF.
        poses: poses of its particles.
        particles: particles with their predictions, or one sentence on why there are none.
    """

    number: int
    facts: Mapping[str, str]
    volume: Volume | None
    postprocessed: Volume | None
    curves: FscCurves | None
    ctf_power: Float[Tensor, " shells"] | None
    dips: Sequence[CtfDip]
    poses: Poses | None
    particles: ComparedParticles | str


@dataclass(frozen=True)
class RunContents:
    """Contents of a report; None or empty where the run has none.

    Args:
        name: name of the run folder.
        job: content of ``job.json``.
        verdict: verdict on the run.
        facts: key metrics by label, in the order of the page.
        classes: the classes, in the order of their numbers; at least one.
        progress: rows of ``progress.csv``.
        notes: notes of the run.
        junk: probability of being junk of the particles of each class, by its number; empty without.
        class_moves: particles in each class (rows) and in each matched class of another random start (columns).
        class_agreement: agreement of those classes, 1 where they are the same and 0 as by chance.
    """

    name: str
    job: Mapping[str, Any]
    verdict: RunVerdict
    facts: Mapping[str, str]
    classes: Sequence[ClassContents]
    progress: Sequence[ProgressRow]
    notes: Sequence[Note]
    junk: Mapping[int, Float[Tensor, " particles"]]
    class_moves: Sequence[Sequence[int]] | None = None
    class_agreement: float | None = None
