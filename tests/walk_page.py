"""The commands of the walk page, in its order."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

PAGE = Path(__file__).parents[1] / "cryoeq" / "io" / "walk.md"
CLASSES, OF_CRYOSPARC = "Several structures", "cryoSPARC"


def commands() -> Iterator[tuple[str, list[str]]]:
    """Heading and words of each command in the blocks of the page."""
    for section in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.M)[1:]:
        heading = section.partition("\n")[0]
        for block in re.findall(r"^```sh\n(.*?)^```$", section, re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                yield heading, shlex.split(line)
