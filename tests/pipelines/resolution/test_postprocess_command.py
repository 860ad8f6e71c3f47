"""``cryoeq fsc`` with half maps: the other half found, a mask made, RELION's and EMDB's files, and what is doubted."""

import xml.etree.ElementTree as ET
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
import torch
from torch import Tensor

from cryoeq.cli.main import run
from cryoeq.config.fsc import FscConfig
from cryoeq.domain.events import Note
from cryoeq.domain.volume import Volume
from cryoeq.errors import MapFileError
from cryoeq.evaluation.masks import spherical_mask
from cryoeq.io.map_frame import read_map_frame
from cryoeq.io.mrc import read_map, write_map
from cryoeq.io.text import read_json
from cryoeq.pipelines.resolution.fsc import fsc
from cryoeq.pipelines.resolution.half_map_names import MapPair, find_pair, other_half

N, PIXEL = 48, 3.0
CORNER = (-72.0, 0.0, 12.0)
NAMES = ("run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc")
DATA_FILES = {
    "fsc.json", "mask.mrc", "postprocess.mrc", "postprocess.star", "postprocess_fsc.dat", "postprocess_fsc.xml",
    "postprocess_masked.mrc",
}  # fmt: skip
PICTURES = {"postprocess_fsc.png", "postprocess_guinier.png", "postprocess_masks.png"}


def particle(generator: torch.Generator) -> Tensor:
    places = torch.randn(60, 3, generator=generator).clamp(-1.7, 1.7) * 4.0
    k = torch.arange(N) - N // 2
    lines = [torch.exp(-((k - places[:, axis, None]) ** 2) / (2 * 1.0**2)) for axis in range(3)]
    return torch.einsum("bx,by,bz->zyx", *lines)


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two half maps as ``cryoeq reconstruct`` names them, and their average."""
    folder, generator = tmp_path_factory.mktemp("halves"), torch.Generator().manual_seed(0)
    values = particle(generator)
    halves = [values + 0.3 * torch.randn(values.shape, generator=generator) for _ in NAMES]
    for name, half in zip(NAMES, halves, strict=True):
        write_map(folder / name, Volume(half, PIXEL), origin_angstrom=CORNER)
    write_map(folder / "average.mrc", Volume((halves[0] + halves[1]) / 2, PIXEL))
    return folder


@pytest.fixture(scope="module")
def done(maps: Path) -> Path:
    """The folder of one run with an automatic mask."""
    assert run(["fsc", str(maps / NAMES[0]), "-o", str(maps / "out"), "--bfac", "-50", "--device", "cpu"]) == 0
    return maps / "out"


@pytest.fixture
def _without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take a second, and ``done`` has them."""
    monkeypatch.setattr("cryoeq.pipelines.resolution.postprocess._draw", lambda *_: None)
    monkeypatch.setattr("cryoeq.outputs.evaluation_plots.plot_fsc", lambda *_, **__: None)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix != ".png"}


def warnings(config: FscConfig) -> str:
    return " ".join(event.text for event in fsc(config) if isinstance(event, Note) and event.level == "warning")


@pytest.mark.parametrize(
    ("name", "other"),
    [
        (NAMES[0], NAMES[1]),
        (NAMES[1], NAMES[0]),
        ("cryosparc_P1_J12_008_volume_map_half_A.mrc", "cryosparc_P1_J12_008_volume_map_half_B.mrc"),
        ("emd_1234_half_map_1.map", "emd_1234_half_map_2.map"),
        ("emd_1234_half_map_1.map.gz", "emd_1234_half_map_2.map.gz"),
        ("half1_of_half2.mrc", "half1_of_half1.mrc"),
        ("map_A.mrc", "map_B.mrc"),
        ("3D_density_map_h1.mrc", "3D_density_map_h2.mrc"),
        ("run_class001.mrc", None),
        ("half12.mrc", None),
        ("map_Atom.mrc", None),
    ],
)
def test_the_other_half_is_known_by_its_name(name: str, other: str | None) -> None:
    found = other_half(Path("half1") / name)
    assert found == (None if other is None else Path("half1") / other)


