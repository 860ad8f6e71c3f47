"""Steerable layers for the plane's rotations and mirrors; the only package that imports escnn.

escnn 1.0.11 imports ``lie_learn`` for one function of SO(3), which nothing here uses; that package needs an old numpy
and a compiler. Where it is absent a stub takes its place before escnn is imported. escnn also keeps a cache of group
theory inside its own package, where a user who did not install it may not write: it goes to the user's cache folder.
Where scikit-learn is installed escnn would solve for Clebsch-Gordan coefficients by its randomized SVD, which refuses
the matrices that escnn gives it: scikit-learn is hidden while escnn is imported, and scipy's SVD is used.
"""

import importlib.util
import os
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import joblib

_WIGNER = "lie_learn.representations.SO3.wigner_d"


def _register_lie_learn_stub() -> None:
    """Let ``from lie_learn... import wigner_D_matrix`` succeed; only a call of the function raises."""

    def wigner_d_matrix(*_args: object, **_kwargs: object) -> None:
        raise ModuleNotFoundError("lie_learn is not installed: representations of SO(3) are not available")

    parts = _WIGNER.split(".")
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        sys.modules.setdefault(name, types.ModuleType(name))
    vars(sys.modules[_WIGNER])["wigner_D_matrix"] = wigner_d_matrix


def _user_cache() -> str | None:
    """A folder for escnn's cache that this user may write to; None, hence no cache, where there is none."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cryoeq" / "escnn"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return str(folder) if os.access(folder, os.W_OK) else None


@contextmanager
def _cache_of_the_user() -> Iterator[None]:
    """Modules imported inside the block that make a ``joblib.Memory`` get one in the user's cache folder."""
    memory = joblib.Memory
    joblib.Memory = lambda _location, **options: memory(_user_cache(), **options)
    try:
        yield
    finally:
        joblib.Memory = memory


@contextmanager
def _scikit_learn_hidden() -> Iterator[None]:
    """Make the one module that escnn would take from scikit-learn impossible to import inside the block."""
    name = "sklearn.utils.extmath"
    present = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]  # what Python itself understands as absent
    try:
        yield
    finally:
        del sys.modules[name]
        if present is not None:
            sys.modules[name] = present


if importlib.util.find_spec("lie_learn") is None:
    _register_lie_learn_stub()

with warnings.catch_warnings(), _cache_of_the_user(), _scikit_learn_hidden():
    # Silenced once, here, for every module of the package: an invalid escape sequence in a docstring of escnn, and its
    # notice that py3nj (SO(3) only, needs a Fortran compiler) is absent.
    warnings.filterwarnings("ignore", message=".*invalid escape sequence.*")
    warnings.filterwarnings("ignore", message=".*py3nj.*", category=UserWarning)
    import escnn.gspaces
    import escnn.nn  # noqa: F401

from cryoeq.equivariance.block import BlockDesign, DegreeKind, KernelKind, SamplerKind, SteerableBlock  # noqa: E402
from cryoeq.equivariance.convolution import FullMapConv, SteerableConv  # noqa: E402
from cryoeq.equivariance.degree import (  # noqa: E402
    EquivarianceDegree,
    LearntDegree,
    RelaxedBasis,
    StrictDegree,
    equivariance_penalty,
    learnt_degrees,
)
from cryoeq.equivariance.depthwise import DepthwiseConv, InvertedResidual  # noqa: E402
from cryoeq.equivariance.fields import (  # noqa: E402
    FieldKind,
    FieldName,
    Fourier,
    Irrep,
    Irreps,
    Product,
    Quotient,
    Restricted,
    SimpleKind,
)
from cryoeq.equivariance.groups import GROUP_NAMES, PlaneGroup, plane_group  # noqa: E402
from cryoeq.equivariance.implicit_kernels import ConditionedConv, ImplicitBasis  # noqa: E402
from cryoeq.equivariance.irrep_nonlinearity import IrrepActivation  # noqa: E402
from cryoeq.equivariance.kernels import AnalyticBasis, KernelBasis, steerable_kernels  # noqa: E402
from cryoeq.equivariance.nonlinearity import FieldActivation  # noqa: E402
from cryoeq.equivariance.perceptron import SteerablePerceptron  # noqa: E402
from cryoeq.equivariance.sampling import AdaptiveSampler, Frames, GroupSampler, UniformSampler  # noqa: E402

__all__ = [
    "GROUP_NAMES",
    "AdaptiveSampler",
    "AnalyticBasis",
    "BlockDesign",
    "ConditionedConv",
    "DegreeKind",
    "DepthwiseConv",
    "EquivarianceDegree",
    "FieldActivation",
    "FieldKind",
    "FieldName",
    "Fourier",
    "Frames",
    "FullMapConv",
    "GroupSampler",
    "ImplicitBasis",
    "InvertedResidual",
    "Irrep",
    "IrrepActivation",
    "Irreps",
    "KernelBasis",
    "KernelKind",
    "LearntDegree",
    "PlaneGroup",
    "Product",
    "Quotient",
    "RelaxedBasis",
    "Restricted",
    "SamplerKind",
    "SimpleKind",
    "SteerableBlock",
    "SteerableConv",
    "SteerablePerceptron",
    "StrictDegree",
    "UniformSampler",
    "equivariance_penalty",
    "learnt_degrees",
    "plane_group",
    "steerable_kernels",
]
