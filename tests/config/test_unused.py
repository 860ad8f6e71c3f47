"""Settings that were given and have no effect are named in one line for each reason."""

from pathlib import Path
from typing import Any

import pytest

from cryoeq.config.evaluate import EvaluateConfig
from cryoeq.config.frozen import FrozenConfig
from cryoeq.config.fsc import FscConfig
from cryoeq.config.loading import load_config
from cryoeq.config.reconstruct import ReconstructConfig, RefinementConfig
from cryoeq.config.screen import ScreenConfig
from cryoeq.config.simulate import SimulateConfig
from cryoeq.errors import ConfigError

INPUT = {"particles": Path("a.star"), "output": Path("out")}
MODES = ("search", "hybrid", "amortized", "known", "refine")


def notes_on(
    kind: type[FrozenConfig], explicit: dict[str, Any], *overrides: str, file: Path | None = None
) -> list[str]:
    notes: list[str] = []
    load_config(kind, explicit=explicit, overrides=overrides, file=file, notes=notes)
    return notes


def test_all_that_a_mode_does_not_use_is_one_line() -> None:
    explicit = INPUT | {"pose_inference": "known", "input.shift_sigma_angstrom": 3.0, "input.working_box_px": 32}
    (note,) = notes_on(ReconstructConfig, explicit, "encoder.group=so2", "training.epochs=5", "search.mask_radius=0.4")
    assert note == (
        "Without effect, because of --pose-inference known: encoder.group, training.epochs, search.mask_radius, "
        "--shift-sigma, -D/--box."
    )


def test_what_several_classes_do_not_use_is_told() -> None:
    explicit = INPUT | {"search.classes": 2, "in_plane_symmetry": True}
    used = "full_box.iterations=3"
    (note,) = notes_on(ReconstructConfig, explicit, "search.multi_start.max=3", "full_box.ctf_refinement=true", used)
    assert note == (
        "Without effect, because of --classes 2: search.multi_start.max, full_box.ctf_refinement, --in-plane-symmetry."
    )
    assert notes_on(ReconstructConfig, explicit | {"search.classes": 1}, "search.multi_start.max=3") == []


def test_what_no_amortized_e_step_uses_is_told() -> None:
    amortized = ("search.e_step=amortized", "search.amortized.group=o2")
    assert notes_on(ReconstructConfig, INPUT, *amortized) == []
    assert notes_on(ReconstructConfig, INPUT, *amortized, "search.symmetry=C4") == []
    (note,) = notes_on(ReconstructConfig, INPUT, amortized[1])
    assert note == "Without effect, because of search.e_step=exhaustive: search.amortized.group."
    (note,) = notes_on(ReconstructConfig, INPUT, *amortized, "search.symmetry=O")
    assert note == "Without effect, because of --sym O: search.e_step, search.amortized.group."
    (note,) = notes_on(ReconstructConfig, INPUT | {"search.classes": 2}, *amortized)
    assert note == "Without effect, because of --classes 2: search.e_step, search.amortized.group."


def test_the_diameter_of_the_particle_counts_before_the_radius_of_the_mask() -> None:
    explicit = INPUT | {"input.particle_diameter_angstrom": 60.0}
    (note,) = notes_on(ReconstructConfig, explicit, "search.mask_radius=0.4")
    assert note == "Without effect, because of --particle-diameter: search.mask_radius."
    assert notes_on(ReconstructConfig, explicit, "search.offset_samples=5") == []


@pytest.mark.parametrize(
    ("key", "value", "modes"),
    [
        ("search.symmetry", "C4", ("search", "hybrid", "known", "refine")),
        ("search.half_sets.iterations", 2, ("search", "hybrid", "refine")),
        ("full_box.iterations", 2, ("search", "hybrid", "refine")),
        ("refine.keep_half_sets", True, ("refine",)),
        ("search.consensus.max_particles", 300, ("search", "hybrid")),
        ("search.e_step", "amortized", ("search",)),
        ("search.amortized.likely_views", 5, ()),  # of an amortized E-step
        ("hybrid.held_out", 0.2, ("hybrid",)),
        ("hybrid.projections", 500, ("hybrid",)),
        ("hybrid.learning_rate", 0.1, ()),  # of a network
        ("encoder.heads", 3, ("amortized",)),
        ("decoder.width", 32, ("amortized",)),
        ("loss.symmetric", True, ("amortized",)),
        ("training.epochs", 5, ("amortized",)),
        ("input.shift_sigma_angstrom", 3.0, ("search", "hybrid", "amortized", "refine")),
        ("input.particle_diameter_angstrom", 60.0, MODES),  # of the background, with poses that are known
        ("input.angpix", 2.0, MODES),
        ("seed", 3, MODES),
        ("both_hands", True, MODES),
    ],
)
def test_what_counts_in_which_mode(key: str, value: object, modes: tuple[str, ...]) -> None:
    for mode in MODES:
        if (key, mode) == ("search.symmetry", "amortized"):
            continue  # refused
        explicit = INPUT | {"pose_inference": mode} | ({"refine.reference": "map.mrc"} if mode == "refine" else {})
        assert bool(notes_on(ReconstructConfig, explicit, f"{key}={value}")) == (mode not in modes)