@pytest.mark.parametrize("there", ["e_half_map_2.map", "e_half_map_2.map.gz", "e_half_map_2.map.bz2"])
@pytest.mark.parametrize("given", ["e_half_map_1.map", "e_half_map_1.map.gz"])
def test_the_other_half_may_be_packed(tmp_path: Path, given: str, there: str) -> None:
    (tmp_path / there).touch()
    for second in (None, tmp_path / there):
        assert find_pair(FscConfig(first=tmp_path / given, second=second)) == MapPair(
            tmp_path / given, tmp_path / there, are_halves=True
        )


def test_one_half_map_is_enough(done: Path) -> None:
    assert {path.name for path in done.iterdir()} == DATA_FILES | PICTURES
    figures = read_json(done / "fsc.json")
    assert [Path(path).name for path in figures["maps"]] == list(NAMES)
    assert figures["mask"] == "auto"
    assert figures["bfactor_angstrom2"] == -50
    assert figures["final_resolution_angstrom"] == figures["resolution_angstrom"]["corrected"]
    by_mask = figures["resolution_angstrom_by_mask"]
    assert list(by_mask) == ["no mask", "spherical", "loose", "tight", "corrected"]
    assert by_mask["no mask"] >= by_mask["spherical"] >= by_mask["loose"] >= by_mask["tight"]
    assert by_mask["corrected"] == figures["final_resolution_angstrom"]


def test_the_star_has_the_blocks_and_columns_of_relion(done: Path) -> None:
    star = starfile.read(done / "postprocess.star", always_dict=True)
    figures = read_json(done / "fsc.json")
    assert list(star) == ["general", "fsc", "guinier"]
    assert list(star["general"]) == [
        "rlnFinalResolution", "rlnBfactorUsedForSharpening", "rlnUnfilteredMapHalf1", "rlnUnfilteredMapHalf2",
        "rlnParticleBoxFractionSolventMask", "rlnMaskName", "rlnRandomiseFrom",
    ]  # fmt: skip
    assert list(star["fsc"]) == [
        "rlnSpectralIndex", "rlnResolution", "rlnAngstromResolution", "rlnFourierShellCorrelationCorrected",
        "rlnFourierShellCorrelationParticleMaskFraction", "rlnFourierShellCorrelationUnmaskedMaps",
        "rlnFourierShellCorrelationMaskedMaps", "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps",
    ]  # fmt: skip
    assert list(star["guinier"]) == [
        "rlnResolutionSquared", "rlnLogAmplitudesOriginal", "rlnLogAmplitudesWeighted", "rlnLogAmplitudesSharpened",
    ]  # fmt: skip
    assert float(star["general"]["rlnFinalResolution"]) == pytest.approx(figures["final_resolution_angstrom"], abs=1e-5)
    assert Path(str(star["general"]["rlnMaskName"])).name == "mask.mrc"
    columns = star["fsc"]
    f = float(star["general"]["rlnParticleBoxFractionSolventMask"])
    unmasked = columns["rlnFourierShellCorrelationUnmaskedMaps"]
    expected = f * unmasked / (1 + (f - 1) * unmasked)
    np.testing.assert_allclose(columns["rlnFourierShellCorrelationParticleMaskFraction"], expected, atol=1e-5)
    np.testing.assert_allclose(columns["rlnFourierShellCorrelationCorrected"], figures["fsc"]["corrected"], atol=1e-6)
    text = (done / "postprocess.star").read_text()
    assert [line for line in text.splitlines() if "data_" in line] == ["data_general", "data_fsc", "data_guinier"]


