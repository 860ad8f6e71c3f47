"""Settings from the environment, which children of a process inherit.

``PRETENDED_CUDA``: number of devices; ``PRETENDED_CUDA_MEMORY``: bytes of each (no limit); ``PRETENDED_CUDA_REPORT``:
JSON file for what was counted. The folder ``startup`` on ``PYTHONPATH`` puts the devices into every Python process.
"""

import atexit
import os
from pathlib import Path

_STARTUP = Path(__file__).parent / "startup"


def install_from_environment() -> None:
    """Put the devices into this process, and into its children as they start."""
    from pretended_cuda.figures import write_report
    from pretended_cuda.installation import install

    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(_STARTUP) not in path:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_STARTUP), *path]))
    install(int(os.environ["PRETENDED_CUDA"]), int(float(os.environ.get("PRETENDED_CUDA_MEMORY", "0"))))
    atexit.register(write_report)
