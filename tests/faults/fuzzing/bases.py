"""Sound inputs, made by cryoeq itself, and the commands that read them."""

import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from faults.fuzzing.cases import Scenario
from faults.fuzzing.forks import run
from faults.fuzzing.star_mutations import ANGLES, Block, parse, render

BOX, PIXEL, COUNT = 24, 5.0, 40
_SEARCH = {
    "multi_start.min": 1, "multi_start.max": 1, "initial_model.iterations": 4, "initial_model.batch_size": 40,
    "initial_model.last_shell": 4, "consensus.shells": "[5]", "consensus.max_extra_iterations": 0,
    "half_sets.iterations": 1, "half_sets.max_exhaustive_shell": 5, "local_refinement.iterations": 1,
    "offset_samples": 1,
}  # fmt: skip
_SHORT = tuple(word for key, value in _SEARCH.items() for word in ("--set", f"search.{key}={value}"))
_TRAINING = {
    "posterior": "network", "training_steps": 2, "batch_size": 8, "max_shell": 5,
}  # fmt: skip
_SHORT_TRAINING = (
    *(word for key, value in _TRAINING.items() for word in ("--set", f"hybrid.{key}={value}")),
    "--set", "encoder.group=c4", "--set", "encoder.channels=[32]",
)  # fmt: skip
_KNOWN = ("--pose-inference", "known", "--device", "cpu")
_STACK, _HALVES = "particles.mrcs", ("run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc")


def make_scenarios(folder: Path, *, are_all: bool) -> list[Scenario]:
    """The scenarios; their files are made in a folder.

    Args:
        folder: an empty folder.
        are_all: whether those are among them that need an encoder, or a run that was stopped.
    """
    _make_inputs(folder)
    costly = _continuations(folder) if are_all else []
    return [*costly, *_reconstructions(folder), *_comparisons(folder), *_simulations(folder), *_instruments(folder)]


def _cryoeq(folder: Path, *words: str, before: Callable[[], None] | None = None) -> None:
    outcome = run(words, folder, before=before)
    if outcome.code:
        raise RuntimeError(f"cryoeq {' '.join(words)}: {outcome.said}")


def _make_inputs(folder: Path) -> None:
    from cryoeq.io.mrc import write_map
    from cryoeq.simulation.density import sample_atoms
    from phantoms import chiral_phantom

    atoms = chiral_phantom(0.36 * BOX * PIXEL)
    write_map(folder / "molecule.mrc", sample_atoms(atoms, BOX, PIXEL))
    positions = (atoms.positions_angstrom + BOX // 2 * PIXEL).tolist()
    _write_model(folder / "model.pdb", positions)
    _write_cif(folder / "model.cif", positions)
    _cryoeq(
        folder, "simulate", "molecule.mrc", "-o", "p", "-n", str(COUNT), "--snr", "2", "--shift-sigma", "4",
        "--astigmatism", "300", "--device", "cpu",
    )  # fmt: skip
    for name in (_STACK, "truth.star"):
        (folder / name).write_bytes((folder / "p" / name).read_bytes())
    _cryoeq(folder, "reconstruct", "truth.star", "-o", "run", *_KNOWN)
    _use_relative_paths(folder, "run")
    _write_mask(folder / "mask.mrc")
    (folder / "older.star").write_bytes(_of_relion30((folder / "truth.star").read_bytes()))
    _write_cs(folder)
    mtf = Block(
        "", ["rlnResolutionInversePixel", "rlnMtfValue"], [[f"{k / 50:.3f}", f"{1 - k / 40:.4f}"] for k in range(26)]
    )
    (folder / "mtf.star").write_bytes(render([mtf]))
    settings = (
        f"particles: truth.star\npose_inference: known\nseed: 3\ninput:\n  angpix: {PIXEL}\nsearch:\n  symmetry: C1\n"
    )
    (folder / "settings.yaml").write_text(settings)
    _cryoeq(
        folder,
        "simulate",
        "molecule.mrc",
        "-o",
        "c",
        "--crystal",
        "90",
        "70",
        "100",
        "--micrograph",
        "128",
        "--snr",
        "inf",
    )


def _use_relative_paths(folder: Path, run_folder: str) -> None:
    """So that the run is read wherever it lies."""
    for name in ("job.json", "config.yaml"):
        record = folder / run_folder / name
        record.write_text(record.read_text().replace(f"{folder.resolve()}/", ""))


def _write_model(path: Path, positions: Sequence[Sequence[float]]) -> None:
    lines = [
        f"ATOM  {i:5d}  CA  ALA A{i:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 50.00           C"
        for i, (x, y, z) in enumerate(positions, 1)
    ]
    path.write_text("\n".join((*lines, "TER", "END", "")))


def _write_cif(path: Path, positions: Sequence[Sequence[float]]) -> None:
    names = "group_PDB id type_symbol label_atom_id label_alt_id label_comp_id label_asym_id label_seq_id"
    labels = (*names.split(), "Cartn_x", "Cartn_y", "Cartn_z", "occupancy", "B_iso_or_equiv", "auth_asym_id")
    rows = [
        f"ATOM {number} C CA . ALA A {number} {x:.3f} {y:.3f} {z:.3f} 1.00 50.00 A"
        for number, (x, y, z) in enumerate(positions, 1)
    ]
    named = [f"_atom_site.{label}" for label in labels]
    path.write_text("\n".join(("data_model", "loop_", *named, *rows, "#", "")))


def _write_mask(path: Path) -> None:
    from cryoeq.domain.volume import Volume
    from cryoeq.io.mrc import write_map

    axis = torch.arange(BOX) - BOX // 2
    radius = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).square().sum(0).sqrt()
    write_map(path, Volume((1 + 0.5 * (0.36 * BOX - radius)).clamp(0, 1).float(), PIXEL))


