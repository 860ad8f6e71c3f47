"""Precision in which ``cryoeq infer`` runs the network of a view encoder."""

from dataclasses import replace

from cryoeq.config.choices import InferencePrecision
from cryoeq.errors import ConfigError
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.training.views.network_views import NetworkViews
from cryoeq.training.views.posing import ViewPoser


def in_precision(poser: ViewPoser, precision: InferencePrecision, sample: ParticleTransforms) -> ViewPoser:
    """The poser whose network, if it has one, computes in that precision.

    Args:
        poser: trained.
        precision: of the network; anything but fp32 needs one.
        sample: particles at their own box, for the ranges of 8 bits.

    Raises:
        ConfigError: there is no network, or it cannot run in that precision.
    """
    encoder, network = poser.encoder, poser.encoder.network
    if not isinstance(network, NetworkViews):
        if precision != "fp32":
            raise ConfigError(
                f"--precision {precision}: this encoder compares slices of the half map, in fp32",
                "other precisions are for networks (a run with --set hybrid.posterior=network)",
                "Leave --precision out",
            )
        return poser
    if precision == "int8" and sample.device.type != "cpu":
        raise ConfigError(
            f"--precision int8 on {sample.device}", "its integer kernels are for the CPU",
            "Add --device cpu, or use bf16",
        )  # fmt: skip
    try:
        network = network.in_precision(precision, sample.within(encoder.last_shell, encoder.box_size_px))
    except ValueError as error:
        if precision == "fp32":
            return poser  # its filters depend on the particle: it cannot be exported
        raise ConfigError(
            f"--precision {precision}: {error}", "a plain network is needed", "Use --precision fp32"
        ) from error
    return replace(poser, encoder=encoder.with_network(network))
