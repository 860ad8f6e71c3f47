"""Frequency marching and the learning rate."""

import pytest

from cryoeq.training.autoencoder.schedule import Schedule

SCHEDULE = Schedule(1000, 3.0, 15.0, marching=0.5, constant=0.8, final_rate=0.1)


def test_the_radius_marches_to_the_last_shell() -> None:
    radii = [SCHEDULE.radius(step) for step in range(1000)]
    assert (radii[0], radii[250], radii[500], radii[999]) == (3.0, 9.0, 15.0, 15.0)
    assert radii == sorted(radii)


def test_the_rate_is_constant_and_then_falls() -> None:
    rates = [SCHEDULE.rate(step) for step in range(1000)]
    assert set(rates[:801]) == {1.0}
    assert rates[900] == pytest.approx(0.5)
    assert rates[999] == 0.1
    assert rates == sorted(rates, reverse=True)


def test_without_marching_all_shells_count_from_the_start() -> None:
    schedule = Schedule(10, 3.0, 15.0, marching=0.0)
    assert [schedule.radius(step) for step in (0, 1, 9)] == [3.0, 15.0, 15.0]


@pytest.mark.parametrize("total_steps", [1, 2, 3])
def test_the_shortest_trainings_have_a_schedule(total_steps: int) -> None:
    schedule = Schedule(total_steps, 3.0, 7.0)
    for step in range(total_steps):
        assert 3.0 <= schedule.radius(step) <= 7.0
        assert 0.05 <= schedule.rate(step) <= 1.0
