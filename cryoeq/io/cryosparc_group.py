"""The group file (``.csg``) by which cryoSPARC's Import Result Group takes a table of particles."""

from datetime import datetime
from pathlib import Path

import yaml

from cryoeq.io.cryosparc import read_cs_types
from cryoeq.io.text import write_text

_SUFFIX = ".csg"
_OF_ONE_CLASS = "alignments_class_"  # slots whose type is that of all poses
_VERSION = "v4.0.0"  # of cryoSPARC, from which on files are of this form


def group_beside(cs: Path) -> Path:
    """The group file of a table: ``NAME.csg`` of ``NAME.cs``."""
    return cs.with_suffix(_SUFFIX)


def write_group(cs: Path) -> Path:
    """Write the group file of a table, beside it: a slot for each group of fields, all of them in that table.

    Paths that begin with ``>``, as in exports of cryoSPARC, count from the folder of the group file.

    Args:
        cs: a table of particles, with ``uid``.

    Returns:
        The group file.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    types, count = read_cs_types(cs)
    slots = sorted({name.partition("/")[0] for name in types.names or () if "/" in name})
    results = {
        slot: {"metafile": f">{cs.name}", "num_items": count, "type": f"particle.{_kind(slot)}"} for slot in slots
    }
    group = {
        "created": datetime.now().replace(microsecond=0),
        "group": {
            "description": f"Particles selected by cryoeq: {cs.name}",
            "name": "particles",
            "title": "Particles selected by cryoeq",
            "type": "particle",
        },
        "results": results,
        "version": _VERSION,
    }
    path = group_beside(cs)
    write_text(path, yaml.safe_dump(group, allow_unicode=True))
    return path


def _kind(slot: str) -> str:
    return "alignments3D" if slot.startswith(_OF_ONE_CLASS) else slot
