"""Shells complete commands, options and choices, as --install-completion sets them up."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """A home folder of nobody, and a command ``cryoeq`` of this interpreter."""
    command = tmp_path / "bin" / "cryoeq"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cryoeq "$@"\n')
    command.chmod(0o755)
    disabled = {
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"
    }  # which asks what shell the tests were started from
    return {**os.environ, **disabled, "HOME": str(tmp_path), "PATH": f"{command.parent}:{os.environ['PATH']}"}


def said(words: list[str], home: dict[str, str], **more: str) -> str:
    return subprocess.run(words, env=home | more, capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("cryoeq rec", {"reconstruct"}),
        ("cryoeq reconstruct --both", {"--both-hands"}),
        ("cryoeq reconstruct --pose-inference a", {"amortized"}),
        ("cryoeq lattice f", {"find"}),
    ],
)
def test_bash_completes_after_the_installation(home: dict[str, str], typed: str, offered: set[str]) -> None:
    said(["cryoeq", "--install-completion", "bash"], home)
    function = "$(complete -p cryoeq | sed 's/.*-F //; s/ .*//')"
    script = f"source ~/.bashrc; COMP_WORDS=({typed}); COMP_CWORD={len(typed.split()) - 1}; {function} cryoeq; "
    assert set(said(["bash", "-c", script + 'printf "%s\\n" "${COMPREPLY[@]}"'], home).split()) == offered


def test_zsh_is_given_commands_with_their_summaries(home: dict[str, str]) -> None:
    said(["cryoeq", "--install-completion", "zsh"], home)
    folder = Path(home["HOME"])
    assert "fpath+=~/.zfunc" in (folder / ".zshrc").read_text()
    installed = (folder / ".zfunc" / "_cryoeq").read_text()
    assert installed.startswith("#compdef cryoeq")
    assert "_CRYOEQ_COMPLETE=complete_zsh" in installed
    offered = said(["cryoeq"], home, _TYPER_COMPLETE_ARGS="cryoeq sel", _CRYOEQ_COMPLETE="complete_zsh")
    assert '"select":"Choose particles' in offered