def test_the_xml_and_the_columns_hold_the_final_curve(done: Path) -> None:
    root = ET.parse(done / "postprocess_fsc.xml").getroot()
    assert root.attrib["title"] == "cryoeq masked-corrected FSC"
    points = [(float(point.findtext("x", "")), float(point.findtext("y", ""))) for point in root]
    columns = np.loadtxt(done / "postprocess_fsc.dat")
    np.testing.assert_allclose(columns, points, rtol=1e-5)
    figures = read_json(done / "fsc.json")
    np.testing.assert_allclose(columns[:, 1], figures["fsc"]["corrected"], atol=1e-5)
    np.testing.assert_allclose(columns[1:, 0], figures["frequency_per_angstrom"][1:], rtol=1e-5)


@pytest.mark.realdata
def test_the_xml_has_the_schema_of_relions(done: Path, reference_data: Path) -> None:
    ours = ET.parse(done / "postprocess_fsc.xml").getroot()
    for path in sorted((reference_data / "fsc_reference").glob("*.xml")):
        theirs = ET.parse(path).getroot()
        assert ours.tag == theirs.tag
        assert {**ours.attrib, "title": ""} == {**theirs.attrib, "title": ""}
        for root in (ours, theirs):
            assert {point.tag for point in root} == {"coordinate"}
            assert {tuple(axis.tag for axis in point) for point in root} == {("x", "y")}
        assert ours[0].findtext("x") == theirs[0].findtext("x") == "0.001001"


def test_maps_lie_where_the_half_maps_lie(done: Path) -> None:
    for name in ("postprocess", "postprocess_masked", "mask"):
        assert read_map_frame(done / f"{name}.mrc").corner_angstrom == CORNER


