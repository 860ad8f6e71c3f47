"""Topics of ``cryoeq help``: the README files of the packages, as plain text."""

import ast
import re
from dataclasses import dataclass

from cryoeq.config.loading import packaged_file

_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)", re.DOTALL)
_TESTS = re.compile(r"\s*\[[a-z_]+/test_[^\]]*\]", re.DOTALL)  # that pin a paragraph of the conventions


@dataclass(frozen=True)
class Topic:
    """A topic, and where its text is.

    Args:
        summary: in a few words.
        source: file, as ``packaged_file`` takes it.
        heading: heading of the section; empty for the whole file.
    """

    summary: str
    source: str
    heading: str = ""


TOPICS = {
    "conventions": Topic("axes, Euler angles, offsets, CTF, hand, FSC, units", "domain/__init__.py"),
    "files": Topic("what each command writes, and where", "outputs/README.md"),
    "exit-codes": Topic("what the exit code of a command says", "outputs/README.md", "Exit codes"),
    "programs": Topic("RELION, cryoSPARC, cisTEM, ChimeraX: files in and out, names of options", "io/README.md"),
    "walk": Topic("from RELION or cryoSPARC to a map and back, line by line", "io/walk.md"),
    "cluster": Topic("Slurm, several GPUs, containers, stopping and resuming", "configs/cluster/README.md"),
    "methods": Topic("the steps of each mode, and where they are in the code", "README.md"),
    "simulation": Topic("what is simulated: junk, neighbours, ice, noise", "simulation/README.md"),
    "performance": Topic("devices, threads, memory, precision", "runtime/README.md"),
    "encoders": Topic("pose encoders: groups, layers, designs", "equivariance/README.md"),
    "screening": Topic("missing views and outliers", "screening/README.md"),
    "lattices": Topic("unit cells of 2D crystals", "lattice/README.md"),
    "bounds": Topic("generalization bounds of encoders", "generalization/README.md"),
}


def topic_text(name: str) -> str:
    """The text of a topic, without the marks of Markdown that say nothing on a terminal.

    Args:
        name: of the topic.

    Raises:
        ConfigError: the file is missing from the installation.
    """
    topic = TOPICS[name]
    path = packaged_file(topic.source)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        docstring = ast.get_docstring(ast.parse(text), clean=False) or ""
        text = _TESTS.sub("", docstring.partition("\n\n")[2])
    if topic.heading:
        text = re.split(r"^## ", text.partition(f"## {topic.heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    return _LINK.sub(r"\1", text).strip() + "\n"


def topics_text() -> str:
    """The list of topics."""
    width = max(map(len, TOPICS))
    lines = [f"  {name:<{width}}  {topic.summary}" for name, topic in TOPICS.items()]
    return "\n".join(["Topics:", *lines, "", "`cryoeq help TOPIC` shows one, `cryoeq help COMMAND` a command."]) + "\n"
