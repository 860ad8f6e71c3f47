"""Which particles an encoder of views is trained on, and which it is calibrated by."""

from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch
from torch import Tensor

from cryoeq.domain.events import Event, result_of
from cryoeq.domain.pose import PoseSet
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.training.views import stored_views
from cryoeq.training.views.encoder import ViewSettings
from cryoeq.training.views.stored_views import learn_half
from cryoeq.training.views.training import ViewTrainingSettings

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = ViewSettings(0.05, 0.42, torch.eye(3)[None])
SHORT = ViewTrainingSettings(projections=20, steps=2, batch_size=10)
Scene = tuple[ParticleTransforms, Tensor, PoseSet]


@pytest.fixture(scope="module")
def scene(make_known: Callable, observe: Callable) -> Scene:
    made = make_known(100, sigma=1.0, shift_sigma_angstrom=4.0)
    return observe(made.dataset), made.volume.values, made.pose_set


class Uses:
    """Rows of the particles that training and calibration get."""

    def __init__(self, particles: ParticleTransforms, patched: pytest.MonkeyPatch) -> None:
        self.trained, self.calibrated = list[int](), list[int]()
        train, calibrate = stored_views.train_views, stored_views._calibrate

        def rows(some: ParticleTransforms) -> list[int]:
            same = (some.ctf_multiplied[:, None, 1:9] == particles.ctf_multiplied[:, 1:9]).all(2)
            assert bool((same.sum(1) == 1).all())
            return same.long().argmax(1).tolist()

        def training(encoder: Any, donors: Any, searched: Any, *rest: Any, **more: Any) -> Generator[Event, None, None]:
            self.trained = [] if searched is None else rows(searched[0])
            yield from train(encoder, donors, searched, *rest, **more)

        def calibration(poser: Any, images: Any, *, refines: bool) -> Any:
            self.calibrated = rows(images[-1][0])
            return calibrate(poser, images, refines=refines)

        patched.setattr(stored_views, "train_views", training)
        patched.setattr(stored_views, "_calibrate", calibration)


def learn(
    scene: Scene, count: int, patched: pytest.MonkeyPatch, *, seed: int = 3
) -> tuple[Uses, stored_views.StoredHalf]:
    particles, volume, poses = scene
    some = torch.arange(count)
    with patched.context() as inside:
        uses = Uses(particles, inside)
        learning = learn_half(volume, particles.rows(some), poses.rows(some), SETTINGS, SHORT, seed=seed, number=1)
        return uses, result_of(learning)[0]


def test_calibration_is_by_particles_that_were_not_in_the_training(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    uses, _ = learn(scene, 100, monkeypatch)
    assert len(uses.calibrated) == 25
    assert sorted(uses.trained + uses.calibrated) == list(range(100))


def test_particles_are_chosen_at_random_by_the_seed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the first of a file, which are of its first micrographs."""
    monkeypatch.setattr(stored_views, "_SEARCHED", 40)
    first, again, other = (learn(scene, 100, monkeypatch, seed=seed)[0] for seed in (3, 3, 4))
    assert len(first.trained) == 40
    assert not set(first.trained) & set(first.calibrated)
    for rows in (first.trained, first.calibrated):
        assert 30 < sum(rows) / len(rows) < 70
    assert first.trained == again.trained
    assert first.calibrated == again.calibrated
    assert first.trained != other.trained


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_tiny_half_set_is_calibrated_too(scene: Scene, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    uses, half = learn(scene, count, monkeypatch)
    assert uses.trained == []
    assert uses.calibrated == list(range(count))
    values = (*half.usual_fit, *half.usual_bare_fit, *half.usual_confidence)
    assert bool(torch.tensor(values).isfinite().all())
