"""The program: its commands, and what becomes of their errors."""

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, NoReturn

import typer

import cryoeq
from cryoeq.cli.cite import cite
from cryoeq.cli.demo import demo
from cryoeq.cli.doctor import doctor
from cryoeq.cli.errors import explain, print_message
from cryoeq.cli.evaluate import evaluate
from cryoeq.cli.fsc import fsc
from cryoeq.cli.help import help_
from cryoeq.cli.help_page import Command, Group
from cryoeq.cli.infer import infer
from cryoeq.cli.lattice import reduce
from cryoeq.cli.lattice_find import find
from cryoeq.cli.option_names import ALIASES, NOW_SETTINGS
from cryoeq.cli.orientations import orientations
from cryoeq.cli.reconstruct import reconstruct
from cryoeq.cli.refine import refine
from cryoeq.cli.relion_job import run_for_relion
from cryoeq.cli.report import report
from cryoeq.cli.screen import screen
from cryoeq.cli.select import select
from cryoeq.cli.settings import settings
from cryoeq.cli.simulate import simulate
from cryoeq.cli.streams import finish_streams, prepare_streams
from cryoeq.cli.symmetry import symmetry
from cryoeq.errors import ConfigError, OutputClosed, OutputError, Terminated
from cryoeq.runtime.torchrun import torchrun_environment

# Without rich's help pages the program starts in a tenth of a second.
app = typer.Typer(
    name="cryoeq",
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_RECONSTRUCTION, _VALIDATION, _CRYSTALS, _HELP = "Reconstruction", "Validation", "2D crystals", "Getting started"
lattice = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    help="""Find and reduce unit cells of 2D crystals.

Examples:
  cryoeq lattice find crystal.mrc -o cell
  cryoeq lattice reduce --cell "100 60 17"
""",
)
lattice.command("find", cls=Command)(find)
lattice.command("reduce", cls=Command)(reduce)
app.command("demo", cls=Command, rich_help_panel=_HELP)(demo)
app.command("help", cls=Command, rich_help_panel=_HELP)(help_)
app.command("doctor", cls=Command, rich_help_panel=_HELP)(doctor)
app.command("cite", cls=Command, rich_help_panel=_HELP)(cite)
app.command("settings", cls=Command, rich_help_panel=_HELP)(settings)
app.command("simulate", cls=Command, rich_help_panel=_RECONSTRUCTION)(simulate)
app.command("reconstruct", cls=Command, rich_help_panel=_RECONSTRUCTION)(reconstruct)
app.command("refine", cls=Command, rich_help_panel=_RECONSTRUCTION)(refine)
app.command("infer", cls=Command, rich_help_panel=_RECONSTRUCTION)(infer)
app.command("select", cls=Command, rich_help_panel=_RECONSTRUCTION)(select)
app.command("report", cls=Command, rich_help_panel=_RECONSTRUCTION)(report)
app.command("fsc", cls=Command, rich_help_panel=_VALIDATION)(fsc)
app.command("symmetry", cls=Command, rich_help_panel=_VALIDATION)(symmetry)
app.command("orientations", cls=Command, rich_help_panel=_VALIDATION)(orientations)
app.command("screen", cls=Command, rich_help_panel=_VALIDATION)(screen)
app.command("evaluate", cls=Command, rich_help_panel=_VALIDATION)(evaluate)
app.add_typer(lattice, name="lattice", rich_help_panel=_CRYSTALS)


def _show_version(asked: bool) -> bool:
    if asked:
        typer.echo(f"cryoeq {cryoeq.version_and_commit()}")
        raise typer.Exit
    return asked


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Reconstruct 3D maps from cryo-EM particle images, poses unknown.

    `cryoeq COMMAND --help` shows the options and examples of a command.

    Examples:
      cryoeq demo
      cryoeq reconstruct particles.star -o map
      cryoeq fsc map/run_half1_class001_unfil.mrc -o map/postprocess
    """
    del version, debug


def main() -> NoReturn:
    """Run the command of ``sys.argv`` and exit with its code."""
    prepare_streams()
    # Threads of torch that wait must not spin: on a shared node that costs a factor of ten.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Memory in huge pages: a third of the time of arithmetic on large maps is spent on first touching small ones.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    for number in (signal.SIGTERM, signal.SIGUSR1):  # schedulers send either before they take a node away
        signal.signal(number, _terminate)
    code = run(sys.argv[1:])
    try:
        finish_streams()
    except (OutputClosed, OutputError) as error:  # of a command that had ended
        code = code or error.exit_code
        if isinstance(error, OutputError):
            print_message(explain(error)[0])
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command line.

    Args:
        arguments: all that follows the program's name.

    Returns:
        The exit code: 0 done, 1 our bug, 2 wrong use, 3 bad data, 4 numerical failure, no memory or a lost
        process, 130/143 stopped, 141 output closed.
    """
    arguments = normalise(arguments)
    return run_for_relion(arguments, lambda: _run(arguments))


def _run(arguments: list[str]) -> int:
    try:
        _refuse_company(arguments)
        _refuse_old_options(arguments)
        code = app(arguments, prog_name="cryoeq", standalone_mode=False) or 0
        if code != 130:
            return code
        message, code = explain(KeyboardInterrupt())  # typer swallowed it
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except OutputClosed as end:
        return end.exit_code
    except (Exception, KeyboardInterrupt, Terminated) as error:  # noqa: BLE001 - the outermost frame of the program
        message, code = explain(error, debug="--debug" in arguments)
    print_message(message)
    return code


def _command(arguments: list[str]) -> str:
    return next((argument for argument in arguments if not argument.startswith("-")), "")


def _refuse_company(arguments: list[str]) -> None:
    """Several processes that do the same would write over each other."""
    command = _command(arguments)
    if command == "refine" and any(argument.partition("=")[0] == "--gpu" for argument in arguments):
        raise ConfigError("cryoeq refine --gpu", "a refinement runs in one process", "Give --device cuda:N for a GPU")
    if torchrun_environment().size > 1 and command != "reconstruct":
        raise ConfigError(
            f"{torchrun_environment().size} processes for one cryoeq {command}",
            "only cryoeq reconstruct shares its work out, over several GPUs too",
            f"Run it without torchrun: cryoeq {command} uses one GPU (--device cuda:N), or the cores of -j"
            if command == "refine"
            else "Run this command without torchrun",
        )


def _refuse_old_options(arguments: list[str]) -> None:
    if _command(arguments) != "reconstruct":
        return
    for argument in arguments[: arguments.index("--") if "--" in arguments else None]:
        option, _, value = argument.partition("=")
        if key := NOW_SETTINGS.get(option):
            value = value or ("true" if option == "--symmetric-loss" else "VALUE")
            raise ConfigError(
                f"{option} is now a setting, for --pose-inference amortized", "", f"Use --set {key}={value}"
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
    ours = ALIASES.get(name, name)
    return ours + equals + value if ours else value


def _terminate(signal_number: int, frame: FrameType | None) -> NoReturn:
    del frame
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # a second one must not disturb the checkpoint
    raise Terminated(signal.Signals(signal_number).name)
