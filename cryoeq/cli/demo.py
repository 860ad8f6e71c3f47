"""``cryoeq demo``."""

from pathlib import Path
from typing import Annotated

import typer

from cryoeq.cli.options import EXPERT, OUTPUT, Device, Seed


def demo(
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Run folder; one that holds a run is refused [cryoeq_demo].", rich_help_panel=OUTPUT
        ),
    ] = None,
    device: Device = None,
    seed: Seed = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer particles and iterations, for CI.", rich_help_panel=EXPERT)
    ] = False,
) -> None:
    """Simulate particles, find their poses, compare with the truth.

    The molecule is RNA polymerase II. About a minute on two cores. Exit code 4 unless the structure was found.

    Examples:
      cryoeq demo
      cryoeq demo -o demo --seed 1
    """
    from cryoeq.cli.drawing import draw
    from cryoeq.config.demo import DemoConfig
    from cryoeq.config.loading import load_config
    from cryoeq.outputs.run_folder import free_folder
    from cryoeq.pipelines.demo import demonstrate

    explicit = {"output": output or free_folder("cryoeq_demo"), "seed": seed, "quick": quick, "device": device}
    config = load_config(DemoConfig, explicit=explicit)
    draw(demonstrate(config), log=config.output / "run.log")
