"""Every error that a user can act on: what was found and where, what was expected, what to do.

Exit codes: 0 done, 1 our bug, 2 wrong use or config, 3 bad data file, 4 numerical failure, no memory or a lost process,
130/143 stopped by a signal, 141 output closed.
"""

from typing import ClassVar


class CryoEqError(Exception):
    """An error that the user can act on.

    Args:
        found: what was found, and where (file, row, key).
        expected: what was expected instead.
        advice: what to do about it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, found: str, expected: str = "", advice: str = "") -> None:
        parts = [found.strip(), *(_capitalised(part.strip()) for part in (expected, advice))]
        super().__init__(" ".join(part if part.endswith("?") else f"{part.rstrip('.')}." for part in parts if part))


def _capitalised(sentence: str) -> str:
    """A sentence with its first letter in capitals, unless it begins with a name, an option or a path."""
    first = sentence.partition(" ")[0].removesuffix(",")
    is_word = first.isalpha() and first.islower() and first != "cryoeq"
    return sentence[:1].upper() + sentence[1:] if is_word else sentence


class ConfigError(CryoEqError):
    """A setting, an option or a combination of them that cannot work."""

    exit_code = 2


class OutputError(CryoEqError):
    """The output folder holds another run, cannot be written, or its disk is full."""

    exit_code = 2


class ParticleFileError(CryoEqError):
    """A particle star or stack that is missing, damaged or incomplete."""

    exit_code = 3


class MapFileError(CryoEqError):
    """A map, mask or atomic model that is missing, damaged or does not fit its partner."""

    exit_code = 3


class CheckpointError(CryoEqError):
    """A checkpoint that is missing, damaged or from another run."""

    exit_code = 3


class DivergedError(CryoEqError):
    """The numbers became NaN or the structure collapsed.

    Args:
        found: what was found, and where.
        expected: what was expected instead.
        advice: what to do about it.
        rows: of the particle table, those that it happened with; empty where it concerns all.
    """

    exit_code = 4

    def __init__(self, found: str, expected: str = "", advice: str = "", *, rows: tuple[int, ...] = ()) -> None:
        super().__init__(found, expected, advice)
        self.rows = rows


class NoLatticeError(CryoEqError):
    """A micrograph without a lattice that stands out of its noise."""

    exit_code = 4


class InsufficientMemoryError(CryoEqError):
    """A run that would need more memory than there is."""

    exit_code = 4


class LostProcessError(CryoEqError):
    """Another process of the job has ended, or cannot be reached."""

    exit_code = 4


class Terminated(BaseException):
    """A signal (SIGTERM, SIGUSR1) asked the program to stop: save what can be saved and let it pass.

    Its text is the signal's name. Like KeyboardInterrupt it is no Exception, so that no handler of errors swallows it.
    """

    exit_code: ClassVar[int] = 143


class OutputClosed(Terminated):
    """Nobody reads the output any longer, as after ``cryoeq ... | head``: what SIGPIPE does to other programs."""

    exit_code: ClassVar[int] = 141
