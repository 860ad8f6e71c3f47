"""Images that do not fit into memory, kept on a local disk while a run lasts."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.errors import OutputError


def keep_on_scratch(
    folder: Path, shape: tuple[int, int, int], chunks: Iterable[Float[Tensor, "_ n n"]]
) -> Float[Tensor, "particles n n"]:
    """Images on a local disk, mapped into memory, until the process ends.

    Args:
        folder: folder on a local disk.
        shape: shape of all images together.
        chunks: the images, float32, in order.

    Raises:
        OutputError: the folder cannot be written, or its disk is too small.
    """
    try:
        pieces = (chunk.contiguous().numpy().data for chunk in chunks)
        return torch.from_numpy(mapped_file(pieces, np.dtype(np.float32), shape, folder))
    except OSError as error:
        needed = 4 * shape[0] * shape[1] * shape[2] / 2**30
        raise OutputError(
            f"the scratch folder {folder} cannot take the images ({error.strerror})",
            f"They need {needed:.3g} GiB",
            "Choose another --scratch-dir, or leave it out to read the stacks themselves",
        ) from error


def mapped_file(
    pieces: Iterable[bytes | memoryview], dtype: np.dtype[Any], shape: tuple[int, ...], folder: Path | None = None
) -> np.memmap[Any, np.dtype[Any]]:
    """An array in a file without a name, mapped into memory: it is gone with the process, however that ends.

    Args:
        pieces: the bytes of the array, in order.
        dtype: type of the values.
        shape: shape of the array.
        folder: folder of the file; None for that of temporary files (TMPDIR).

    Raises:
        OSError: the folder cannot be written, or its disk is too small.
        ValueError: there are fewer bytes than the array has.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        for piece in pieces:
            # Plain writes: on a full disk a mapped page would kill the process (SIGBUS).
            file.write(piece)
        file.flush()
        return np.memmap(file, dtype, mode="c", shape=shape)
