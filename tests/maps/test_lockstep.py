"""Minimisations that wait for each other end where they end alone, and an error in one ends all."""

import numpy as np
import pytest

from cryoeq.maps.lockstep import minimise_together

OPTIONS = {"gtol": 1e-6, "maxiter": 60}
MINIMA = np.array([[0.3, -0.2], [1.5, 0.8], [-0.9, 0.1]])


class Valleys:
    """Curved valleys of different lengths, and how many were asked for at a time."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def __call__(self, numbers: list[int], parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.asked.append(numbers)
        x, y = (parameters - MINIMA[numbers]).T
        steepness = 1.0 + 20 * np.array(numbers)
        bend = y - x**2
        gradients = np.stack([2 * x - 4 * steepness * bend * x, 2 * steepness * bend], 1)
        return x**2 + steepness * bend**2, gradients


def test_each_ends_where_it_ends_alone() -> None:
    together = Valleys()
    found = minimise_together(together, 3, 2, OPTIONS)
    np.testing.assert_allclose(found, MINIMA, atol=1e-4)
    alone = [
        minimise_together(lambda _, x, number=number: Valleys()([number], x), 1, 2, OPTIONS)[0] for number in range(3)
    ]
    assert np.array_equal(found, np.stack(alone))
    assert together.asked[0] == [0, 1, 2]
    assert sorted(map(len, together.asked), reverse=True) == [*map(len, together.asked)]  # fewer, as some have ended
    assert len(together.asked) < sum(map(len, together.asked)) / 1.5


def test_an_error_ends_all() -> None:
    calls = []

    def fail(numbers: list[int], parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        calls.append(numbers)
        if len(calls) == 3:
            raise MemoryError("none left")
        return Valleys()(numbers, parameters)

    with pytest.raises(MemoryError, match="none left"):
        minimise_together(fail, 3, 2, OPTIONS)
    assert len(calls) == 3
