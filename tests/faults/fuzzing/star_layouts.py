"""Changes of star files that mean nothing, or something that is known: other files, other columns."""

import random
import struct

from faults.fuzzing.cases import Change, Scenario, mutation
from faults.fuzzing.star_mutations import Style, parse, render

_NEUTRAL = {
    "rlnCtfScalefactor": "1.000000", "rlnCtfBfactor": "0.000000", "rlnPhaseShift": "0.000000", "rlnBeamTiltX": "0.0",
    "rlnGroupNumber": "1", "rlnClassNumber": "1", "rlnCtfFigureOfMerit": "nan", "rlnNormCorrection": "1.0",
}  # fmt: skip
_ABERRATIONS = {
    "rlnBeamTiltX": "1.5", "rlnBeamTiltY": "-2.0", "rlnOddZernike": "[0.1,0,0,0,0,0]",
    "rlnEvenZernike": "[0.1,0,0,0,0,0,0,0,0]", "rlnMagMat00": "1.04",
}  # fmt: skip


@mutation("star", "harmless")
def stack_in_two_files(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    blocks = parse(content)
    stack = scenario.files.get("particles.mrcs")
    if not blocks or stack is None or "rlnImageName" not in blocks[-1].labels:
        return None
    nx, ny, nz = struct.unpack_from("<3i", stack)
    at = chance.randrange(1, nz)
    first = stack[:8] + struct.pack("<i", at) + stack[12 : 1024 + 4 * nx * ny * at]
    names = []
    for name in blocks[-1].column("rlnImageName"):
        number = int(name.partition("@")[0])
        names.append(f"{number}@{'first' if number <= at else 'sub/second'}.mrcs")  # numbers tell results apart
    blocks[-1].set("rlnImageName", names)
    also = {"first.mrcs": first, "sub/second.mrcs": stack}
    return Change(render(blocks), f"the stack in two files, {at} images in the first", also=also)


@mutation("star", "harmless")
def columns_that_say_nothing_new(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if (blocks := parse(content)) is None:
        return None
    label = chance.choice([label for label in _NEUTRAL if label not in blocks[-1].labels])
    blocks[-1].set(label, [_NEUTRAL[label]] * len(blocks[-1].rows))
    return Change(render(blocks), f"column {label} with {_NEUTRAL[label]}")


@mutation("star", "harmless")
def optics_as_a_list(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    blocks = parse(content)
    if not blocks or blocks[0].name != "optics" or len(blocks[0].rows) != 1:
        return None
    pairs = zip(blocks[0].labels, blocks[0].rows[0], strict=True)
    text = "\ndata_optics\n\n" + "".join(f"_{label}  {value}\n" for label, value in pairs)
    return Change(text.encode("latin-1") + render(blocks[1:], Style()), "the optics table as a list")


@mutation("star", "any")
def aberrations(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if (blocks := parse(content)) is None:
        return None
    label = chance.choice(sorted(_ABERRATIONS))
    block = chance.choice(blocks)
    block.set(label, [_ABERRATIONS[label]] * len(block.rows))
    return Change(render(blocks), f"{label} is {_ABERRATIONS[label]}", (label, "tilt", "aberration", "magnification"))
