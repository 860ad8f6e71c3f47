"""Laws that every linear operator of cryoeq.physics obeys; a new operator is one entry of ``OPERATORS``."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from cryoeq.domain.optics import CtfParameters
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.so3 import random_rotations
from cryoeq.physics.ctf import image_transfer
from cryoeq.physics.image_formation import apply_optics, form_images, undo_optics
from cryoeq.physics.projection import collect_slices, extract_slices, prepare_slices, spread_slices
from cryoeq.physics.shift import shift_phases

BATCH = 5


@dataclass(frozen=True)
class Setting:
    """Parameters of the operators, for one box size and dtype."""

    n: int
    plane: HalfPlane
    rotations: Tensor
    shifts_px: Tensor
    transfer: Tensor
    generator: torch.Generator

    def of(self, row: int) -> "Setting":
        """One particle of the batch."""
        rows = slice(row, row + 1)
        return replace(
            self, rotations=self.rotations[rows], shifts_px=self.shifts_px[rows], transfer=self.transfer[rows]
        )

    def random(self, *shape: int, is_complex: bool = True) -> Tensor:
        dtype = self.transfer.dtype.to_complex() if is_complex else self.transfer.dtype
        return torch.randn(*shape, generator=self.generator, dtype=dtype)

    def slices(self) -> Tensor:
        return self.random(len(self.rotations), len(self.plane))

    def padded(self) -> Tensor:
        return self.random(*(2 * self.n,) * 3)

    def volume(self) -> Tensor:
        return self.random(*(self.n,) * 3, is_complex=False)


@dataclass(frozen=True)
class Operator:
    """A linear operator, its adjoint, and random members of both spaces."""

    forward: Callable[[Setting, Tensor], Tensor]
    adjoint: Callable[[Setting, Tensor], Tensor]
    domain: Callable[[Setting], Tensor]
    codomain: Callable[[Setting], Tensor]


def insert_slices(slices: Tensor, rotations: Tensor, plane: HalfPlane, padded_size: int) -> Tensor:
    """Adjoint of ``extract_slices``: a sum of complex slices."""
    real, imag = spread_slices(torch.view_as_real(slices).permute(2, 0, 1), rotations, plane, padded_size)
    return torch.complex(real, imag)


def half_of_pairs(padded: Tensor) -> Tensor:
    """One coefficient of each Friedel pair, which counts twice, but for x = 0; nothing at even sizes' Nyquist."""
    half = torch.nn.functional.pad(2 * padded[1:, 1:, padded.shape[-1] // 2 :], (0, 1, 1, 0, 1, 0))
    half[..., 0] /= 2
    return half


OPERATORS = {
    "ctf": Operator(
        lambda s, x: x * s.transfer, lambda s, y: y * s.transfer, lambda s: s.slices(), lambda s: s.slices()
    ),
    "shift": Operator(
        lambda s, x: x * shift_phases(s.shifts_px, s.plane.coords, s.n),
        lambda s, y: y * shift_phases(-s.shifts_px, s.plane.coords, s.n),
        lambda s: s.slices(),
        lambda s: s.slices(),
    ),
    "optics": Operator(
        lambda s, x: apply_optics(x, s.shifts_px, s.transfer, s.plane),
        lambda s, y: undo_optics(y, s.shifts_px, s.transfer, s.plane),
        lambda s: s.slices(),
        lambda s: s.slices(),
    ),
    "oversampling": Operator(
        lambda s, x: half_of_pairs(prepare_slices(x)),
        lambda s, y: collect_slices(lambda start, stop: y[start:stop], s.n, like=y.real),
        lambda s: s.volume(),
        lambda s: half_of_pairs(s.padded()),
    ),
    "slices": Operator(
        lambda s, x: extract_slices(x, s.rotations, s.plane),
        lambda s, y: insert_slices(y, s.rotations, s.plane, 2 * s.n),
        lambda s: s.padded(),
        lambda s: s.slices(),
    ),
    "image formation": Operator(
        lambda s, x: form_images(x, s.rotations, s.shifts_px, s.transfer, s.plane),
        lambda s, y: insert_slices(undo_optics(y, s.shifts_px, s.transfer, s.plane), s.rotations, s.plane, 2 * s.n),
        lambda s: s.padded(),
        lambda s: s.slices(),
    ),
}
BATCHED = sorted(set(OPERATORS) - {"oversampling"})


def setting(n: int, dtype: torch.dtype) -> Setting:
    generator = torch.Generator().manual_seed(n)
    plane = HalfPlane.up_to(n, n / 2 - 1e-3)
    ctf = CtfParameters(
        **{
            name: torch.full((BATCH,), value, dtype=dtype)
            for name, value in {
                "defocus_u_angstrom": 1.4e4,
                "defocus_v_angstrom": 1.1e4,
                "defocus_angle_rad": 0.3,
                "phase_shift_rad": 0.1,
                "bfactor_angstrom2": 50.0,
                "scale": 0.9,
                "voltage_kv": 300.0,
                "spherical_aberration_mm": 2.7,
                "amplitude_contrast": 0.1,
                "is_premultiplied": 0.0,
                "is_phase_flipped": 0.0,
            }.items()
        }
    )
    which = torch.arange(BATCH) % 3
    ctf = replace(ctf, is_premultiplied=(which == 1).to(dtype), is_phase_flipped=(which == 2).to(dtype))
    return Setting(
        n,
        plane,
        random_rotations(BATCH, generator).to(dtype),
        torch.randn(BATCH, 2, generator=generator, dtype=dtype) * 3,
        image_transfer(ctf, plane.frequencies_per_angstrom(4.0).to(dtype)),
        generator,
    )


def inner(a: Tensor, b: Tensor) -> Tensor:
    return (a.conj() * b).real.sum()


@pytest.mark.parametrize("n", [15, 16])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_adjoint(name: str, n: int, dtype: torch.dtype, tolerance: float) -> None:
    operator, state = OPERATORS[name], setting(n, dtype)
    x, y = operator.domain(state), operator.codomain(state)
    image, preimage = operator.forward(state, x), operator.adjoint(state, y)
    scale = image.norm() * y.norm()
    assert scale > 0
    assert abs(inner(image, y) - inner(x, preimage)) / scale < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_arguments_are_left_alone_and_precision_is_kept(name: str, dtype: torch.dtype) -> None:
    operator, state = OPERATORS[name], setting(16, dtype)
    for apply, argument in (
        (operator.forward, operator.domain(state)),
        (operator.adjoint, operator.codomain(state)),
    ):
        kept = argument.clone(), state.rotations.clone(), state.shifts_px.clone(), state.transfer.clone()
        result = apply(state, argument)
        assert torch.equal(argument, kept[0])
        assert torch.equal(state.rotations, kept[1])
        assert torch.equal(state.shifts_px, kept[2])
        assert torch.equal(state.transfer, kept[3])
        assert result.dtype in {dtype, dtype.to_complex()}


@pytest.mark.parametrize("name", BATCHED)
def test_batch_is_a_loop(name: str) -> None:
    operator, state = OPERATORS[name], setting(16, torch.float64)
    x = operator.domain(state)
    is_per_particle = len(x) == BATCH
    whole = operator.forward(state, x)
    for row in range(BATCH):
        one = operator.forward(state.of(row), x[row : row + 1] if is_per_particle else x)
        torch.testing.assert_close(one, whole[row : row + 1])


@pytest.mark.parametrize("name", ["slices", "image formation"])
def test_adjoint_of_a_batch_is_the_sum_over_particles(name: str) -> None:
    operator, state = OPERATORS[name], setting(15, torch.float64)
    y = operator.codomain(state)
    parts = [operator.adjoint(state.of(row), y[row : row + 1]) for row in range(BATCH)]
    torch.testing.assert_close(torch.stack(parts).sum(0), operator.adjoint(state, y))


@pytest.mark.parametrize("n", [7, 8])
def test_gradients_of_image_formation(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    plane = HalfPlane.up_to(n, n / 2 - 1e-3)
    volume = torch.randn(n, n, n, generator=generator, dtype=torch.float64, requires_grad=True)
    rotations = random_rotations(2, generator).double().requires_grad_()
    shifts = torch.randn(2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    transfer = torch.randn(2, len(plane), generator=generator, dtype=torch.float64)

    def predict(volume: Tensor, rotations: Tensor, shifts_px: Tensor) -> Tensor:
        return torch.view_as_real(form_images(prepare_slices(volume), rotations, shifts_px, transfer, plane))

    assert torch.autograd.gradcheck(predict, (volume, rotations, shifts), fast_mode=True)


def test_gradients_of_insertion() -> None:
    state = setting(8, torch.float64)
    slices = state.slices().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda values: insert_slices(values, state.rotations, state.plane, 16), (slices,), fast_mode=True
    )


@pytest.mark.gpu
@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_gpu_agrees_with_cpu(name: str) -> None:
    operator, state = OPERATORS[name], setting(16, torch.float32)
    cuda = torch.device("cuda")
    there = replace(
        state,
        plane=HalfPlane.up_to(state.n, state.n / 2 - 1e-3, cuda),
        rotations=state.rotations.to(cuda),
        shifts_px=state.shifts_px.to(cuda),
        transfer=state.transfer.to(cuda),
    )
    for apply, argument in ((operator.forward, operator.domain(state)), (operator.adjoint, operator.codomain(state))):
        result = apply(there, argument.to(cuda))
        assert result.device.type == "cuda"
        here = apply(state, argument)
        assert (result.cpu() - here).norm() / here.norm() < 1e-4
