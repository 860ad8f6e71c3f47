"""``run_model.star``: RELION's blocks and labels, and its figures of the same shells."""

from pathlib import Path

import pytest
import starfile
import torch

from cryoeq.io.model_star import ClassModel, overall_completeness, write_model_star

# Of relion_refine 3.1.3, --K 2 --iter 1, on 120 particles of 24 px of 10.33 Å: run_it001_model.star.
RELION = {
    "model_general": [
        "rlnReferenceDimensionality", "rlnDataDimensionality", "rlnOriginalImageSize", "rlnCurrentResolution",
        "rlnCurrentImageSize", "rlnPaddingFactor", "rlnIsHelix", "rlnFourierSpaceInterpolator",
        "rlnMinRadiusNnInterpolation", "rlnPixelSize", "rlnNrClasses", "rlnNrBodies", "rlnNrGroups",
        "rlnTau2FudgeFactor", "rlnNormCorrectionAverage", "rlnSigmaOffsetsAngst", "rlnOrientationalPriorMode",
        "rlnSigmaPriorRotAngle", "rlnSigmaPriorTiltAngle", "rlnSigmaPriorPsiAngle", "rlnLogLikelihood",
        "rlnAveragePmax",
    ],
    "model_classes": [
        "rlnReferenceImage", "rlnClassDistribution", "rlnAccuracyRotations", "rlnAccuracyTranslationsAngst",
        "rlnEstimatedResolution", "rlnOverallFourierCompleteness",
    ],
    "model_class_1": [
        "rlnSpectralIndex", "rlnResolution", "rlnAngstromResolution", "rlnSsnrMap", "rlnGoldStandardFsc",
        "rlnFourierCompleteness", "rlnReferenceSigma2", "rlnReferenceTau2", "rlnSpectralOrientabilityContribution",
    ],
}  # fmt: skip
IN_OWN_UNITS = {"rlnReferenceSigma2", "rlnReferenceTau2", "rlnSpectralOrientabilityContribution"}
RESOLUTIONS = [
    999.0, 247.919998, 123.959999, 82.639999, 61.98, 49.584, 41.32, 35.417143, 30.99, 27.546666, 24.792, 22.538182,
    20.66,
]  # fmt: skip
COMPLETENESS = {
    0.296612: [1, 1, 0.729730, 0.508772, 0.404959, 0.349206, 0.253061, 0.242991, 0.177778, 0, 0, 0, 0],
    0.397222: [1, 1, 0.783784, 0.614035, 0.495868, 0.444444, 0.359184, 0.358255, 0.271605, 0, 0, 0, 0],
}


def classes() -> list[ClassModel]:
    shells = torch.arange(13)
    return [
        ClassModel(f"run_class{i:03d}.mrc", share, (1.4 - shells / 7).clamp(-0.2, 1), torch.tensor(reached), *accuracy)
        for i, (share, reached, accuracy) in enumerate(
            zip((0.3, 0.7), COMPLETENESS.values(), ((3.345, 2.73745), ()), strict=True), 1
        )
    ]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_model_star(
        tmp_path / "run_model.star", classes(), box_size_px=24, pixel_size_angstrom=10.33, log_likelihood=-159379.4,
        mean_max_probability=0.976877,
    )  # fmt: skip
    return tmp_path / "run_model.star"


def test_blocks_and_labels_are_relions_in_its_order(written: Path) -> None:
    blocks = starfile.read(written, always_dict=True)
    assert list(blocks) == ["model_general", "model_classes", "model_class_1", "model_class_2"]
    assert list(blocks["model_classes"]) == RELION["model_classes"]
    assert list(blocks["model_class_2"]) == [label for label in RELION["model_class_1"] if label not in IN_OWN_UNITS]
    general = list(blocks["model_general"])
    assert general == [label for label in RELION["model_general"] if label in general]
    assert written.read_text().count("loop_") == 3, "the general block is a list of labels and values"


def test_shells_are_relions(written: Path) -> None:
    table = starfile.read(written, always_dict=True)["model_class_1"]
    assert table["rlnAngstromResolution"].tolist() == pytest.approx(RESOLUTIONS, rel=1e-6)
    assert table["rlnResolution"].tolist()[:2] == [0, 0.004034]
    assert table["rlnSpectralIndex"].tolist() == list(range(13))


@pytest.mark.parametrize("overall", COMPLETENESS)
def test_overall_completeness_is_relions(overall: float) -> None:
    shells = torch.tensor(COMPLETENESS[overall])
    assert overall_completeness(shells, 8) == pytest.approx(overall, abs=1e-6)
    assert overall_completeness(torch.ones(13), 8) == 1
    assert overall_completeness(torch.ones(13), 0) == 0


def test_the_estimated_resolution_is_where_half_maps_agree_to_0143(written: Path) -> None:
    row = starfile.read(written, always_dict=True)["model_classes"].iloc[0]
    assert float(row["rlnEstimatedResolution"]) == pytest.approx(RESOLUTIONS[8], abs=1e-5)  # FSC 0.257, then 0.114
    dips = ClassModel("m", 1.0, torch.tensor([1.0, 0.9, 0.142, 0.9, 0.1]), torch.ones(5))
    assert dips.last_shell == 1
    assert ClassModel("m", 1.0, torch.tensor([1.0, 0.9, 0.144]), torch.ones(3)).last_shell == 2
    assert ClassModel("m", 1.0, torch.zeros(3), torch.ones(3)).last_shell == 0
    assert ClassModel("m", 1.0, torch.tensor([1 / 7]).double(), torch.ones(1)).ssnr.item() == pytest.approx(1)


def test_what_is_not_known_is_999(written: Path) -> None:
    table = starfile.read(written, always_dict=True)["model_classes"]
    assert table["rlnAccuracyRotations"].tolist() == [3.345, 999]
    assert table["rlnAccuracyTranslationsAngst"].tolist() == [2.73745, 999]
    assert table["rlnClassDistribution"].tolist() == [0.3, 0.7]


def test_maps_that_do_not_agree_have_no_resolution(tmp_path: Path) -> None:
    nothing = ClassModel("m.mrc", 1.0, torch.zeros(9), torch.zeros(9))
    write_model_star(
        tmp_path / "m.star", [nothing], box_size_px=16, pixel_size_angstrom=2.0, log_likelihood=0.0,
        mean_max_probability=1.0,
    )  # fmt: skip
    blocks = starfile.read(tmp_path / "m.star", always_dict=True)
    assert float(blocks["model_classes"]["rlnEstimatedResolution"].iloc[0]) == 999
    assert float(blocks["model_classes"]["rlnOverallFourierCompleteness"].iloc[0]) == 0
