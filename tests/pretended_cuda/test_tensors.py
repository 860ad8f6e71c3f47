"""Tensors of the pretended device behave as those of a GPU: the CPU's numbers, and a GPU's refusals."""

import copy
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pretended_cuda import device_rules
from pretended_cuda.machine import MACHINE

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not MACHINE.watch, reason="PRETENDED_CUDA is not set"),
]
CUDA = torch.device("cuda:0")

# Functions of x (3, 4) and of a symmetric positive matrix (3, 3).
SAME: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "sum": lambda x, _: x + x,
    "product": lambda x, _: x @ x.T,
    "0-dim. number of the CPU": lambda x, _: x + torch.tensor(1.0),
    "index of the CPU": lambda x, _: x[torch.tensor([0, 2])],
    "mask": lambda x, _: x[x > 3],
    "where": lambda x, _: torch.where(x > 3, x, 0.0),
    "made on the device": lambda x, _: [
        torch.eye(2, device=x.device), torch.linspace(0, 1, 3, device=x.device), torch.fft.fftfreq(4, device=x.device),
        torch.tensor([1, 2], device=x.device), torch.full((2,), 3, device=x.device), x.new_zeros(2),
    ],
    "transforms": lambda x, _: [torch.fft.rfft2(x), torch.fft.irfft2(torch.fft.rfft2(x)), torch.fft.fftshift(x)],
    "conjugates": lambda x, _: [
        torch.fft.fft2(x).conj() * 2, torch.fft.fft2(x).conj() @ torch.fft.fft2(x).mT, torch.fft.fft2(x).conj(),
        torch.fft.fft2(x).conj().imag, torch.view_as_real(torch.fft.fft2(x).conj().resolve_conj()),
    ],
    "in place, through views": lambda x, _: _written(x),
    "indices in place": lambda x, _: [
        x.new_zeros(4).index_add_(0, torch.tensor([1, 1], device=x.device), x.new_ones(2)),
        x.new_zeros(3).scatter_add_(0, torch.tensor([0, 0], device=x.device), x.new_ones(2)),
        x.clone().index_put_((torch.tensor([0], device=x.device),), x.new_tensor(5.0)),
    ],
    "order": lambda x, _: [
        x.sort(descending=True), x.topk(2), x.max(1), x.logsumexp(1), x.cumsum(0), torch.unique(x), x.nonzero(),
        torch.searchsorted(x[0], x[0]), torch.bincount(torch.tensor([1, 1], device=x.device)), torch.histc(x, 4),
    ],
    "joined": lambda x, _: [torch.cat([x, x]), torch.stack([x, x])],
    "given outputs": lambda x, _: [
        torch.bmm(x[None], x.T[None], out=x.new_empty(1, 3, 3)), torch.add(x, x, out=x.new_empty(0)),
    ],
    "linear algebra": lambda _, a: [
        torch.linalg.inv(a), torch.linalg.det(a), torch.linalg.eigvalsh(a), torch.linalg.solve(a, a),
        torch.linalg.svdvals(a), torch.linalg.norm(a), torch.linalg.inv_ex(a)[0], torch.linalg.cholesky(a),
    ],
    "gradients": lambda x, _: _gradient(x),
    "functional gradients": lambda x, _: [
        torch.func.grad(lambda a: (a * a).sum())(x), torch.vmap(lambda a: (a * a).sum())(x),
    ],
    "layers": lambda x, _: [
        torch.nn.functional.conv2d(x[None, None], x.new_ones(4, 1, 2, 2)),
        torch.nn.functional.conv2d(x[None, None].expand(1, 4, 3, 4), x.new_ones(4, 1, 2, 2), groups=4),
        torch.nn.functional.grid_sample(x[None, None], x.new_zeros(1, 2, 2, 2), align_corners=False),
        torch.nn.functional.interpolate(x[None, None], scale_factor=2, mode="bilinear"),
        torch.nn.functional.pad(x, (1, 1)),
    ],
    "autocast": lambda x, _: _autocast(x),
    "shapes": lambda x, _: [
        x.roll(1, 0), x.flip(0), x.repeat(2, 1), x.repeat_interleave(2, 0), torch.cdist(x, x), x.unfold(1, 2, 1),
        torch.meshgrid(x[0], x[0], indexing="ij"), torch.einsum("ij,kj->ik", x, x), torch.polar(x, x),
    ],
    "other numbers": lambda x, _: [x.bfloat16() @ x.bfloat16().T, x.double().sum(), x.to(torch.complex64) * 1j],
    "fused arithmetic": lambda x, _: [torch.addcmul(x, x, x), torch.lerp(x, x, 0.5), torch._foreach_add([x, x], 1.0)],
}  # fmt: skip
REFUSED: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "sum": (lambda x, c: x + c, "same device"),
    "product": (lambda x, c: x @ c.T, "same device"),
    "0-dim. tensor where none is taken": (lambda x, _: torch.addmm(torch.tensor(1.0), x, x.T), "same device"),
    "NumPy": (lambda x, _: x.numpy(), "can't convert cuda"),
    "NumPy, implicitly": (lambda x, _: np.asarray(x), "can't convert cuda"),
    "rows": (lambda x, _: x.index_select(0, torch.tensor([0])), "same device"),
    "gather": (lambda x, _: x.gather(1, torch.zeros(3, 1, dtype=torch.long)), "same device"),
    "rows in place": (lambda x, _: x.index_add(0, torch.tensor([1]), x[:1]), "same device"),
    "joined": (lambda x, c: torch.cat([x, c]), "same device"),
    "search": (lambda x, c: torch.searchsorted(x[0], c[0]), "same device"),
    "two devices": (lambda x, _: x + x.to("cuda:1"), "two devices|same device"),
    "no such device": (lambda *_: torch.ones(2, device="cuda:5"), "invalid device ordinal"),
    "generator": (lambda x, _: torch.randn(3, generator=torch.Generator(), device=x.device), "type for generator"),
    "generator, the other way": (lambda x, _: torch.randn(3, generator=torch.Generator(x.device)), "for generator"),
    "generator, in place": (lambda x, _: x.normal_(generator=torch.Generator()), "type for generator"),
    "no kernel": (lambda x, _: torch.ops.aten.mkldnn_adaptive_avg_pool2d(x[None], [1, 1]), "Could not run"),
}


