"""Modules, functions and signatures stay small enough to read in one go."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEVICE = (path for path in (ROOT / "tests" / "pretended_cuda").rglob("*.py") if not path.stem.startswith("test_"))
MODULES = sorted([*(ROOT / "cryoeq").rglob("*.py"), *DEVICE])
LONGEST_MODULE = 400
LONGEST_COMMAND = 60
MOST_STATEMENTS = 40
MOST_COMPLEX = 8
MOST_POSITIONAL = 6
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "base", "manager"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def own_nodes(function: Function) -> Iterator[ast.AST]:
    """All nodes of the body but those of functions and classes inside it, which are counted by themselves."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, Function | ast.ClassDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))


def statements(function: Function) -> int:
    is_documented = ast.get_docstring(function) is not None
    return sum(isinstance(node, ast.stmt) for node in own_nodes(function)) - is_documented


def complexity(function: Function) -> int:
    """McCabe's number, as flake8 and ruff count it: one more than the branching statements."""
    branching = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case)
    return 1 + sum(isinstance(node, branching) for node in own_nodes(function))


def positional(function: Function) -> int:
    arguments = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
    return len([name for name in arguments if name not in {"self", "cls"}])


def is_command(function: Function) -> bool:
    """A Typer command's arguments are the command's options."""
    return any(
        isinstance(node, ast.Attribute) and node.attr in {"Option", "Argument"} for node in ast.walk(function.args)
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(a, b):\n    return a", (1, 1, 2)),
        ("def f(self, a, *, b):\n    'Doc.'\n    if a and b:\n        return a\n    return b", (3, 2, 1)),
        ("def f():\n    def g():\n        if 1:\n            pass\n    return [x for x in g() if x]", (2, 1, 0)),
    ],
)
def test_the_counting(source: str, expected: tuple[int, int, int]) -> None:
    function = next(functions(ast.parse(source)))
    assert (statements(function), complexity(function), positional(function)) == expected


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_and_its_functions_are_small(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    too_large = []
    if (lines := source.count("\n")) > LONGEST_MODULE:
        too_large.append(f"{lines} lines")
    for function in functions(ast.parse(source)):
        if (count := statements(function)) > MOST_STATEMENTS:
            too_large.append(f"{function.name}: {count} statements")
        if (count := complexity(function)) > MOST_COMPLEX:
            too_large.append(f"{function.name}: complexity {count}")
        if (count := positional(function)) > MOST_POSITIONAL and not is_command(function):
            too_large.append(f"{function.name}: {count} positional parameters")
    assert not too_large


@pytest.mark.parametrize("path", [path for path in MODULES if path.parent.name == "cli"], ids=lambda path: path.name)
def test_a_command_is_thin(path: Path) -> None:
    """Apart from the list of its options, which is its documentation."""
    source = path.read_text(encoding="utf-8")
    for function in filter(is_command, functions(ast.parse(source))):
        signature_lines = function.body[0].lineno - function.lineno
        if path.stem != "main":
            assert source.count("\n") - signature_lines <= LONGEST_COMMAND


def test_modules_are_named_after_what_they_hold() -> None:
    assert not [path for path in MODULES if path.stem in FORBIDDEN_NAMES]


def test_no_module_postpones_its_annotations() -> None:
    """jaxtyping and Typer read annotations at run time."""
    assert not [path for path in MODULES if "from __future__ import annotations" in path.read_text(encoding="utf-8")]
