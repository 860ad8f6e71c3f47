"""RELION External jobs: the output nodes that later jobs of its pipeline may take."""

from pathlib import Path

from cryoeq.io import labels
from cryoeq.io.text import write_text

_NODES = {
    "run_data.star": "ParticleGroupMetadata.star.relion",
    "run_class001.mrc": "DensityMap.mrc",
    "run_half1_class001_unfil.mrc": "DensityMap.mrc.halfmap",
    "run_half2_class001_unfil.mrc": "DensityMap.mrc.halfmap",
}


def write_output_nodes(folder: Path) -> None:
    """Write ``RELION_OUTPUT_NODES.star``, of RELION 4 and later.

    Args:
        folder: folder of the job, relative to RELION's project as in ``--o``; missing files are left out.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    rows = [f"{(folder / name).as_posix()} {label}\n" for name, label in _NODES.items() if (folder / name).is_file()]
    header = f"_{labels.NODE_NAME} #1\n_{labels.NODE_TYPE} #2\n"
    write_text(folder / "RELION_OUTPUT_NODES.star", f"data_output_nodes\n\nloop_\n{header}{''.join(rows)}\n")
