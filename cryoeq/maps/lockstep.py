"""Several minimisations at once, whose costs are computed together: for a GPU one evaluation costs as much as many."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Float64

# Of some of the problems, by number: costs and their gradients at one row of parameters each.
Costs = Callable[[list[int], Float64[np.ndarray, "some n"]], tuple[np.ndarray, np.ndarray]]


def minimise_together(costs: Costs, count: int, size: int, options: Any) -> Float64[np.ndarray, "count size"]:
    """The minima nearest to 0 of several functions, by BFGS.

    Args:
        costs: costs and gradients of some of the functions.
        count: number of functions.
        size: number of parameters of each.
        options: a dictionary, of scipy's BFGS.
    """
    from scipy.optimize import minimize  # half a second that only an alignment should cost

    def minimum(cost: Callable[[np.ndarray], tuple[float, np.ndarray]]) -> np.ndarray:
        return np.asarray(minimize(cost, np.zeros(size), jac=True, method="BFGS", options=options).x)

    if count == 1:
        return minimum(lambda x: _of_one(*costs([0], x[None])))[None]
    meeting = _Meeting(costs, count)

    def attended(number: int) -> np.ndarray:
        try:
            return minimum(lambda x: meeting.cost(number, x))
        finally:
            meeting.leave()

    with ThreadPoolExecutor(count) as pool:
        return np.stack([*pool.map(attended, range(count))])


def _of_one(values: np.ndarray, gradients: np.ndarray) -> tuple[float, np.ndarray]:
    return float(values[0]), gradients[0]


class _Meeting:
    """Where minimisations wait until all that still run have asked for a cost.

    Args:
        costs: costs and gradients of some of the functions.
        count: number of minimisations, each in a thread of its own.
    """

    def __init__(self, costs: Costs, count: int) -> None:
        self._costs, self._running = costs, count
        self._changed = threading.Condition()
        self._asked: dict[int, np.ndarray] = {}
        self._answers: dict[int, tuple[float, np.ndarray]] = {}
        self._error: BaseException | None = None

    def cost(self, number: int, parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """Cost and gradient of one minimisation."""
        with self._changed:
            self._asked[number] = parameters.copy()
            self._answer()
            self._changed.wait_for(lambda: number in self._answers or self._error is not None)
            if self._error is not None:
                raise self._error
            return self._answers.pop(number)

    def leave(self) -> None:
        """One minimisation has ended."""
        with self._changed:
            self._running -= 1
            self._answer()

    def _answer(self) -> None:
        if not self._asked or len(self._asked) < self._running or self._error is not None:
            return
        numbers = sorted(self._asked)
        try:
            values, gradients = self._costs(numbers, np.stack([self._asked[number] for number in numbers]))
        except BaseException as error:
            self._error = error
            self._changed.notify_all()
            raise
        self._answers.update(zip(numbers, zip(values.tolist(), gradients, strict=True), strict=True))
        self._asked.clear()
        self._changed.notify_all()
