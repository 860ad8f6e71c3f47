"""Figures of particles by which the best of them are chosen: which there are, and which end of each is better."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from cryoeq.errors import ConfigError, ParticleFileError
from cryoeq.io.labels import JUNK_PROBABILITY, MAX_PROBABILITY, SELECTION_Z_SCORE
from cryoeq.io.star import StarTable

End = Literal["highest", "lowest"]

# The score of ``cryoeq screen`` first, which is made for this.
USUAL_FIGURES = (SELECTION_Z_SCORE, MAX_PROBABILITY)
BETTER_END: Mapping[str, End] = {
    SELECTION_Z_SCORE: "lowest", MAX_PROBABILITY: "highest", JUNK_PROBABILITY: "lowest",
    "rlnParticleFigureOfMerit": "highest", "rlnLogLikeliContribution": "highest", "rlnCtfFigureOfMerit": "highest",
    "rlnAutopickFigureOfMerit": "highest", "rlnCtfMaxResolution": "lowest", "rlnNrOfSignificantSamples": "lowest",
    "alignments2D/class_posterior": "highest", "alignments3D/class_posterior": "highest",
    "pick_stats/ncc_score": "highest", "ctf/ctf_fit_to_A": "lowest",
}  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A figure of each particle.

    Args:
        name: the column or field.
        values: one of each particle, finite.
        better: the end of it that good particles have.
    """

    name: str
    values: Float64[Tensor, " particles"]
    better: End


def particle_figure(
    star: StarTable, fields: Mapping[str, Shaped[np.ndarray, " particles"]], name: str | None, better: End | None
) -> Figure:
    """The figure of a table that was asked for, or the usual one.

    Args:
        star: the particles.
        fields: numbers of each particle that the file has besides, by name, as a ``.cs`` does.
        name: a column or a field, with or without a leading underscore; None for the first of ``USUAL_FIGURES``.
        better: its better end; None where that is known.

    Raises:
        ParticleFileError: there is no such figure, or a value of it is not a finite number.
        ConfigError: its better end is not known.
    """
    name = _usual_name(star) if name is None else name.removeprefix("_")
    end = better or BETTER_END.get(name)
    if name not in star.particles and name in fields:
        values = fields[name].astype(np.float64)
        if (bad := np.flatnonzero(~np.isfinite(values))).size:
            found = f"{star.where}, row {bad[0] + 1}: {name} is {values[bad[0]]}"
            raise ParticleFileError(found, "A finite number was expected", "Correct the value or remove the particle")
    else:
        others = ", ".join(label for label in (*star.particles, *fields) if label in BETTER_END)
        values = star.floats(name, advice=f"Choose --by among {others or 'the columns of the file'}")
    if end is None:
        raise ConfigError(f"--by {name}", "Which end of it is better is not known", "Add --best highest or lowest")
    return Figure(name, torch.from_numpy(values), end)


def _usual_name(star: StarTable) -> str:
    known = [name for name in USUAL_FIGURES if name in star.particles]
    if not known:
        found = f"{star.where} has neither {' nor '.join(USUAL_FIGURES)}"
        raise ParticleFileError(found, "--keep needs a figure by which particles are good", "Name one by --by COLUMN")
    return known[0]