def _written(x: Tensor) -> Tensor:
    y = x.clone()
    y[1:, ::2] = 7
    y[0] += 1
    y[:, 1].mul_(2)
    return y


def _gradient(x: Tensor) -> Tensor | None:
    weights = torch.linspace(0, 1, 8, device=x.device).view(4, 2).requires_grad_()
    (x @ weights).sin().square().sum().backward()
    return weights.grad


def _autocast(x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        return x @ x.T


def flat(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values.cpu()]
    return [tensor for value in values for tensor in flat(value)]


def inputs(device: torch.device | str) -> tuple[Tensor, Tensor]:
    x = torch.arange(12.0, device=device).view(3, 4)
    return x, torch.tensor([[2.0, 1, 0], [1, 3, 1], [0, 1, 4]], device=device)


@pytest.mark.parametrize("name", SAME)
def test_numbers_of_the_cpu(name: str) -> None:
    expected = flat(SAME[name](*inputs("cpu")))
    for device in ("cuda:0", "cuda:1"):
        for one, other in zip(flat(SAME[name](*inputs(device))), expected, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    function, message = REFUSED[name]
    with pytest.raises((RuntimeError, TypeError), match=message):
        function(inputs(CUDA)[0], inputs("cpu")[0])


def test_what_was_never_written_is_seen() -> None:
    assert bool(torch.empty(3, device=CUDA).isnan().all())
    assert torch.empty(3, dtype=torch.int32, device=CUDA).tolist() == [2**31 - 1] * 3
    assert bool(torch.zeros(3, device=CUDA).eq(0).all())


def test_random_numbers_of_a_device_are_its_own() -> None:
    drawn = []
    for device in ("cpu", "cuda:0", "cuda:0"):
        generator = torch.Generator(device).manual_seed(1)
        assert generator.initial_seed() == 1
        drawn.append(torch.randn(5, generator=generator, device=device).tolist())
    assert drawn[0] != drawn[1] == drawn[2]
    torch.cuda.manual_seed(3)
    first = torch.randn(2, device=CUDA)
    torch.cuda.manual_seed(3)
    assert torch.equal(first, torch.randn(2, device=CUDA))


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("fused", [True, False])
def test_optimizers_take_the_steps_of_the_cpu(make: Callable[..., torch.optim.Optimizer], fused: bool) -> None:
    torch.manual_seed(0)
    layers = (torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten())
    network = torch.nn.Sequential(*layers, torch.nn.Linear(144, 2))
    there = copy.deepcopy(network).to(CUDA)
    images = torch.randn(4, 1, 8, 8)
    for each, batch in ((network, images), (there, images.to(CUDA))):
        optimizer = make(each.parameters(), lr=1e-2, fused=fused)
        for _ in range(3):
            optimizer.zero_grad()
            each(batch).square().sum().backward()
            torch.nn.utils.clip_grad_norm_(each.parameters(), 1.0)
            optimizer.step()
    for one, other in zip(there.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-3, atol=1e-5)


def test_files_keep_the_device_or_change_it() -> None:
    x, _ = inputs(CUDA)
    file = io.BytesIO()
    torch.save({"x": x, "p": torch.nn.Parameter(x)}, file)
    for place, device in ((None, "cuda:0"), ("cpu", "cpu"), ("cuda:1", "cuda:1")):
        file.seek(0)
        read = torch.load(file, map_location=place)
        assert (str(read["x"].device), str(read["p"].device)) == (device, device)
        assert torch.equal(read["x"].cpu(), x.cpu())
    assert copy.deepcopy(x).device == CUDA


def test_the_kernels_are_those_of_torch() -> None:
    """What native_functions.yaml says is what torch with CUDA has; without CUDA it has no kernel at all."""
    names = torch._C._dispatch_get_registrations_for_dispatch_key("CUDA")
    ours = {name.removeprefix("aten::") for name in names if name.startswith("aten::")}
    written = device_rules.written_cuda_kernels()
    assert len(written) > 1200
    assert written - ours == {name for name in written if any(word in name for word in device_rules.LEFT_OUT)} - ours
