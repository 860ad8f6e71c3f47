"""What torch's code generator knows of each operator: whether CUDA has it, and which devices its arguments may have."""

import re
from collections.abc import Iterator
from pathlib import Path

import torch
import torchgen

_DISPATCH = re.compile(r"\n  dispatch:\n((?:    .*\n?)+)")
_DELEGATE = re.compile(r"\n  structured_delegate: *(\S+)")
_NO_CHECK = re.compile(r"device_check: NoCheck *(#.*)?")


def _operators() -> Iterator[tuple[str, str]]:
    """Name and entry of each operator in native_functions.yaml, which comes with torch."""
    path = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    for entry in path.read_text(encoding="utf-8").split("\n- func: ")[1:]:
        yield entry.partition("(")[0], entry


def cuda_kernels() -> set[str]:
    """Names of the operators that have a CUDA kernel, also where torch is built without them."""
    registered = torch._C._dispatch_get_registrations_for_dispatch_key("CUDA")
    return written_cuda_kernels() | {name.removeprefix("aten::") for name in registered if name.startswith("aten::")}


def written_cuda_kernels() -> set[str]:
    """Names of the operators for which native_functions.yaml has a CUDA kernel."""
    direct, delegates = set(), {}
    for name, entry in _operators():
        if found := _DELEGATE.search(entry):
            delegates[name] = found[1]
        lines = found[1].splitlines() if (found := _DISPATCH.search(entry)) else []
        keys = {key.strip() for line in lines for key in line.partition(":")[0].split(",")}
        if "CUDA" in keys or "\n  ufunc_inner_loop:" in entry:
            direct.add(name)
    return direct | {name for name, to in delegates.items() if to in direct}


def device_checks() -> dict[str, str]:
    """By operator: ``same`` (all tensors on one device), ``iterator`` (0-dim. CPU tensors pass too), or ``free``."""
    checks = {}
    for name, entry in _operators():
        found = _NO_CHECK.search(entry)
        unchecked = "iterator" if found and "TensorIterator" in (found[1] or "") else "free"
        checks[name] = unchecked if found else "same"
    return checks


# CPU indices are taken by these: torch copies them to the GPU (which waits, since they are not pinned).
INDEXING = frozenset({"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put"})
ANY_DEVICE = frozenset(
    {
        "copy_", "_to_copy", "set_", "is_set_to", "resize_", "_copy_from", "_pin_memory", "is_pinned", "record_stream",
    }
)  # fmt: skip
# Operators after which the host knows a number that only the device had.
WAITING = frozenset(
    {
        "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "_unique", "unique_consecutive", "unique_dim",
        "equal", "bincount", "_linalg_eigh", "_linalg_svd", "linalg_eig", "linalg_lstsq", "linalg_eigvals",
        "_linalg_eigvals",
    }
)  # fmt: skip
# Views touch no memory: torch's own kernels, which are the same for the CPU and for CUDA.
VIEWS = frozenset(
    {
        "as_strided", "view", "_reshape_alias", "unfold", "view_as_real", "view_as_complex", "set_", "is_set_to",
        "_nested_view_from_buffer", "_nested_compute_contiguous_strides_offsets",
    }
)  # fmt: skip
# Not pretended: the words in their names.
LEFT_OUT = ("cudnn", "miopen", "sparse", "quantize", "nested", "flash", "efficient_att")
