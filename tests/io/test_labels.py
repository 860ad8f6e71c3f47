"""RELION's labels are spelled in cryoeq.io alone."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "cryoeq"
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).parts[0] != "io"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_other_package_spells_a_label(path: Path) -> None:
    strings = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant))
    spelled = [node.value for node in strings if re.fullmatch(r"_?rln\w+", str(node.value))]
    assert not spelled, "name them in cryoeq/io/labels.py"
