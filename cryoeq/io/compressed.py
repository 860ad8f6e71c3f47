"""Files that gzip or bzip2 has packed, as archives serve them, are read as if they were plain."""

import bz2
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryoeq.errors import CryoEqError

COMPRESSION_SUFFIXES = (".gz", ".bz2")
Unpacked = gzip.GzipFile | bz2.BZ2File
_READERS: dict[bytes, type[gzip.GzipFile] | type[bz2.BZ2File]] = {b"\x1f\x8b\x08": gzip.GzipFile, b"BZh": bz2.BZ2File}
_CHUNK_BYTES = 2**24


def without_compression_suffix(name: str) -> str:
    """The name of a file without ``.gz`` or ``.bz2``, in lower or upper case."""
    suffix = next((suffix for suffix in COMPRESSION_SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]


def is_compressed(start: bytes) -> bool:
    """Whether a file is packed by gzip or bzip2, by its first bytes: the suffix does not matter."""
    return start[:3] in _READERS


def read_start(path: Path, size: int, error: type[CryoEqError]) -> bytes:
    """First bytes of a plain file, or of the content of a packed one, which is unpacked to its end as a test.

    Args:
        path: file of any kind.
        size: bytes wanted.
        error: class of the error for a file that cannot be unpacked.

    Raises:
        CryoEqError: of the given class: the packed file is damaged or ends early.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(size)
    if not is_compressed(start):
        return start
    with open_compressed(path, error) as unpacked:
        start = unpacked.read(size)
        while unpacked.read(_CHUNK_BYTES):
            pass
    return start


@contextmanager
def open_compressed(path: Path, error: type[CryoEqError]) -> Iterator[Unpacked]:
    """The unpacked content of a packed file.

    Args:
        path: file packed by gzip or bzip2.
        error: class of the error for a file that cannot be unpacked.

    Yields:
        A stream of the unpacked bytes.

    Raises:
        CryoEqError: of the given class: the packed file is damaged or ends early.
    """
    with path.open("rb") as packed:
        reader = _READERS[packed.read(3)]
    try:
        with reader(path, "rb") as unpacked:
            yield unpacked
    except (EOFError, zlib.error, gzip.BadGzipFile, OSError) as damage:
        if isinstance(damage, OSError) and damage.errno is not None:
            raise
        name = reader.__module__
        raise error(
            f"{path} cannot be unpacked by {name}: {damage}", "It is damaged or incomplete", "Download or copy it again"
        ) from damage


def unpacked_chunks(stream: Unpacked, offset: int, size: int) -> Iterator[bytes]:
    """Bytes of a stream, piece by piece: as many as there are of those wanted.

    The stream is read to its end, where its checksum lies.

    Args:
        stream: stream at its beginning.
        offset: bytes to leave out before the first.
        size: bytes wanted.
    """
    if stream.seek(offset) < offset:
        return
    while size > 0 and (chunk := stream.read(min(size, _CHUNK_BYTES))):
        size -= len(chunk)
        yield chunk
    while stream.read(_CHUNK_BYTES):
        pass
