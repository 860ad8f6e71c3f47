"""Random half sets of particles, for half maps with independent noise."""

import torch
from jaxtyping import Int
from torch import Tensor


def split_half_sets(count: int, generator: torch.Generator) -> Int[Tensor, " particles"]:
    """A random half set, 1 or 2, for each of ``count`` particles; the halves differ by one particle at most."""
    half_set = torch.ones(count, dtype=torch.long)
    half_set[torch.randperm(count, generator=generator, device=generator.device)[: count // 2].cpu()] = 2
    return half_set
