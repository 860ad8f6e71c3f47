"""Masks and references of ``cryoeq reconstruct``: in the frame of the images, or the doubt is said."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import mrcfile
import pytest
import torch

from cryoeq.config.reconstruct import InputConfig, ReconstructConfig, RefinementConfig
from cryoeq.config.refine import RefineConfig
from cryoeq.domain.particles import ParticleTable
from cryoeq.domain.volume import Volume
from cryoeq.errors import MapFileError
from cryoeq.io.mrc import write_map
from cryoeq.pipelines.reconstruct.supplied_maps import SuppliedMaps, compare_with_reference, read_supplied_maps
from known_particles import ANGPIX, MakeDataset, N

Read = Callable[..., SuppliedMaps]


@pytest.fixture
def ball() -> Volume:
    radii = torch.cartesian_prod(*[torch.arange(N) - N // 2] * 3).float().norm(dim=1).reshape(N, N, N)
    return Volume((6 - radii).clamp(0, 1), ANGPIX)


@pytest.fixture
def table(make_dataset: MakeDataset) -> ParticleTable:
    return make_dataset(torch.zeros(2, N, N)).table


@pytest.fixture
def read(table: ParticleTable, tmp_path: Path) -> Read:
    def of(**paths: Path) -> SuppliedMaps:
        config = ReconstructConfig(
            particles=tmp_path / "p.star", output=tmp_path / "out", pose_inference="known", input=paths
        )
        return read_supplied_maps(config, table)

    return of


def said(supplied: SuppliedMaps) -> str:
    assert all(note.level == "warning" for note in supplied.notes)
    return " ".join(note.text for note in supplied.notes)


def test_maps_of_the_frame_of_the_images_are_taken_without_a_word(read: Read, ball: Volume, tmp_path: Path) -> None:
    write_map(tmp_path / "m.mrc", ball)
    supplied = read(mask=tmp_path / "m.mrc", compare_to=tmp_path / "m.mrc")
    assert supplied.notes == ()
    assert supplied.mask is not None
    assert torch.equal(supplied.mask.values, ball.values)


def test_a_map_that_agrees_with_its_reference_nowhere_has_no_resolution(ball: Volume) -> None:
    inverted = Volume(-ball.values, ball.pixel_size_angstrom)
    assert compare_with_reference(inverted, ball) is None
    assert compare_with_reference(ball, ball) == pytest.approx(2 * ANGPIX, rel=0.2)


def test_a_mask_in_another_frame_is_doubted(read: Read, ball: Volume, tmp_path: Path) -> None:
    write_map(tmp_path / "m.mrc", Volume(ball.values, 1.0), origin_angstrom=(10.0, 0.0, 0.0))
    text = said(read(mask=tmp_path / "m.mrc"))
    assert "the reconstruction and m.mrc differ: 5 and 1 Å" in text
    assert "differ by 2.0 px along x" in text


def test_a_reference_lies_where_it_likes_but_has_the_pixels_of_the_images(
    read: Read, ball: Volume, tmp_path: Path
) -> None:
    write_map(tmp_path / "r.mrc", ball, origin_angstrom=(10.0, 0.0, 0.0))  # the result is aligned to it
    assert read(compare_to=tmp_path / "r.mrc").notes == ()
    write_map(tmp_path / "r.mrc", Volume(ball.values, 6.0))
    with pytest.raises(MapFileError, match="the reference and the images have pixel sizes of 6 and 5 Å"):
        read(compare_to=tmp_path / "r.mrc")


def test_a_map_without_a_pixel_size_has_that_of_the_images(read: Read, ball: Volume, tmp_path: Path) -> None:
    write_map(tmp_path / "m.mrc", ball)
    with mrcfile.open(tmp_path / "m.mrc", "r+") as mrc:
        mrc.header.cella = (0, 0, 0)
    supplied = read(mask=tmp_path / "m.mrc", compare_to=tmp_path / "m.mrc")
    assert supplied.reference is not None
    assert supplied.reference.pixel_size_angstrom == ANGPIX
    assert said(supplied).count("5 Å is taken, as of the images") == 2


@pytest.mark.parametrize(("contrast", "sign", "is_said"), [("auto", 1, False), ("auto", -1, True), ("keep", -1, False)])
def test_a_map_to_start_from_that_is_dark_where_images_are_bright_is_doubted(
    table: ParticleTable, ball: Volume, tmp_path: Path, contrast: Literal["auto", "keep"], sign: int, is_said: bool
) -> None:
    write_map(tmp_path / "m.mrc", Volume(sign * ball.values + 3, ball.pixel_size_angstrom))
    config = RefinementConfig(
        particles=tmp_path / "p.star",
        output=tmp_path / "out",
        input=InputConfig(contrast=contrast),
        refine=RefineConfig(reference=tmp_path / "m.mrc"),
    )
    assert ("looks inverted" in said(read_supplied_maps(config, table))) is is_said
    (tmp_path / "m.mrc").unlink()
    assert read_supplied_maps(config, table, has_started=True) == SuppliedMaps()
    with pytest.raises(MapFileError):
        read_supplied_maps(config, table)
