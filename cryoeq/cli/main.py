"""The program: its commands, and what becomes of their errors."""

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, NoReturn

import typer

import cryoeq
from cryoeq.cli.demo import demo
from cryoeq.cli.doctor import doctor
from cryoeq.cli.errors import explain
from cryoeq.cli.evaluate import evaluate
from cryoeq.cli.fsc import fsc
from cryoeq.cli.infer import infer
from cryoeq.cli.lattice import reduce
from cryoeq.cli.lattice_find import find
from cryoeq.cli.orientations import orientations
from cryoeq.cli.reconstruct import reconstruct
from cryoeq.cli.relion_job import run_for_relion
from cryoeq.cli.report import report
from cryoeq.cli.screen import screen
from cryoeq.cli.simulate import simulate
from cryoeq.errors import ConfigError, Terminated
from cryoeq.runtime.torchrun import torchrun_environment

# Without rich's help pages and shell completion the program starts in a tenth of a second.
app = typer.Typer(
    name="cryoeq",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# What users of other programs type: RELION, cryoDRGN, EMAN2, ASPIRE. The empty name leaves the value as an argument.
_ALIASES = {
    "--i": "", "--i2": "", "--input": "", "--o": "--output", "--outdir": "--output", "--apix": "--angpix",
    "--Apix": "--angpix", "--random-seed": "--seed", "--continue": "--resume", "--num-epochs": "--epochs",
    "--j": "--threads", "--num-workers": "--threads", "--auto-mask": "--mask=auto", "--adhoc-bfac": "--bfac",
    "--max-threads": "--threads", "--in-mask": "--mask", "--in-3dref": "--reference", "--symmetry": "--sym",
    "--data-folder": "--datadir", "--particles-dir": "--datadir",
}  # fmt: skip

lattice = typer.Typer(no_args_is_help=True, help="Unit cells of 2D crystals: find them in micrographs, reduce them.")
lattice.command("find")(find)
lattice.command("reduce")(reduce)
app.command("simulate")(simulate)
app.command("reconstruct")(reconstruct)
app.command("infer")(infer)
app.command("evaluate")(evaluate)
app.command("fsc")(fsc)
app.command("orientations")(orientations)
app.command("screen")(screen)
app.add_typer(lattice, name="lattice")
app.command("report")(report)
app.command("demo")(demo)
app.command("doctor")(doctor)


def _show_version(asked: bool) -> bool:
    if asked:
        typer.echo(f"cryoeq {cryoeq.__version__}")
        raise typer.Exit
    return asked


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and stop.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="With an error, show where in the code it arose.")] = False,
) -> None:
    """From a stack of cryo-EM particle images to a 3D map, without known poses."""
    del version, debug


def main() -> NoReturn:
    """Run the command of ``sys.argv`` and exit with its code."""
    # Threads of torch that wait must not spin: on a shared node that costs a factor of ten.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Memory in huge pages: a third of the time of arithmetic on large maps is spent on first touching small ones.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    for number in (signal.SIGTERM, signal.SIGUSR1):  # schedulers send either before they take a node away
        signal.signal(number, _terminate)
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line.

    Args:
        arguments: all that follows the program's name.

    Returns:
        The exit code: 0 done, 1 our bug, 2 wrong use, 3 bad data, 4 numerical failure, no memory or a lost
        process, 130/143 stopped.
    """
    arguments = normalise(arguments)
    return run_for_relion(arguments, lambda: _run(arguments))


def _run(arguments: list[str]) -> int:
    try:
        _refuse_company(arguments)
        app(arguments, prog_name="cryoeq")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
        if code != 130:
            return code
        message, code = explain(KeyboardInterrupt())  # typer swallowed it
    except (Exception, KeyboardInterrupt, Terminated) as error:  # noqa: BLE001 - the outermost frame of the program
        message, code = explain(error, debug="--debug" in arguments)
    print(message, file=sys.stderr)  # noqa: T201 - this is the command line
    return code


def _refuse_company(arguments: list[str]) -> None:
    """Several processes that do the same would write over each other."""
    command = next((argument for argument in arguments if not argument.startswith("-")), "")
    if torchrun_environment().size > 1 and command != "reconstruct":
        raise ConfigError(
            f"{torchrun_environment().size} processes for one cryoeq {command}",
            "only cryoeq reconstruct shares its work out",
            "Run this command without torchrun",
        )


def normalise(arguments: Sequence[str]) -> list[str]:
    """Accept ``--shift_sigma`` for ``--shift-sigma``, the names of other programs, and ``--debug`` anywhere.

    Args:
        arguments: as the user typed them.

    Returns:
        Our option names with dashes, values and all that follows ``--`` unchanged, ``--debug`` in front.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    dashed = [known for argument in arguments[:end] if (known := _known(argument))]
    rest = [argument for argument in dashed if argument != "--debug"]
    return ["--debug"] * (len(rest) < len(dashed)) + rest + list(arguments[end:])


def _known(argument: str) -> str:
    """An option by our name of it, empty where its value alone is wanted; a value as it is."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    name = name.replace("_", "-")
    ours = _ALIASES.get(name, name)
    return ours + equals + value if ours else value


def _terminate(signal_number: int, frame: FrameType | None) -> NoReturn:
    del frame
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # a second one must not disturb the checkpoint
    raise Terminated(signal.Signals(signal_number).name)
