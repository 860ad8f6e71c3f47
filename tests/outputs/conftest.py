"""Figures of the tests of pictures."""

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is made, before it becomes a file."""
    made: list[Figure] = []
    init = Figure.__init__

    def remember(figure: Figure, *arguments: object, **options: object) -> None:
        init(figure, *arguments, **options)
        made.append(figure)

    monkeypatch.setattr(Figure, "__init__", remember)
    return made
