"""Choices of the settings that have options: the command line lists them without importing pydantic."""

from typing import Literal

PoseInference = Literal["search", "hybrid", "amortized", "known", "refine"]
Scorer = Literal["error", "knn", "graph", "sheaf", "none"]
Reducer = Literal["lagrange-gauss", "lll", "niggli", "neural"]
PlaneReducer = Literal["lagrange-gauss", "lll", "neural"]
Views = Literal["uniform", "preferred"]
Noise = Literal["white", "coloured", "ice"]
InferencePrecision = Literal["fp32", "bf16", "int8"]
BetterEnd = Literal["highest", "lowest"]
