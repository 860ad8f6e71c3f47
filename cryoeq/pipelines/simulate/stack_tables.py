"""Star files of a simulated stack: what its user may know, and the truth."""

import numpy as np
from jaxtyping import Float
from torch import Tensor

from cryoeq.config.simulate import SimulateConfig
from cryoeq.io.compose import compose_star
from cryoeq.io.labels import CLASS_NUMBER, CTF_BFACTOR, CTF_SCALE, HAS_NEIGHBOUR, JUNK_KIND
from cryoeq.io.particles import write_particle_star
from cryoeq.io.star import StarTable, decimals
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.simulate.stack import Stack
from cryoeq.simulation.contents import JunkKind


def write_tables(
    config: SimulateConfig, stack: Stack, divisors: Float[Tensor, " particles"] | None, run: RunFolder
) -> None:
    """Write ``truth.star``, then ``particles.star``.

    The truth's CTF is that of the images: its scale is the particle's contrast over the divisor of its image, so that
    CTF and pose take the true map to the particle. Columns beyond poses and half sets stand there only where the images
    differ in more.

    Args:
        config: settings of the simulation.
        stack: what was drawn.
        divisors: standard deviation that each image was divided by; None where the background is not normalised.
        run: folder of the run.
    """
    columns = {}
    if config.is_as_it_comes:
        contents = stack.contents.each(lambda values: values.cpu())
        scale = contents.scale if divisors is None else contents.scale / divisors
        kinds = np.array([kind.name.lower() for kind in JunkKind])
        columns = {
            CLASS_NUMBER: contents.class_number.numpy().astype(np.str_),
            JUNK_KIND: kinds[contents.junk.numpy()],
            HAS_NEIGHBOUR: contents.has_neighbour.long().numpy().astype(np.str_),
            CTF_SCALE: decimals(scale.numpy()),
        }
        if stack.ctf is not None:
            columns[CTF_BFACTOR] = decimals(stack.ctf.bfactor_angstrom2.numpy())
    truth = _table(stack, is_truth=True)
    write_particle_star(run.path("truth.star"), truth, stack.poses, half_set=stack.half_set, extra_columns=columns)
    write_particle_star(run.path("particles.star"), _table(stack, is_truth=False), None)


def _table(stack: Stack, *, is_truth: bool) -> StarTable:
    """Images, micrographs, optics groups and defocus, true or as stated."""
    names = None
    if stack.micrograph is not None:
        names = [f"micrograph_{number + 1:03d}.mrc" for number in stack.micrograph.tolist()]
    return compose_star(
        "particles.mrcs",
        len(stack.poses),
        stack.whole.plane.box_size_px,
        stack.optics,
        stack.ctf if is_truth else stack.stated_ctf,
        optics_index=stack.optics_index,
        micrographs=names,
    )
