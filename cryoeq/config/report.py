"""Settings of ``cryoeq report``."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from cryoeq.config.frozen import FrozenConfig


class ReportConfig(FrozenConfig):
    """Which run to report on, and where to."""

    options: ClassVar[Mapping[str, str]] = {"run": "RUN", "output": "-o/--output"}

    run: Path = Field(description="folder of a reconstruction")
    output: Path | None = Field(default=None, description="HTML file; None for report.html in the folder")
    datadir: Path | None = Field(default=None, description="folder in which the stacks lie now")
