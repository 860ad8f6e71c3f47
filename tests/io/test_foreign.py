"""Files of other formats are called what they are, with the way to an MRC file."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cryoeq.errors import MapFileError, ParticleFileError
from cryoeq.io.mrc import MrcStack, read_map


def _picture(kind: str) -> bytes:
    content = io.BytesIO()
    grey = np.arange(40 * 40, dtype=np.float32).reshape(40, 40)
    Image.fromarray(grey if kind in {"SPIDER", "TIFF"} else grey.astype(np.uint8)).save(content, format=kind)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"<!DOCTYPE html>\n<html lang='en'>" + b" " * 4000,
            "an HTML page, saved in place of the data.*Download it again",
        ),
        (b"\xef\xbb\xbf\n <HTML><title>caf\xc3\xa9</title>", "an HTML page"),
        (b"<?xml version='1.0'?><html></html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer.*git lfs pull"),
        (b"\xfd7zXZ\x00\x00" + bytes(2000), "compressed by xz.*xz -d"),
        (b"\x28\xb5\x2f\xfd" + bytes(2000), "compressed by zstd.*zstd -d"),
        (b"PK\x03\x04" + bytes(2000), "a ZIP archive"),
        (b"\x89HDF\r\n\x1a\n" + bytes(2000), "an HDF5 file"),
        (b"II+\x00\x08\x00\x00\x00" + bytes(2000), "a TIFF or EER image"),
        (_picture("TIFF"), "a TIFF or EER image"),
        (_picture("PNG"), "a PNG picture"),
        (_picture("JPEG"), "a JPEG picture"),
        (_picture("SPIDER"), "a SPIDER file.*Convert it to MRC"),
        (b"HEADER    RIBOSOME\nATOM      1  N   MET A   1\n" * 40, "text, which begins with 'HEADER    RIBOSOME'"),
        (bytes(4096), "zeros"),
    ],
)
def test_a_file_of_another_format_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "given.mrc"
    path.write_bytes(content)
    with pytest.raises(MapFileError, match=f"(?s)given.mrc is not an MRC file but {said}"):
        read_map(path)
    with pytest.raises(ParticleFileError, match=f"(?s)given.mrc is not an MRC file but {said}"):
        MrcStack.open(path)
