"""``cryoeq doctor --advise-encoder``: encoders ranked by what their bound would be, before any is trained."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from cryoeq.config.reconstruct import EncoderConfig, HybridConfig
from cryoeq.domain.events import Event, Note, Report
from cryoeq.evaluation.pac_bayes import norm_terms
from cryoeq.models.encoder import PoseEncoder
from cryoeq.models.folded_layers import fold_encoder
from cryoeq.training.rendering_lessons import encoder_box_px

GROUPS = ("c1", "c2", "c4", "d1", "d2", "d4")
"""Those that map the pixel grid to itself: the bound's layers are theirs."""
CHANNELS = (128, 256, 512, 1024)
_IMAGES = 16


@dataclass(frozen=True)
class Candidate:
    """An encoder as ``--pose-inference hybrid`` would build it.

    Args:
        group: that it is equivariant to.
        channels: width of its layers.
        copies: of the irrep that has most of them, in a hidden layer.
        complexity: of the bound, for its random start: (sum of noise)^2 x (sum of stable ranks).
        parameters: to be learnt.
        flops: for one image, forward.
    """

    group: str
    channels: int
    copies: int
    complexity: float
    parameters: int
    flops: float


def candidates(groups: Iterable[str] = GROUPS, channels: Iterable[int] = CHANNELS) -> list[Candidate]:
    """Build each encoder and look at it; the least complex first.

    Args:
        groups: their names.
        channels: widths.
    """
    wanted = [(group, width) for group in groups for width in channels]
    return sorted((_candidate(group, width) for group, width in wanted), key=lambda found: found.complexity)


def as_records(found: Iterable[Candidate]) -> list[dict[str, Any]]:
    """The same for JSON."""
    return [asdict(candidate) for candidate in found]


def tell(found: list[Candidate]) -> Iterator[Event]:
    """The ranking for a reader, and what it is worth.

    Args:
        found: the least complex first.

    Yields:
        One report and two notes.
    """
    rows = {
        f"{number}. {one.group}, {one.channels} channels": (
            f"complexity {one.complexity:9.3g} ({one.complexity / found[0].complexity:6.1f} x the least), "
            f"up to {one.copies:4d} copies of an irrep, {one.parameters:9,} parameters, {one.flops / 1e6:6.2f} MFLOP"
        )
        for number, one in enumerate(found, 1)
    }
    yield Report("Encoders by the complexity of their PAC-Bayes bound, the least first", rows)
    yield Note(
        "What the ranking can tell: among encoders of one width that fit their lessons equally well, those above "
        "should err less beyond them, if the images have the symmetry. So did small nets on turned digits "
        "(tests/benchmarks/bound.py)."
    )
    yield Note(
        "What it cannot: whether an encoder fits at all; where lessons are free, as renderings are, wider ones err "
        "less although they stand lower. Whether the images have the symmetry: larger groups always stand higher. How "
        "c8, d8, so2 and o2 would do, which the pixel grid serves only nearly. The bounds themselves are vacuous: only "
        "the order means something."
    )


def _candidate(group: str, channels: int) -> Candidate:
    box = encoder_box_px(HybridConfig().shell)
    with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global generator
        torch.manual_seed(0)
        encoder = PoseEncoder(group, box, EncoderConfig().heads, (channels,), trunk="dense", low_passes=False).eval()
    net = fold_encoder(encoder)
    terms = norm_terms({layer.name: layer.blocks(net.group) for layer in net.layers})
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(torch.zeros(_IMAGES, box, box))
    return Candidate(
        group,
        channels,
        max(irrep.out_multiplicity for layer in terms.layers[:-1] for irrep in layer.irreps),
        terms.complexity,
        sum(parameter.numel() for parameter in encoder.parameters()),
        counter.get_total_flops() / _IMAGES,
    )
