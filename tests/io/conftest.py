"""Small particle files, made by mrcfile and by hand so that what is read was not written by cryoeq."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import mrcfile
import numpy as np
import pytest

MakeStack = Callable[..., Path]
MakeStar = Callable[..., Path]


@pytest.fixture
def make_stack(tmp_path: Path) -> MakeStack:
    """Writes images to ``tmp_path / name``; returns the path."""

    def make(name: str = "stack.mrcs", images: np.ndarray | None = None, angpix: float = 2.0) -> Path:
        if images is None:
            images = np.random.default_rng(0).normal(size=(4, 16, 16)).astype(np.float32)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings(), mrcfile.new(path) as mrc:
            warnings.simplefilter("ignore", RuntimeWarning)  # mrcfile warns of the NaN that some tests want
            mrc.set_data(images)
            mrc.set_image_stack()
            mrc.voxel_size = angpix
        return path

    return make


@pytest.fixture
def make_star(tmp_path: Path) -> MakeStar:
    """Writes a star file from columns of text; columns given as None are left out of the defaults."""

    def make(
        n: int = 4,
        *,
        optics: Mapping[str, object] | None = None,
        name: str = "particles.star",
        stack: str = "stack.mrcs",
        **changes: object,
    ) -> Path:
        particles = {
            "rlnImageName": [f"{i + 1:06d}@{stack}" for i in range(n)],
            "rlnMicrographName": [f"mic{i}.mrc" for i in range(n)],
            "rlnOpticsGroup": "1",
            "rlnDefocusU": [f"{10000 + i}.5" for i in range(n)],
            "rlnDefocusV": "10000.25",
            "rlnDefocusAngle": "45",
        } | changes
        groups = {
            "rlnOpticsGroup": "1",
            "rlnOpticsGroupName": "og1",
            "rlnVoltage": "300",
            "rlnSphericalAberration": "2.7",
            "rlnAmplitudeContrast": "0.1",
            "rlnImagePixelSize": "2.0",
        } | dict(optics or {})
        n_groups = max([len(v) for v in groups.values() if isinstance(v, list)], default=1)
        text = "# version 30001\n\n" + _block("optics", groups, n_groups) + _block("particles", particles, n)
        path = tmp_path / name
        path.write_text(text)
        return path

    return make


def _block(name: str, columns: Mapping[str, object], n: int) -> str:
    kept = {
        key: value if isinstance(value, list) else [value] * n for key, value in columns.items() if value is not None
    }
    head = f"data_{name}\n\nloop_\n" + "".join(f"_{key} #{i}\n" for i, key in enumerate(kept, 1))
    return head + "".join("  ".join(str(kept[key][i]) for key in kept) + "\n" for i in range(n)) + "\n\n"
