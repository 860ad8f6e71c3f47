"""What the host asks of a GPU: launches and waits are counted, and may not become more."""

from collections import Counter
from pathlib import Path

import pytest

from cryoeq.config.loading import load_config, packaged_file
from cryoeq.config.simulate import SimulateConfig
from cryoeq.pipelines.simulate.simulate import simulate
from pretended_cuda.machine import MACHINE

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not MACHINE.watch, reason="PRETENDED_CUDA is not set"),
]


def totals() -> Counter[str]:
    return Counter(launches=MACHINE.kernels.total(), waits=MACHINE.waits.total())


def simulated(output: Path, count: int, **settings: object) -> Counter[str]:
    """Launches and waits of the simulation of a stack of 32 px."""
    before = totals()
    explicit = {
        "model": packaged_file("data_samples/1wcm_ca.pdb.gz"), "output": output, "count": count, "seed": 100,
        "box_size_px": 32, "snr": 0.1, "shift_sigma_angstrom": 5.0, "device": "cuda",
    }  # fmt: skip
    list(simulate(load_config(SimulateConfig, explicit=explicit | settings)))
    return totals() - before


@pytest.mark.parametrize("noise", ["white", "coloured", "ice"])
def test_a_simulation(noise: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is of 2^27 pixels: 32,768 images of 64 px, 2,048 of 256 px."""
    monkeypatch.setattr("cryoeq.simulation.particles._PIXELS_AT_ONCE", 2 * 32**2)
    few, many = (simulated(tmp_path / str(batches), 64 * batches, noise=noise) for batches in (1, 3))
    of_a_batch = Counter({what: (many[what] - few[what]) / 2 for what in many})
    assert 0 < of_a_batch["launches"] <= (200 if noise == "ice" else 125)
    assert 0 < of_a_batch["waits"] <= 4
    assert few["launches"] <= 360
    assert few["waits"] <= 40
