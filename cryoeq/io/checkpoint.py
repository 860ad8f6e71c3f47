"""Checkpoints: the whole state of a run in one file."""

import io
from pathlib import Path
from typing import Any

import torch

from cryoeq.errors import CheckpointError
from cryoeq.io.atomic import atomic_path


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` atomically.

    Args:
        path: the file to create or replace.
        state: tensors, numbers, strings and containers of them: what ``torch.load`` admits with ``weights_only=True``.

    Raises:
        OutputError: the disk is full or the path cannot be written.
    """
    # torch.save into a file hides a full disk behind a RuntimeError of its C++ writer; a buffer keeps the OSError.
    buffer = io.BytesIO()
    torch.save(_on_host(state), buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def _on_host(state: dict[str, Any]) -> dict[str, Any]:
    """The same with all tensors on the CPU; a GPU is waited for once."""
    devices: set[torch.device] = set()

    def copied(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_cuda:
            devices.add(value.device)
            return value.to("cpu", non_blocking=True)
        if isinstance(value, dict):
            return {key: copied(part) for key, part in value.items()}
        return type(value)(map(copied, value)) if type(value) in {list, tuple} else value

    found: dict[str, Any] = copied(state)
    for device in devices:
        torch.cuda.current_stream(device).synchronize()
    return found


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint without executing code from it.

    Args:
        path: file of ``save_checkpoint``.
        device: device of the tensors.

    Raises:
        CheckpointError: the file is missing, damaged or not a checkpoint of cryoeq.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path} does not exist", "", "Start a new run, or give the folder of a run that was stopped"
        )
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the unpickler raises a dozen kinds for a damaged file
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__})",
            "cryoeq needs a file that it wrote itself, whole",
            "Start a new run in another folder, or use an older checkpoint",
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not the state of a run", "", "Start a new run")
    return state
