"""RELION External jobs: the output nodes that later jobs of its pipeline may take."""

from pathlib import Path

from cryoeq.io import labels
from cryoeq.io.text import write_text
from cryoeq.outputs.map_names import map_names

_PARTICLES = "ParticleGroupMetadata.star.relion"
_MAP, _HALF_MAP = "DensityMap.mrc", "DensityMap.mrc.halfmap"


def write_output_nodes(folder: Path) -> None:
    """Write ``RELION_OUTPUT_NODES.star``, of RELION 4 and later.

    Args:
        folder: folder of the job, relative to RELION's project as in ``--o``; missing files are left out.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    nodes = {"run_data.star": _PARTICLES}
    for whole in sorted(folder.glob("run_class[0-9][0-9][0-9].mrc")):
        names = map_names(int(whole.stem.removeprefix("run_class")))
        nodes |= {names.whole: _MAP, names.first_half: _HALF_MAP, names.second_half: _HALF_MAP}
    rows = [f"{(folder / name).as_posix()} {label}\n" for name, label in nodes.items() if (folder / name).is_file()]
    header = f"_{labels.NODE_NAME} #1\n_{labels.NODE_TYPE} #2\n"
    write_text(folder / "RELION_OUTPUT_NODES.star", f"data_output_nodes\n\nloop_\n{header}{''.join(rows)}\n")
