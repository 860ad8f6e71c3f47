"""Settings of ``cryoeq report``."""

from pathlib import Path

from pydantic import Field

from cryoeq.config.frozen import FrozenConfig


class ReportConfig(FrozenConfig):
    """Which run to report on, and where to."""

    run: Path = Field(description="folder of a reconstruction")
    output: Path | None = Field(default=None, description="HTML file; None for report.html in the folder")
    datadir: Path | None = Field(default=None, description="folder in which the stacks lie now")
