"""Class averages as the encoder of a run sees them: particles whose averages look alike to it are neighbours.

A single particle is too noisy to be embedded. Each is therefore averaged with those seen from the nearest directions,
turned in plane until they agree with it by pose. The encoder's last fields of an average are averaged over turns in
plane: what is left does not turn with the image, but tells an image from its mirror image, which is the view from the
opposite side.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.spatial import cKDTree
from torch import Tensor

from cryoeq.domain.particles import ParticleBatch
from cryoeq.physics.shift import shift_phases
from cryoeq.training.taught_encoder import TaughtEncoder

_CLASS_SIZE = 20  # particles in an average, its own included
_TURNS = 12
_COORDINATES = 8
_CHUNK = 256


@dataclass(frozen=True)
class ClassEmbedding:
    """Particles with poses to points whose angles say how alike their class averages are.

    Args:
        taught: the encoder of a hybrid run.
    """

    taught: TaughtEncoder

    @torch.no_grad()
    def show(self, batch: ParticleBatch, shifts_angstrom: Float[Tensor, "batch 2"]) -> Float[Tensor, "batch m m"]:
        """Particles as the encoder sees them, centred.

        Args:
            batch: at the box and pixel size that it learnt.
            shifts_angstrom: of their poses.
        """
        view = self.taught.view
        moves = shifts_angstrom.to(view.weights) / self.taught.pixel_size_angstrom / view.shift_scale
        phases = shift_phases(-moves, view.plane.coords, view.plane.box_size_px)
        return self.taught.encoder.centre(view.images(self.taught.matched(batch)[0] * phases))

    @torch.no_grad()
    def embed(
        self, shown: Float[Tensor, "particles m m"], rotations: Float[Tensor, "particles 3 3"]
    ) -> Float[Tensor, "particles coordinates"]:
        """Unit vectors: the largest principal components of the averages' embeddings, about their mean.

        Args:
            shown: all particles, by ``show``.
            rotations: RELION's matrices A of their poses.
        """
        views = F.normalize(rotations[:, 2].double(), dim=1).cpu().numpy()
        near = cKDTree(views).query(views, range(1, min(_CLASS_SIZE, len(views)) + 1))[1]
        neighbours = torch.from_numpy(near).long().to(shown.device)
        rows = torch.arange(len(shown), device=shown.device).split(_CHUNK)
        averages = torch.cat([class_averages(shown, rotations, neighbours[part], part) for part in rows])
        found = torch.cat([self._features(part) for part in averages.split(_CHUNK)]).double()
        centred = found - found.mean(0)
        axes = torch.linalg.eigh(centred.mT @ centred).eigenvectors[:, -_COORDINATES:]
        return F.normalize(centred @ axes, dim=1).to(shown)

    def _features(self, images: Float[Tensor, "batch m m"]) -> Float[Tensor, "batch channels"]:
        """The mean over turns in plane of the encoder's last fields."""
        angles = torch.arange(_TURNS).to(images) * (2 * math.pi / _TURNS)
        encoder = self.taught.encoder
        turns = [encoder.features(turn_images(images, angle.expand(len(images)))).flatten(1) for angle in angles]
        return torch.stack(turns).mean(0)


def class_averages(
    shown: Float[Tensor, "particles m m"],
    rotations: Float[Tensor, "particles 3 3"],
    neighbours: Int[Tensor, "classes members"],
    rows: Int[Tensor, " classes"],
) -> Float[Tensor, "classes m m"]:
    """Means of particles, each turned in plane to agree by pose with the particle that the class is of.

    Args:
        shown: centred images with an odd side.
        rotations: RELION's matrices A.
        neighbours: the particles of each class.
        rows: the particle that each class is of.
    """
    relative = rotations[rows][:, None] @ rotations[neighbours].mT
    angles = torch.atan2(relative[..., 1, 0] - relative[..., 0, 1], relative[..., 0, 0] + relative[..., 1, 1])
    turned = turn_images(shown[neighbours.flatten()], angles.flatten().to(shown))
    return turned.unflatten(0, neighbours.shape).mean(1)


def turn_images(images: Float[Tensor, "batch m m"], angles_rad: Float[Tensor, " batch"]) -> Float[Tensor, "batch m m"]:
    """Images turned about the centre of an odd side, bilinear: (g.I)(x) = I(g^-1 x) with x = (column, row).

    Args:
        images: to turn.
        angles_rad: from x to y.
    """
    cos, sin, zero = angles_rad.cos(), angles_rad.sin(), torch.zeros_like(angles_rad)
    matrices = torch.stack([cos, sin, zero, -sin, cos, zero], 1).view(-1, 2, 3)
    grid = F.affine_grid(matrices, [len(images), 1, *images.shape[1:]], align_corners=True)
    return F.grid_sample(images[:, None], grid, align_corners=True)[:, 0]