def _of_relion30(content: bytes) -> bytes:
    """The particles as RELION 3.0 wrote them: no optics table, origins in pixels."""
    blocks = parse(content) or []
    optics, particles = blocks
    for label in ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast"):
        particles.set(label, optics.column(label) * len(particles.rows))
    particles.set("rlnDetectorPixelSize", [f"{PIXEL:.6f}"] * len(particles.rows))
    particles.set("rlnMagnification", ["10000.000000"] * len(particles.rows))
    for axis in "XY":
        pixels = [f"{float(value) / PIXEL:.6f}" for value in particles.column(f"rlnOrigin{axis}Angst")]
        particles.set(f"rlnOrigin{axis}", pixels)
    for label in ("rlnOriginXAngst", "rlnOriginYAngst", "rlnOpticsGroup"):
        at = particles.labels.index(label)
        particles.labels.pop(at)
        for row in particles.rows:
            row.pop(at)
    particles.name = ""
    return render([particles])


def _write_cs(folder: Path) -> None:
    """The same particles as cryoSPARC's table, with poses."""
    from cryoeq.io.cryosparc import write_cs
    from cryoeq.io.particles import read_table, star_half_set, star_poses

    star = read_table(folder / "truth.star")
    kinds = [
        ("uid", "<u8"), ("blob/path", "S40"), ("blob/idx", "<u4"), ("blob/shape", "<u4", (2,)), ("blob/psize_A", "<f4"),
        ("blob/sign", "<f4"), ("ctf/accel_kv", "<f4"), ("ctf/cs_mm", "<f4"), ("ctf/amp_contrast", "<f4"),
        ("ctf/df1_A", "<f4"), ("ctf/df2_A", "<f4"), ("ctf/df_angle_rad", "<f4"), ("ctf/phase_shift_rad", "<f4"),
        ("ctf/exp_group_id", "<u4"), ("alignments3D/class", "<u4"),
    ]  # fmt: skip
    table = np.zeros(COUNT, kinds)
    table["uid"], table["blob/idx"] = np.arange(COUNT) + 7, np.arange(COUNT)
    table["blob/path"], table["blob/shape"], table["blob/psize_A"], table["blob/sign"] = f">{_STACK}", BOX, PIXEL, 1
    table["ctf/accel_kv"], table["ctf/cs_mm"], table["ctf/amp_contrast"] = 300, 2.7, 0.1
    table["ctf/df1_A"], table["ctf/df2_A"] = star.floats("rlnDefocusU"), star.floats("rlnDefocusV")
    table["ctf/df_angle_rad"] = np.deg2rad(star.floats("rlnDefocusAngle"))
    with tempfile.TemporaryDirectory() as there:
        source = Path(there) / "source.cs"
        with source.open("wb") as file:
            np.save(file, table)
        write_cs(folder / "particles.cs", source, star_poses(star), half_set=star_half_set(star))


def _scenario(
    folder: Path,
    name: str,
    command: Sequence[str],
    targets: dict[str, str],
    *,
    more: Sequence[str] = (),
    weight: float = 1.0,
) -> Scenario:
    files = {path: (folder / path).read_bytes() for path in (*targets, *more)}
    return Scenario(name, tuple(command), files, targets, weight, is_order_free="known" in command)


