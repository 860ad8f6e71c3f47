"""Files of other formats than the one expected, known by their first bytes."""

from dataclasses import dataclass

import numpy as np

_TEXT = frozenset(b"\t\n\r\f") | frozenset(range(0x20, 0x7F))
_SHOWN_LETTERS = 40


@dataclass(frozen=True)
class ForeignFormat:
    """A format that is not MRC.

    Args:
        name: the format, with its article.
        advice: how the user gets to a file that can be read.
    """

    name: str
    advice: str


_HTML = ForeignFormat(
    "an HTML page, saved in place of the data", "Download it again, by the link to the file itself, not to its page"
)
_TIFF = ForeignFormat("a TIFF or EER image", "Convert it to MRC, for example with tif2mrc of IMOD")
_SPIDER = ForeignFormat(
    "a SPIDER file", "Convert it to MRC, for example with e2proc3d.py of EMAN2 or relion_image_handler"
)
_SIGNATURES = {
    b"\xfd7zXZ\x00": ForeignFormat("compressed by xz", "Unpack it with xz -d; gzip and bzip2 are read as they are"),
    b"\x28\xb5\x2f\xfd": ForeignFormat(
        "compressed by zstd", "Unpack it with zstd -d; gzip and bzip2 are read as they are"
    ),
    b"PK\x03\x04": ForeignFormat("a ZIP archive", "Unpack it with unzip"),
    b"7z\xbc\xaf\x27\x1c": ForeignFormat("a 7z archive", "Unpack it with 7z x"),
    b"II*\x00": _TIFF,
    b"MM\x00*": _TIFF,
    b"II+\x00": _TIFF,
    b"MM\x00+": _TIFF,
    b"\x89HDF\r\n\x1a\n": ForeignFormat("an HDF5 file", "Convert it to MRC, for example with e2proc3d.py of EMAN2"),
    b"\x89PNG\r\n\x1a\n": ForeignFormat("a PNG picture", "Give the MRC file that the picture was made from"),
    b"\xff\xd8\xff": ForeignFormat("a JPEG picture", "Give the MRC file that the picture was made from"),
    b"%PDF": ForeignFormat("a PDF document", "Download the data themselves"),
    b"\x93NUMPY": ForeignFormat("a NumPy array", "Write it as MRC, for example with mrcfile.write"),
    b"version https://git-lfs": ForeignFormat("a Git LFS pointer, not the file itself", "Fetch it with git lfs pull"),
}


def recognise(start: bytes, *, expects_text: bool = False) -> ForeignFormat | None:
    """The format of a file that is not what was expected; None where its first bytes tell nothing.

    Args:
        start: first kilobyte of the file, or all of it.
        expects_text: whether text is expected, as of an atomic model; else an MRC file is.
    """
    by_signature = next((kind for signature, kind in _SIGNATURES.items() if start.startswith(signature)), None)
    if by_signature is not None:
        return by_signature
    if start[257:262] == b"ustar":
        return ForeignFormat("a tar archive", "Unpack it with tar -xf")
    if any(_is_spider(start, order) for order in "<>"):
        return _SPIDER
    if start and not any(start):
        return ForeignFormat("zeros, as after a copy that did not finish", "Copy or download it again")
    if expects_text and start[208:212] == b"MAP ":
        return ForeignFormat("an MRC file", "Give it as a map, or, with a name that ends in .mrcs, as a stack")
    return _recognise_text(start.removeprefix(b"\xef\xbb\xbf").lstrip(), expects_text=expects_text)


def _recognise_text(text: bytes, *, expects_text: bool) -> ForeignFormat | None:
    lowered = text.lower()
    if lowered.startswith((b"<!doctype html", b"<html")) or (lowered.startswith(b"<") and b"<html" in lowered):
        return _HTML
    if text and not expects_text and _TEXT.issuperset(text):
        line = text.split(b"\n", 1)[0][:_SHOWN_LETTERS].decode("ascii").strip()
        return ForeignFormat(f"text, which begins with {line!r}", "Give the file of the densities or images")
    return None


def _is_spider(start: bytes, order: str) -> bool:
    """Whether the words of a SPIDER header agree with each other, as Pillow asks of them."""
    if len(start) < 108:
        return False
    words = np.frombuffer(start[:108], f"{order}f4").tolist()
    rows, kind, columns, records, header_bytes, record_bytes = (words[place] for place in (1, 4, 11, 12, 21, 22))
    are_whole = all(number.is_integer() for number in (rows, kind, columns, records, header_bytes, record_bytes))
    return (
        are_whole
        and kind in {1, 3, -11, -12, -21, -22}
        and rows > 0
        and columns > 0
        and header_bytes == records * record_bytes > 0
    )
