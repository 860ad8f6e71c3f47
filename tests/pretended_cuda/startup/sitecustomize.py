"""With this folder on PYTHONPATH, every Python process has the pretended devices of the environment."""

import os
import sys
from pathlib import Path

if os.environ.get("PRETENDED_CUDA"):
    sys.path.append(str(Path(__file__).parents[2]))
    from pretended_cuda.environment import install_from_environment

    install_from_environment()
