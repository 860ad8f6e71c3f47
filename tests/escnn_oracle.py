"""escnn, as a reference for groups, fields and kernels: an independent implementation that solves numerically.

escnn 1.0.11 imports ``lie_learn`` for one function of SO(3), which nothing here uses: a stub takes its place. Where
scikit-learn is installed escnn would take its randomized SVD, which refuses the matrices that escnn gives it:
scikit-learn is hidden while escnn is imported, and scipy's SVD is used.
"""

import contextlib
import importlib.util
import io
import sys
import types
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cryoeq.equivariance.irreps import Element

FLIP = np.diag([1.0, -1.0])
"""escnn's y axis points up."""


def _import_escnn() -> Any:
    if importlib.util.find_spec("escnn") is None:
        pytest.skip("escnn is not installed: uv pip install --group escnn", allow_module_level=True)
    wigner, hidden = "lie_learn.representations.SO3.wigner_d", "sklearn.utils.extmath"
    parts = wigner.split(".")
    for depth in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:depth]), types.ModuleType(".".join(parts[:depth])))
    vars(sys.modules[wigner]).setdefault("wigner_D_matrix", None)
    present = sys.modules.get(hidden)
    sys.modules[hidden] = None  # type: ignore[assignment]  # what Python itself understands as absent
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an escape sequence in a docstring, and that py3nj (SO(3) only) is absent
        import escnn.group
        import escnn.gspaces
        import escnn.nn
    del sys.modules[hidden]
    if present is not None:
        sys.modules[hidden] = present
    return escnn


escnn: Any = _import_escnn()


def space_of(name: str) -> Any:
    """The plane with a group acting on it."""
    if name in ("c1", "d1"):
        return escnn.gspaces.trivialOnR2() if name == "c1" else escnn.gspaces.flip2dOnR2()
    build = escnn.gspaces.rot2dOnR2 if name[0] in "cs" else escnn.gspaces.flipRot2dOnR2
    return build(-1, maximum_frequency=12) if name in ("so2", "o2") else build(int(name[1:]))


def element_of(name: str, g: Element) -> Any:
    """An element as escnn's object."""
    group = space_of(name).fibergroup
    if name in ("c1", "d1"):
        return group.element(int(g.is_mirrored))
    parts = (int(g.is_mirrored), g.angle_rad)
    return group.element(parts if name[0] in "do" else g.angle_rad, "radians")


def kernels_of(name: str, in_field: Any, out_field: Any, size: int, **options: Any) -> Tensor:
    """Kernels between two representations, as (basis, out, in, size, size); vectors are (x, y), y upwards."""
    space = space_of(name)
    fields = [escnn.nn.FieldType(space, [field]) for field in (in_field, out_field)]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints the coefficients that it solves for
        try:
            layer = escnn.nn.R2Conv(*fields, size, bias=False, initialize=False, **options)
        except ValueError as error:
            if "basis for the steerable filter is empty" not in str(error):
                raise
            return torch.zeros(0, out_field.size, in_field.size, size, size)
    blocks = (block.sampled_basis for block in layer.basisexpansion.modules() if hasattr(block, "sampled_basis"))
    kernels: Tensor = next(blocks)
    return kernels.reshape(-1, out_field.size, in_field.size, size, size)
