"""Steerable layers for the plane's rotations and mirrors."""

from cryoeq.equivariance.block import BlockDesign, DegreeKind, KernelKind, SamplerKind, SteerableBlock
from cryoeq.equivariance.convolution import FullMapConv, SteerableConv
from cryoeq.equivariance.degree import (
    EquivarianceDegree,
    LearntDegree,
    RelaxedBasis,
    StrictDegree,
    equivariance_penalty,
    learnt_degrees,
)
from cryoeq.equivariance.depthwise import DepthwiseConv, InvertedResidual
from cryoeq.equivariance.fields import (
    FieldKind,
    FieldName,
    Fourier,
    Irreps,
    Product,
    Quotient,
    Restricted,
    SimpleKind,
)
from cryoeq.equivariance.groups import GROUP_NAMES, PlaneGroup, plane_group
from cryoeq.equivariance.implicit_kernels import ConditionedConv, ImplicitBasis
from cryoeq.equivariance.irrep_nonlinearity import IrrepActivation
from cryoeq.equivariance.irreps import Irrep
from cryoeq.equivariance.kernels import AnalyticBasis, KernelBasis, steerable_kernels
from cryoeq.equivariance.nonlinearity import FieldActivation
from cryoeq.equivariance.perceptron import SteerablePerceptron
from cryoeq.equivariance.sampling import AdaptiveSampler, Frames, GroupSampler, UniformSampler

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
