"""``cryoeq demo``."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for all that the demo makes [cryoeq_demo].")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the particles and of the training.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer particles and steps, for CI.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
) -> None:
    """Simulate particles of a packed model, reconstruct it without their poses, and compare with the truth."""
    from cryoeq.cli.drawing import draw
    from cryoeq.config.demo import DemoConfig
    from cryoeq.config.loading import load_config
    from cryoeq.outputs.run_folder import free_folder
    from cryoeq.pipelines.demo import demonstrate

    explicit = {"output": output or free_folder("cryoeq_demo"), "seed": seed, "quick": quick, "device": device}
    config = load_config(DemoConfig, explicit=explicit)
    draw(demonstrate(config), log=config.output / "run.log")
