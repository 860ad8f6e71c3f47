"""Proposal network: logits of views for each particle, learnt from the particles' own posteriors.

A particle is seen centred, times its CTF and with white noise, up to the present radius. What is learnt is its
posterior over the views of an iteration's grid, smoothed to the network's own views.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.so3_grid import so3_grid
from cryoeq.models.view_head import nearness, smoothed_views, view_spacing_rad
from cryoeq.models.view_network import ViewNetwork
from cryoeq.reconstruction.particle_transforms import ParticleTransforms

_HEALPIX_ORDER = 2  # of the network's views: 96 up to sign
_SMOOTHING = 0.5  # width of a target, in spacings of these views
_AT_A_TIME = 256  # images of a forward pass; the same number for any batch


@dataclass(frozen=True)
class ProposalSettings:
    """What is proposed, and how the network learns it.

    Args:
        group: in-plane group under which logits are invariant.
        channels: width of the hidden layers.
        n_likely: views of each particle that the network proposes.
        n_random: views of each particle that are drawn among the others.
        steps: gradient steps after each E-step, at least.
        batch_size: particles of a step.
        learning_rate: of Adam.
    """

    group: str = "d4"
    channels: int = 256
    n_likely: int = 8
    n_random: int = 4
    steps: int = 6
    batch_size: int = 64
    learning_rate: float = 3e-3


class ProposalNetwork:
    """A network of views, its optimizer and its random numbers.

    Args:
        settings: what is proposed, and how it is learnt.
        last_shell: the last shell of any iteration, in cycles per box.
        generator: random number generator of weights and training.
        device: of the network.
    """

    def __init__(
        self, settings: ProposalSettings, last_shell: int, generator: torch.Generator, device: torch.device
    ) -> None:
        self._settings, self._generator = settings, generator
        self._plane = HalfPlane.up_to(2 * (last_shell + 1), last_shell, device)
        views = so3_grid(_HEALPIX_ORDER, 1, device=device)[:, 2]
        self._directions = views[views @ views.new_tensor([1.0, 1e2, 1e4]) > 0]
        with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global generator
            torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
            network = ViewNetwork(settings.group, self._plane.box_size_px, self._directions, (settings.channels,))
        self._network = network.to(device)
        self._optimizer = torch.optim.Adam(self._network.parameters(), lr=settings.learning_rate)

    def images(
        self,
        particles: ParticleTransforms,
        offsets_px: Float[Tensor, "particles 2"],
        precision: Float[Tensor, " points"],
    ) -> Float[Tensor, "particles n n"]:
        """Particles as the network sees them.

        Args:
            particles: particles up to the present radius.
            offsets_px: the present offset of each.
            precision: inverse noise variance of each coefficient.
        """
        white = particles.centred(offsets_px) * precision.sqrt()
        return self._plane.images(pad(white, (0, len(self._plane) - white.shape[1])))

    @torch.no_grad()
    def logits(
        self, images: Float[Tensor, "particles n n"], directions: Float[Tensor, "views 3"]
    ) -> Float[Tensor, "particles views"]:
        """Logits of views: those of the nearest views of the network.

        Args:
            images: particles, from ``images``.
            directions: of the views, each up to its sign.
        """
        self._network.eval()
        logits = torch.cat([self._network(some) for some in images.split(_AT_A_TIME)])
        return logits[:, nearness(directions, self._directions, _identity(directions)).argmax(1)]

    def learn(
        self,
        images: Float[Tensor, "particles n n"],
        posterior: Float[Tensor, "particles views"],
        directions: Float[Tensor, "views 3"],
    ) -> None:
        """Gradient steps, as many as it takes to see each particle about once.

        Args:
            images: particles, from ``images``.
            posterior: probabilities of views.
            directions: of the views, each up to its sign.
        """
        settings, count = self._settings, len(images)
        width = _SMOOTHING * view_spacing_rad(len(self._directions))
        targets = posterior @ smoothed_views(directions, self._directions, _identity(directions), width)
        self._network.train()
        for _ in range(max(settings.steps, round(count / settings.batch_size))):
            chosen = torch.randint(count, (settings.batch_size,), generator=self._generator).to(images.device)
            loss = -(targets[chosen] * self._network(images[chosen]).log_softmax(1)).sum(1).mean()
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._optimizer.step()


def _identity(like: Tensor) -> Float[Tensor, "1 3 3"]:
    return torch.eye(3, dtype=like.dtype, device=like.device)[None]
