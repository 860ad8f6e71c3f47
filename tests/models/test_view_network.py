"""View network: logits that the group does not change, invariants of fields, and views that are learnt."""

from collections.abc import Iterator

import pytest
import torch
from group_actions import act_trivially, equivariance_error
from torch import Tensor

from cryoeq.equivariance import plane_group
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.so3 import random_rotations
from cryoeq.geometry.so3_grid import so3_grid
from cryoeq.models.pose_encoder import EncoderDesign, FieldEncoder, TrunkKind
from cryoeq.models.view_head import nearness, smoothed_views
from cryoeq.models.view_network import FieldInvariants, ViewNetwork
from cryoeq.physics.projection import extract_slices, prepare_slices
from cryoeq.simulation.density import sample_atoms
from phantoms import chiral_phantom

pytestmark = pytest.mark.usefixtures("one_thread")
BOX = 16
C1 = torch.eye(3)[None]
CASES: list[tuple[str, TrunkKind]] = [
    ("c1", "dense"), ("c4", "dense"), ("d1", "dense"), ("d4", "dense"), ("d8", "dense"), ("so2", "dense"),
    ("o2", "dense"), ("d4", "conv"), ("o2", "conv"), ("d4", "mobilenet"),
]  # fmt: skip


@pytest.fixture(scope="module")
def directions() -> Tensor:
    """Views up to sign, about 30 degrees apart."""
    views = so3_grid(1, 1)[:, 2]
    return views[views @ views.new_tensor([1.0, 1e2, 1e4]) > 0]


def small(group: str, directions: Tensor, trunk: TrunkKind = "dense") -> ViewNetwork:
    widths = (64,) if trunk == "dense" else (16,) * len(FieldEncoder(group, BOX, trunk=trunk).plan.level_sizes_px)
    widths = widths if trunk == "dense" else (*widths, 64)
    return ViewNetwork(group, BOX, directions, widths, trunk=trunk)


@pytest.fixture
def in_double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("in_training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("group", "trunk"), CASES)
def test_the_group_does_not_change_logits(
    group: str, trunk: TrunkKind, in_training: bool, directions: Tensor, generator: torch.Generator
) -> None:
    network = small(group, directions.double(), trunk).train(in_training)
    images = torch.randn(6, BOX, BOX, generator=generator)
    network(images)
    with torch.no_grad():
        logits = network(images)
        error = equivariance_error(network, act_trivially, images, network.group.elements())
    assert float(logits.std()) > 1e-3
    assert error < 1e-9 * float(logits.std())


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("group", ["c2", "c4", "c8", "d1", "d4", "d8", "so2", "o2"])
def test_invariants_do_not_change_under_any_element(group: str, generator: torch.Generator) -> None:
    plane, fields = plane_group(group), 5
    invariants = FieldInvariants(plane, fields)
    features = torch.randn(7, plane.dim("hidden"), fields, generator=generator)
    expected = invariants(features.flatten(1)[..., None, None])
    assert expected.shape == (7, invariants.count)
    for g in plane.elements(grid_exact=False, rotations=7):
        turned = plane.action("hidden", g) @ features
        found = invariants(turned.flatten(1)[..., None, None])
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
    spoilt = features.clone()
    spoilt[:, 0] += 1.0
    assert float((invariants(spoilt.flatten(1)[..., None, None]) - expected).abs().max()) > 1e-2


def test_without_symmetry_fields_are_their_own_invariants(generator: torch.Generator) -> None:
    features = torch.randn(3, 11, 1, 1, generator=generator)
    torch.testing.assert_close(FieldInvariants(plane_group("c1"), 11)(features), features.flatten(1))


@pytest.mark.parametrize(("group", "trunk"), CASES)
def test_every_parameter_has_a_gradient(
    group: str, trunk: TrunkKind, directions: Tensor, generator: torch.Generator
) -> None:
    network = small(group, directions, trunk)
    logits = network(torch.randn(8, BOX, BOX, generator=generator))
    assert logits.shape == (8, len(directions))
    (-logits.log_softmax(1)[:, 0].mean()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
    assert float(torch.stack([p.grad.norm() for p in network.parameters() if p.grad is not None]).max()) > 0


def test_fields_of_value_zero_have_a_finite_gradient() -> None:
    features = torch.zeros(2, 8 * 3, 1, 1, requires_grad=True)
    FieldInvariants(plane_group("d4"), 3)(features).sum().backward()
    assert features.grad is not None
    assert bool(features.grad.isfinite().all())


def test_kernels_that_take_the_ctf_see_it(directions: Tensor, generator: torch.Generator) -> None:
    widths = (16,) * len(FieldEncoder("d4", BOX, trunk="conv").plan.level_sizes_px)
    network = ViewNetwork(
        "d4", BOX, directions, (*widths, 64), trunk="conv", design=EncoderDesign(kernel="implicit_ctf")
    )
    images = torch.randn(4, BOX, BOX, generator=generator)
    logits = [network(images, torch.full((4, 3), value)) for value in (0.0, 1.0)]
    assert float((logits[0] - logits[1]).detach().abs().max()) > 1e-4


def test_images_of_another_box_are_refused(directions: Tensor) -> None:
    with pytest.raises(ValueError, match="images of 20 px for an encoder of 16 px"):
        small("d4", directions)(torch.zeros(2, 20, 20))


@pytest.mark.parametrize("group", ["c1", "d4"])
def test_views_are_learnt(group: str, directions: Tensor, generator: torch.Generator) -> None:
    """Clean images: the true view's neighbours are found far more often than by chance, on images never seen."""
    volume = sample_atoms(chiral_phantom(28.0), BOX, 120.0 / BOX)
    plane, padded = HalfPlane.up_to(BOX, BOX / 2 - 1), prepare_slices(volume.values.float())
    rotations = random_rotations(1200, generator)
    images = plane.images(extract_slices(padded, rotations, plane))
    images = images / images.std()
    targets = smoothed_views(rotations[:, 2], directions, C1, 0.2)
    torch.manual_seed(0)
    network = small(group, directions)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(80):
        rows = torch.randint(1000, (128,), generator=generator)
        loss = -(targets[rows] * network(images[rows]).log_softmax(1)).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        best = network.eval()(images[1000:]).argmax(1)
    near = nearness(rotations[1000:, 2], directions, C1)
    found = float((near.gather(1, best[:, None]) >= near.topk(3).values[:, 2:]).float().mean())
    assert found > 4 * 3 / len(directions)
