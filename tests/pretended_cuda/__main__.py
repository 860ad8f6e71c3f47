"""``PRETENDED_CUDA=1 python -m pretended_cuda -m MODULE ARGUMENTS``, or a script: it runs with the devices."""

import os
import runpy
import sys

from pretended_cuda.environment import install_from_environment

os.environ.setdefault("PRETENDED_CUDA", "1")
install_from_environment()
if sys.argv[1] == "-m":
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
