"""What is measured of each particle to tell whether it is one."""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class ParticleEvidence:
    """Figures of particles against a map that was made without them.

    Args:
        rows: which particle of the stack each is; two pieces of evidence on one particle share it.
        errors: 1 less the correlation with the projection at the particle's pose.
        features: all figures that a learnt score sees, of any scale.
        directions: unit vectors; a graph joins particles with small angles between them. Those of the views, or
            embeddings of class averages.
    """

    rows: Int[Tensor, " particles"]
    errors: Float[Tensor, " particles"]
    features: Float[Tensor, "particles features"]
    directions: Float[Tensor, "particles coordinates"]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: Int[Tensor, " chosen"]) -> "ParticleEvidence":
        return ParticleEvidence(self.rows[chosen], self.errors[chosen], self.features[chosen], self.directions[chosen])


@dataclass(frozen=True)
class LabelledEvidence:
    """Evidence on particles some of which were spoilt on purpose.

    Args:
        evidence: on all of them.
        is_junk: 1 for those that were spoilt; the others are as the stack has them.
        is_labelled: which labels to learn from: not those of particles that look doubtful as they are.
    """

    evidence: ParticleEvidence
    is_junk: Float[Tensor, " particles"]
    is_labelled: Bool[Tensor, " particles"]