def test_what_a_local_refinement_does_not_use_is_told() -> None:
    explicit = INPUT | {"refine.local": True, "refine.reference": "map.mrc", "search.symmetry": "C4"}
    (note,) = notes_on(RefinementConfig, explicit, "search.half_sets.iterations=2", "search.mask_radius=0.4")
    assert note == "Without effect, because of --local: search.half_sets.iterations, --ref."


def test_a_refinement_without_a_start_is_refused() -> None:
    with pytest.raises(ConfigError, match="give a map with --ref, or --local"):
        load_config(RefinementConfig, explicit=INPUT)


def test_every_key_with_modes_is_a_setting_or_a_section() -> None:
    for key in ReconstructConfig.used_by:
        kind: Any = ReconstructConfig
        for part in key.split("."):
            kind = kind.model_fields[part].annotation


def test_a_file_may_hold_all_settings(tmp_path: Path) -> None:
    """As the config.yaml of another run does: its defaults ask for nothing."""
    file = tmp_path / "config.yaml"
    file.write_text(
        "training: {epochs: null, first_shell: 3.0}\nsearch: {consensus: {shells: [7, 7, 8, 8, 9, 9, 10, 10, 10]}}\n"
    )
    assert notes_on(ReconstructConfig, INPUT | {"pose_inference": "known"}, file=file) == []
    file.write_text("training: {epochs: 3}\n")
    assert notes_on(ReconstructConfig, INPUT, file=file) == [
        "Without effect, because of --pose-inference search: training.epochs."
    ]


@pytest.mark.parametrize(
    ("kind", "explicit", "words"),
    [
        (SimulateConfig, {"model": "m.pdb", "output": "o", "tilt_deg": 5.0}, "no --crystal: --tilt."),
        (
            SimulateConfig,
            {"model": "m", "output": "o", "crystal": (9, 9, 90), "views": "preferred"},
            "--crystal: --views.",
        ),
        (
            SimulateConfig,
            {"model": "m", "output": "o", "with_ctf": False, "defocus_min_um": 1.0},
            "--no-ctf: --defocus-min.",
        ),
        (
            SimulateConfig,
            {"model": "m", "output": "o", "crystal": (9, 9, 90), "scale_sd": 0.1, "normalise": True},
            "--crystal: --scale-sd, --normalise.",
        ),
        (
            SimulateConfig,
            {"model": "m", "output": "o", "with_ctf": False, "defocus_error_angstrom": 9.0, "bfactor_angstrom2": 9.0},
            "--no-ctf: --defocus-error, --bfactor.",
        ),
        (
            SimulateConfig,
            {"model": "m", "output": "o", "snr": float("inf"), "noise": "coloured"},
            "--snr inf: --noise.",
        ),
        (EvaluateConfig, {"predicted": "a", "truth": "b", "delta": 0.1}, "no --bound: --delta."),
        (EvaluateConfig, {"bound": "run", "symmetry": "C4"}, "no PRED.star: --sym."),
        (FscConfig, {"first": "a", "mask": "sphere", "automask.threshold": 0.1}, "--mask sphere: --mask-threshold."),
        (FscConfig, {"first": "a", "mask": "auto", "automask.diameter_angstrom": 9.0}, "--mask auto: --mask-diameter."),
        (FscConfig, {"first": "a", "mask": "m.mrc", "automask.edge_angstrom": 9.0}, "--mask m.mrc: --mask-edge."),
        (
            FscConfig,
            {"first": "a", "postprocess": False, "sharpening.bfactor_angstrom2": 9.0},
            "--no-postprocess: --bfac.",
        ),
        (ScreenConfig, {"run": "run", "scorer": "none", "seed": 3}, "--scorer none: --seed."),
        (ScreenConfig, {"run": "a.star", "scorer": "knn"}, "a star file, which has no maps to score with: --scorer."),
    ],
)
def test_other_commands(kind: type[FrozenConfig], explicit: dict[str, Any], words: str) -> None:
    assert notes_on(kind, explicit) == [f"Without effect, because of {words}"]


def test_symmetry_is_refused_where_it_is_not_imposed() -> None:
    with pytest.raises(ConfigError, match=r"--sym C4 with --pose-inference amortized, which imposes no symmetry"):
        notes_on(ReconstructConfig, INPUT | {"pose_inference": "amortized", "search.symmetry": "C4"})
    notes_on(ReconstructConfig, INPUT | {"pose_inference": "amortized", "search.symmetry": "C1"})