def test_maps_are_written_for_others_to_read(done: Path) -> None:
    mask, sharpened, masked = (read_map(done / f"{name}.mrc") for name in ("mask", "postprocess", "postprocess_masked"))
    torch.testing.assert_close(masked.values, sharpened.values * mask.values)
    assert sharpened.pixel_size_angstrom == pytest.approx(PIXEL)
    assert mrcfile.validate(done / "postprocess.mrc", print_file=None)
    for picture in ("fsc", "masks", "guinier"):
        assert (done / f"postprocess_{picture}.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_the_same_seed_draws_the_same_phases(maps: Path, done: Path) -> None:
    curves = {}
    for seed in (0, 1):
        out = maps / f"seed{seed}.json"
        list(fsc(FscConfig(first=maps / NAMES[0], seed=seed, json_file=out, device="cpu")))
        curves[seed] = read_json(out)["fsc"]
    assert curves[0] == read_json(done / "fsc.json")["fsc"]
    assert curves[0]["unmasked"] == curves[1]["unmasked"]
    assert curves[0]["randomised"] != curves[1]["randomised"]


@pytest.mark.usefixtures("_without_pictures")
def test_masks_of_all_kinds(maps: Path) -> None:
    write_map(maps / "given.mrc", spherical_mask(N, PIXEL, 15.0, 80.0))
    names = {}
    for kind in ("sphere", "none", str(maps / "given.mrc")):
        out = maps / f"kind_{Path(kind).stem}"
        options = ["--mask", kind, "--mask_diameter", "80", "--mask_edge", "15", "--low-pass", "-1", "--device", "cpu"]
        assert run(["fsc", *(str(maps / name) for name in NAMES), "-o", str(out), *options]) == 0
        names[kind] = files(out)
    assert names["sphere"] == DATA_FILES
    assert names["none"] == DATA_FILES - {"mask.mrc", "postprocess_masked.mrc"}
    assert names[str(maps / "given.mrc")] == DATA_FILES - {"mask.mrc"}
    sphere, given = (read_json(maps / f"kind_{name}" / "fsc.json") for name in ("sphere", "given"))
    np.testing.assert_allclose(sphere["fsc"]["masked"], given["fsc"]["masked"], atol=1e-6)
    star = starfile.read(maps / "kind_none" / "postprocess.star", always_dict=True)
    assert "rlnFourierShellCorrelationCorrected" not in star["fsc"]
    assert "rlnMaskName" not in star["general"]


@pytest.mark.usefixtures("_without_pictures")
def test_other_pairs_are_neither_masked_nor_sharpened_unless_asked(maps: Path) -> None:
    first, other = str(maps / NAMES[0]), str(maps / "other.mrc")
    (maps / "other.mrc").write_bytes((maps / NAMES[1]).read_bytes())
    assert run(["fsc", first, other, "-o", str(maps / "pair"), "--device", "cpu"]) == 0
    assert files(maps / "pair") == {"fsc.json", "fsc.star", "fsc.xml"}
    assert run(["fsc", first, other, "--postprocess", "-o", str(maps / "asked"), "--device", "cpu"]) == 0
    assert (maps / "asked" / "postprocess.mrc").is_file()
    assert run(["fsc", first, "--no-postprocess", "-o", str(maps / "not"), "--device", "cpu"]) == 0
    assert not (maps / "not" / "postprocess.mrc").exists()
    assert run(["fsc", first, other, "--postprocess", "--device", "cpu"]) == 2


def test_pairs_that_are_sharpened_must_be_independent(maps: Path) -> None:
    """Whatever their names are."""
    half = read_map(maps / NAMES[1])
    write_map(maps / "inverted.mrc", Volume(-half.values, PIXEL))
    for other, found in (("average.mrc", "is the average or sum of both halves"), ("inverted.mrc", "anticorrelate")):
        config = FscConfig(
            first=maps / NAMES[0], second=maps / other, postprocess=True, output=maps / "refused", device="cpu"
        )
        with pytest.raises(MapFileError, match=f"{NAMES[0]} and .*{other}: .*{found}"):
            list(fsc(config))
    assert not (maps / "refused").exists()
    compared = FscConfig(first=maps / NAMES[0], second=maps / "inverted.mrc", device="cpu")
    assert "The maps anticorrelate: their FSC is -" in warnings(compared)


@pytest.mark.usefixtures("_without_pictures")
def test_masked_half_maps_are_warned_of(maps: Path, tmp_path: Path) -> None:
    k = torch.arange(N) - N // 2
    mask = ((N // 3) - (k[:, None, None] ** 2 + k[:, None] ** 2 + k**2).float().sqrt()).clamp(0, 1)
    assert "The half maps were masked" not in warnings(FscConfig(first=maps / NAMES[0], device="cpu"))
    for name in NAMES:
        write_map(tmp_path / name, Volume(read_map(maps / name).values * mask, PIXEL))
    assert "The half maps were masked" in warnings(FscConfig(first=tmp_path / NAMES[0], device="cpu"))


@pytest.mark.usefixtures("_without_pictures")
def test_signs_that_something_is_wrong(maps: Path) -> None:
    shared = {"first": maps / NAMES[0], "device": "cpu"}
    k = torch.arange(N) - N // 2
    radii = (k[:, None, None] ** 2 + k[:, None] ** 2 + k**2).float().sqrt()
    write_map(maps / "hard.mrc", Volume((radii < 5).float(), PIXEL))
    write_map(maps / "wide.mrc", Volume(((30 - radii) / 10).clamp(0, 1), PIXEL))
    hard = warnings(FscConfig(**shared, mask=maps / "hard.mrc"))
    assert "hard-edged: it changes by 1.00" in hard
    assert "touches the edge" not in hard
    assert "touches the edge of the box" in warnings(FscConfig(**shared, mask=maps / "wide.mrc"))
    sharpened = warnings(FscConfig(**shared, output=maps / "doubted"))
    assert "is unreliable: only" in sharpened
    assert "The map is not sharpened" in warnings(
        FscConfig.model_validate({**shared, "output": maps / "blunt", "sharpening": {"autob_lowres_angstrom": 6.1}})
    )


@pytest.mark.usefixtures("_without_pictures")
def test_a_mask_that_makes_it_worse_is_left_out(maps: Path) -> None:
    """A common core under noise that the two maps do not share, and a mask on the noise."""
    k = torch.arange(N) - N // 2
    far = torch.exp(-((k[:, None, None] - 17) ** 2 + (k[:, None] - 17) ** 2 + (k - 17) ** 2) / 18.0)
    write_map(maps / "beside.mrc", Volume(far / far.max(), PIXEL))
    config = FscConfig(first=maps / NAMES[0], mask=maps / "beside.mrc", output=maps / "beside", device="cpu")
    assert "the unmasked one is the final resolution" in warnings(config)
    figures = read_json(maps / "beside" / "fsc.json")
    assert figures["final_resolution_angstrom"] == figures["resolution_angstrom"]["unmasked"]
    assert '"cryoeq unmasked FSC"' in (maps / "beside" / "postprocess_fsc.xml").read_text()


def test_bad_half_maps_are_named(maps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (read_map(maps / name) for name in NAMES)

    def message(code: int, *arguments: str) -> str:
        assert run(["fsc", *arguments, "--device=cpu"]) == code
        return capsys.readouterr().err

    def pair(name: str, values: Tensor, pixel_size: float = PIXEL) -> str:
        write_map(tmp_path / f"{name}_half1.mrc", first)
        write_map(tmp_path / f"{name}_half2.mrc", Volume(values, pixel_size))
        return str(tmp_path / f"{name}_half1.mrc")

    assert "are the same map" in message(3, pair("same", first.values))
    assert "average or sum of both halves" in message(3, pair("full", (first.values + second.values) / 2))
    assert "boxes of 48 and 40 pixels" in message(3, pair("small", second.values[:40, :40, :40]))
    assert "pixel sizes of 3 and 3.5 Å" in message(3, pair("coarse", second.values, 3.5))
    assert "no voxel is above the mask threshold" in message(3, str(maps / NAMES[0]), "--mask-threshold", "99")
    write_map(tmp_path / "lonely_half1.mrc", first)
    assert "lonely_half2.mrc does not exist" in message(3, str(tmp_path / "lonely_half1.mrc"))
    assert "the name of the other half map cannot be derived" in message(2, str(maps / "average.mrc"))
    assert "--align with one map" in message(2, str(maps / NAMES[0]), "--align")
    with mrcfile.open(tmp_path / "lonely_half1.mrc", "r+") as file:
        file.voxel_size = 0
    (tmp_path / "lonely_half2.mrc").write_bytes((tmp_path / "lonely_half1.mrc").read_bytes())
    assert "pixel size missing or zero" in message(3, str(tmp_path / "lonely_half1.mrc"))


def test_a_pixel_size_of_1_looks_unset(maps: Path, tmp_path: Path) -> None:
    for name in NAMES:
        write_map(tmp_path / name, Volume(read_map(maps / name).values, 1.0))
    shared = {"first": tmp_path / NAMES[0], "mask": Path("none"), "device": "cpu"}
    assert "never set" in warnings(FscConfig(**shared))
    assert "never set" not in warnings(FscConfig(**shared, pixel_size_angstrom=1.0))


def test_maps_that_never_decorrelate_are_doubted(maps: Path, tmp_path: Path) -> None:
    clean = particle(torch.Generator().manual_seed(3))
    for number, name in enumerate(NAMES):
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(number))
        write_map(tmp_path / name, Volume(clean + 1e-4 * noise, PIXEL))
    assert "stays above 0.143 up to Nyquist (6 Å)" in warnings(
        FscConfig(first=tmp_path / NAMES[0], mask=Path("none"), device="cpu")
    )


@pytest.mark.realdata
@pytest.mark.usefixtures("_without_pictures")
def test_published_half_maps_end_where_relion_ends(reference_data: Path, tmp_path: Path) -> None:
    folder = reference_data / "half_maps_mpopara"
    for kind in ("none", "auto"):
        config = FscConfig(
            first=folder / "3D_density_map_h1.mrc", mask=Path(kind), output=tmp_path / kind, device="cpu"
        )
        list(fsc(config))
        assert read_json(tmp_path / kind / "fsc.json")["final_resolution_angstrom"] == pytest.approx(10.0)
