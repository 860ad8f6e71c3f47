"""Images that do not fit into memory, kept on a local disk while a run lasts."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.errors import OutputError


def keep_on_scratch(
    folder: Path, shape: tuple[int, int, int], chunks: Iterable[Float[Tensor, "_ n n"]]
) -> Float[Tensor, "particles n n"]:
    """Images in a file without a name, mapped into memory: it is gone with the process, however that ends.

    Args:
        folder: folder on a local disk.
        shape: shape of all images together.
        chunks: the images, float32, in order.

    Raises:
        OutputError: the folder cannot be written, or its disk is too small.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            for chunk in chunks:
                # Plain writes: on a full disk a mapped page would kill the process (SIGBUS).
                file.write(chunk.contiguous().numpy().data)
            file.flush()
            return torch.from_numpy(np.memmap(file, np.float32, mode="c", shape=shape))
    except OSError as error:
        needed = 4 * shape[0] * shape[1] * shape[2] / 2**30
        raise OutputError(
            f"the scratch folder {folder} cannot take the images ({error.strerror})",
            f"They need {needed:.3g} GiB",
            "Choose another --scratch-dir, or leave it out to read the stacks themselves",
        ) from error