def _reconstructions(folder: Path) -> list[Scenario]:
    def make(
        name: str, first: str, kind: str, *words: str, more: dict[str, str] | None = None, weight: float = 1.0
    ) -> Scenario:
        targets = {first: kind, _STACK: "mrc"} | (more or {})
        return _scenario(folder, name, ("reconstruct", first, "-o", "out", *words), targets, weight=weight)

    maps = {"mask.mrc": "mrc", "molecule.mrc": "mrc"}
    chosen = ("--mask", "mask.mrc", "--compare-to", "molecule.mrc")
    config = _scenario(
        folder, "settings", ("reconstruct", "--config", "settings.yaml", "-o", "out", "--device", "cpu"),
        {"settings.yaml": "yaml"}, more=("truth.star", _STACK), weight=1.5,
    )  # fmt: skip
    searched = ("--angpix", str(PIXEL), "--shift-sigma", "4", *_SHORT, "--device", "cpu")
    return [
        make("known", "truth.star", "star", *_KNOWN, weight=4),
        make("known, RELION 3.0", "older.star", "star", *_KNOWN, weight=2),
        make("known, cryoSPARC", "particles.cs", "cs", *_KNOWN, weight=3),
        make("known, mask and reference", "truth.star", "star", *_KNOWN, *chosen, more=maps, weight=0.5),
        make("search", "truth.star", "star", *_SHORT, "--device", "cpu", "--shift-sigma", "4", weight=1),
        make(
            "search, classes",
            "truth.star",
            "star",
            *_SHORT,
            "--classes",
            "2",
            "--device",
            "cpu",
            "--shift-sigma",
            "4",
            weight=0.3,
        ),
        _scenario(
            folder, "search, bare stack", ("reconstruct", _STACK, "-o", "out", *searched), {_STACK: "mrc"}, weight=0.5
        ),
        config,
    ]


def _comparisons(folder: Path) -> list[Scenario]:
    for name in (*_HALVES, "run_class001.mrc"):
        (folder / name).write_bytes((folder / "run" / name).read_bytes())
    first, second = _HALVES
    halves = {first: "mrc", second: "mrc"}
    whole = {"run_class001.mrc": "mrc"}
    end = ("--json", "figures.json")
    return [
        _scenario(folder, "half maps", ("fsc", first, *end), halves, weight=1.5),
        _scenario(
            folder, "half maps, mask", ("fsc", first, second, "--mask", "mask.mrc", "-o", "out", *end),
            halves | {"mask.mrc": "mrc"}, weight=1.5,
        ),
        _scenario(
            folder, "half maps, MTF", ("fsc", first, second, "--mtf", "mtf.star", "--bfac", "-100", "-o", "out", *end),
            {"mtf.star": "star"}, more=_HALVES,
        ),
        _scenario(
            folder, "map and truth", ("fsc", "run_class001.mrc", "molecule.mrc", *end), whole | {"molecule.mrc": "mrc"}
        ),
        _scenario(folder, "point groups of a map", ("symmetry", "molecule.mrc", "-o", "out"), {"molecule.mrc": "mrc"}),
        _scenario(
            folder, "map and model", ("fsc", "run_class001.mrc", "model.pdb", *end), whole | {"model.pdb": "text"}
        ),
    ]  # fmt: skip


def _simulations(folder: Path) -> list[Scenario]:
    few = ("-n", "6", "-o", "out", "--device", "cpu")
    return [
        _scenario(folder, "simulate from a map", ("simulate", "molecule.mrc", *few), {"molecule.mrc": "mrc"}),
        _scenario(
            folder, "simulate from a model", ("simulate", "model.pdb", "--box", str(BOX), *few), {"model.pdb": "text"}
        ),
        _scenario(
            folder, "simulate from mmCIF", ("simulate", "model.cif", "--box", str(BOX), *few), {"model.cif": "text"}
        ),
    ]


def _continuations(folder: Path) -> list[Scenario]:
    """A run that goes on from its checkpoints, and particles that are posed by an encoder."""
    searched = ("reconstruct", "truth.star", *_SHORT, "--device", "cpu", "--shift-sigma", "4")
    _cryoeq(folder, *searched, "-o", "out", before=_keep_checkpoints)
    _use_relative_paths(folder, "out")
    for path in (folder / "out").glob("run_*"):
        path.unlink()
    record = folder / "out" / "job.json"
    record.write_text(record.read_text().replace('"status": "done"', '"status": "stopped"'))
    _cryoeq(folder, *searched, "-o", "hybrid", "--pose-inference", "hybrid", *_SHORT_TRAINING)
    (folder / "encoder.pt").write_bytes((folder / "hybrid" / "encoder.pt").read_bytes())
    checkpoints = {
        f"out/checkpoints/{path.name}": "file" for path in sorted((folder / "out" / "checkpoints").iterdir())
    }
    resumed = {"out/job.json": "json", "truth.star": "star", _STACK: "mrc"} | checkpoints
    posed = {"encoder.pt": "file", "truth.star": "star", _STACK: "mrc"}
    return [
        _scenario(
            folder, "resumed", ("reconstruct", "-o", "out", "--resume"), resumed, more=("out/config.yaml",), weight=0.2
        ),
        _scenario(folder, "infer", ("infer", "encoder.pt", "truth.star", "-o", "poses.star"), posed),
    ]


