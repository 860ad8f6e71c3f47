"""Amortized E-step: a network proposes views, exact likelihoods weigh them, and the network learns from that.

In each iteration of expectation-maximisation the network has logits of all views for each particle. The most likely of
them and a few random ones are compared with the particle at all in-plane angles, both mirrors and a few offsets; from
that come its posterior and the next map. Then the network takes some steps towards these posteriors. It is kept from
iteration to iteration, so that what it learnt of other particles and of earlier maps is not lost. As long as posteriors
are annealed they say little of the views, and nothing is learnt: until then all proposals are as good as random.

Recognition networks learnt from importance-weighted posteriors: Bornschein and Bengio 2015, Reweighted wake-sleep,
arXiv 1406.2751.
"""

from collections.abc import Callable, Generator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.domain.events import Event
from cryoeq.reconstruction.expectation import EStepResult
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.pose_likelihood import PoseLikelihood
from cryoeq.reconstruction.proposed_views import ProposedViews, expectation_over_views
from cryoeq.runtime.random_streams import Stream, stream_generator
from cryoeq.training.proposals.proposal_network import ProposalNetwork, ProposalSettings


class AmortizedEStep:
    """An ``EStep`` of one map with proposals, which keeps its network from call to call.

    Args:
        settings: what is proposed.
        last_shell: the last shell of any iteration, in cycles per box.
        seed: random seed of the run.
        number: number of the E-step in the run; each has random numbers of its own.
        device: of the particles.
    """

    def __init__(
        self, settings: ProposalSettings, last_shell: int, *, seed: int, number: int, device: torch.device
    ) -> None:
        self._settings = settings
        self._generator = stream_generator(seed, Stream.SYNTHETIC_PROJECTIONS, number)  # of which a search makes none
        self.proposer = ProposalNetwork(settings, last_shell, self._generator, device)

    def __call__(
        self,
        particles: ParticleTransforms,
        likelihood: PoseLikelihood,
        offsets_px: Float[Tensor, "rows offsets 2"],
        *,
        shift_sigma_px: float,
        rows: Int[Tensor, " rows"] | None = None,
        temperature: float | Float[Tensor, ""] = 1.0,
        class_shares: Float[Tensor, " classes"] | None = None,
        null_share: float = 0.0,
        progress: Callable[[int], Event] | None = None,
    ) -> Generator[Event, None, EStepResult]:
        """As ``expectation_step``; the first offset of each particle is its present one.

        Raises:
            ValueError: there are several maps.
        """
        if likelihood.n_maps > 1 or class_shares is not None or null_share > 0:
            raise ValueError("views are proposed for one map only")
        rows = torch.arange(len(particles), device=particles.device) if rows is None else rows
        settings, subset = self._settings, particles.rows(rows)
        directions = likelihood.grid.views[:, 2]
        images = self.proposer.images(subset, offsets_px[:, 0], likelihood.precision)
        logits = self.proposer.logits(images, directions)
        proposed = ProposedViews.draw(logits, settings.n_likely, settings.n_random, self._generator)
        result = yield from expectation_over_views(
            particles,
            likelihood,
            offsets_px,
            proposed,
            shift_sigma_px=shift_sigma_px,
            rows=rows,
            temperature=temperature,
            progress=progress,
        )
        if not float(temperature) > 1:
            posterior = torch.zeros_like(logits).scatter_(1, proposed.views, result.by_view)
            self.proposer.learn(images, posterior, directions)
        return result.expectation
