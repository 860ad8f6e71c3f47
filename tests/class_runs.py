"""Fixture: the folder of a run of two classes, made of a simulated mixture and its truth."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.pose import Poses
from cryoeq.io.labels import CLASS_NUMBER, JUNK_PROBABILITY, MAX_PROBABILITY
from cryoeq.io.model_star import write_model_star
from cryoeq.io.mrc import write_map
from cryoeq.io.particles import read_particles, star_poses, write_particle_star
from cryoeq.io.star import StarTable, decimals, read_star
from cryoeq.outputs.report import write_report
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.reconstruct.class_files import class_model, write_class_maps
from cryoeq.pipelines.reconstruct.half_map_resolution import resolve_half_maps
from cryoeq.pipelines.reconstruct.metrics import ClassMetrics, ReconstructionMetrics
from cryoeq.pipelines.report import read_run
from cryoeq.reconstruction.known_poses import reconstruct_from_poses
from cryoeq.simulation.density import sample_atoms
from phantoms import chiral_phantom, random_phantom

COUNT, N, ANGPIX = 400, 20, 5.0
WRONG = 10  # every tenth particle is in the wrong class
TURN = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # of the frame of class 1


@pytest.fixture(scope="session")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ``cryoeq simulate``: 400 images, 80 of them junk, of two molecules, 60 to 40."""
    from cryoeq.cli.main import run

    folder = tmp_path_factory.mktemp("mixture")
    generator = torch.Generator().manual_seed(3)
    for name, atoms in {"a": chiral_phantom(34.0), "b": random_phantom(14, 34.0, generator)}.items():
        write_map(folder / f"{name}.mrc", sample_atoms(atoms, N, ANGPIX))
    options = ["-n", str(COUNT), "--snr", "1", "--shift-sigma", "4", "--junk", "0.2", "--device", "cpu"]
    models = [str(folder / "a.mrc"), "--model", f"{folder / 'b.mrc'}:0.4"]
    assert run(["simulate", *models, "-o", str(folder / "particles"), *options]) == 0
    return folder / "particles"


@pytest.fixture(scope="session")
def class_run(tmp_path_factory: pytest.TempPathFactory, mixture: Path) -> Path:
    """The folder of a run of two classes, nine in ten of whose particles are in the right one.

    Class 1 is the second molecule, in a frame that is turned by 90 degrees; class 2 is the first. The junk is in both.
    """
    folder = tmp_path_factory.mktemp("classes") / "run"
    truth = read_star(mixture / "truth.star")
    classes = classes_of(truth)
    given = star_poses(truth)
    turned = torch.where((classes == 1)[:, None, None], given.rotations @ TURN, given.rotations)
    settings = ReconstructConfig.model_validate(
        {
            "particles": str(mixture / "particles.star"),
            "output": str(folder),
            "search": {"consensus": {"shells": [5, 6]}},
        }
    )
    command = ["cryoeq", "reconstruct", "particles.star", "-o", str(folder)]
    recorded = settings.model_dump(mode="json")
    run = RunFolder.create(folder, command=command, settings=recorded, inputs=[mixture / "particles.star"])
    write_table(run.path("run_data.star"), truth, Poses(turned, given.shifts_angstrom), classes)
    write_maps(run, mixture, classes)
    return folder


def classes_of(truth: StarTable) -> Tensor:
    """Class of each image in the run."""
    true, rows = torch.from_numpy(truth.floats(CLASS_NUMBER)).long(), torch.arange(len(truth))
    wanted = torch.where(true == 0, 1 + rows % 2, 3 - true)
    return torch.where((rows % WRONG == 0) & (true > 0), 3 - wanted, wanted)


def write_table(path: Path, truth: StarTable, poses: Poses, classes: Tensor) -> None:
    generator = torch.Generator().manual_seed(1)
    is_junk = torch.from_numpy(truth.floats(CLASS_NUMBER)) == 0
    spread = torch.rand(len(truth), generator=generator) * 0.15
    columns = {
        CLASS_NUMBER: classes.numpy().astype(np.str_),
        JUNK_PROBABILITY: decimals(torch.where(is_junk, 1 - spread, spread).double().numpy()),
        MAX_PROBABILITY: decimals(np.full(len(truth), 0.9)),
    }
    names = ("rlnImageName", "rlnOpticsGroup", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnRandomSubset")
    star = StarTable(truth.optics, {name: truth.particles[name] for name in names})
    write_particle_star(path, star, poses, extra_columns=columns)


def write_maps(run: RunFolder, mixture: Path, classes: Tensor) -> None:
    """Maps of both classes from their particles, what describes them, and the report."""
    stack = read_particles(run.path("run_data.star"), with_poses=True)
    models, metrics, curves = [], [], []
    for number in (1, 2):
        rows = (classes == number).nonzero().squeeze(1)
        part = run.folder.parent / f"class{number}.star"
        write_particle_star(part, stack.star.rows(rows.tolist()), None)
        of_class = read_particles(part, datadir=mixture, with_poses=True)
        poses, half_set, ctf = of_class.table.poses, of_class.table.half_set, of_class.table.ctf
        assert poses is not None
        maps = reconstruct_from_poses(ParticleDataset.open(of_class, sign=1), poses, half_set)
        assert maps.halves is not None
        resolved = resolve_half_maps(maps.halves, None, ctf)
        write_class_maps(run, number, 2, maps, resolved)
        share = len(rows) / len(classes)
        model = class_model(run, number, 2, resolved.curves, share=share, rotations=poses.rotations, ctf=ctf)
        models.append(model)
        curves.append(resolved.curves)
        resolutions = (resolved.resolution_angstrom(name) for name in ("unmasked", "masked", "corrected"))
        metrics.append(ClassMetrics(number, len(rows), share, *resolutions, reproduced=0.95 - 0.05 * number))
    write_model_star(
        run.path("run_model.star"), models, box_size_px=N, pixel_size_angstrom=ANGPIX, log_likelihood=-1.0,
        mean_max_probability=0.9,
    )  # fmt: skip
    moves = tuple(
        tuple(round(each.particles * (0.9 if column == each.number else 0.1)) for column in (1, 2)) for each in metrics
    )
    results = ReconstructionMetrics(classes=tuple(metrics), class_agreement=0.81, class_moves=moves)
    run.finish("done", results.to_json() | {"seconds": 12.0})
    write_report(run.path("report.html"), read_run(run.folder))