def _keep_checkpoints() -> None:
    """In a child: what a run that is done would remove."""
    from cryoeq.pipelines.reconstruct.checkpoints import Checkpoints

    Checkpoints.clear = lambda self: None


def _write_chosen(folder: Path) -> None:
    """The particles with classes, probabilities of junk and a figure."""
    blocks = parse((folder / "truth.star").read_bytes()) or []
    blocks[-1].set("rlnClassNumber", [str(1 + i % 2) for i in range(COUNT)])
    blocks[-1].set("cryoeqJunkProbability", [f"{i / COUNT:.6f}" for i in range(COUNT)])
    blocks[-1].set("rlnMaxValueProbDistribution", [f"{1 - (7 * i % COUNT) / COUNT:.6f}" for i in range(COUNT)])
    (folder / "chosen.star").write_bytes(render(blocks))


def _instruments(folder: Path) -> list[Scenario]:
    run_files = [
        f"run/{path.name}" for path in sorted((folder / "run").iterdir()) if path.suffix not in {".png", ".html"}
    ]
    kinds = {".json": "json", ".star": "star", ".mrc": "mrc", ".csv": "text", ".yaml": "yaml"}
    of_run = {name: kinds[suffix] for name in run_files if (suffix := Path(name).suffix) in kinds}
    others = [name for name in run_files if name not in of_run]
    micrograph = next((folder / "c").glob("*.mrc"))
    (folder / "micrograph.mrc").write_bytes(micrograph.read_bytes())
    blurred = parse((folder / "run" / "run_data.star").read_bytes()) or []
    for label in ANGLES:
        noisy = [f"{float(value) + 4 * math.sin(37 * i):.6f}" for i, value in enumerate(blurred[-1].column(label))]
        blurred[-1].set(label, noisy)
    (folder / "posed.star").write_bytes(render(blurred))
    _write_chosen(folder)
    stars = {"posed.star": "star", "truth.star": "star"}
    chosen = ("--class", "2", "--junk-below", "0.8", "--keep", "0.9", "--balance-views", "--healpix-order", "1")
    cell = ("lattice", "find", "micrograph.mrc", "-o", "out")
    return [
        _scenario(
            folder, "orientations", ("orientations", "truth.star", "--json", "figures.json"), {"truth.star": "star"}
        ),
        _scenario(folder, "evaluate", ("evaluate", "posed.star", "truth.star", "--json", "figures.json"), stars),
        _scenario(folder, "screen, star", ("screen", "truth.star", "-o", "out"), {"truth.star": "star"}),
        _scenario(
            folder, "screen", ("screen", "run", "-o", "out"), of_run, more=[*others, "truth.star", _STACK], weight=0.7
        ),
        _scenario(
            folder, "report", ("report", "run", "-o", "report.html"), of_run, more=[*others, "truth.star", _STACK]
        ),
        _scenario(
            folder, "select", ("select", "chosen.star", *chosen, "-o", "out.star"), {"chosen.star": "star"}, weight=1.5
        ),
        _scenario(
            folder,
            "select, run",
            ("select", "run", "--half", "1", "--balance-views", "-o", "out.star"),
            of_run,
            more=others,
        ),
        _scenario(
            folder,
            "select, RELION 3.0",
            ("select", "older.star", "--only", "chosen.star", "-o", "out.star"),
            {"older.star": "star", "chosen.star": "star"},
        ),
        _scenario(
            folder,
            "select, cryoSPARC",
            ("select", "particles.cs", "--class", "1", "--half", "2", "-o", "out.cs"),
            {"particles.cs": "cs"},
        ),
        _scenario(folder, "crystal", cell, {"micrograph.mrc": "mrc"}, weight=0.7),
        _scenario(folder, "cell", ("lattice", "reduce", "--cell", "100 60 17"), {}, weight=0.3),
        _scenario(folder, "listing", ("settings", "shells"), {}, weight=0.1),
    ]
