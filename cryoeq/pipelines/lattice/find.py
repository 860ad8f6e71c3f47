"""``cryoeq lattice find``: the unit cell of a 2D crystal in a micrograph."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.config.lattice import FindConfig
from cryoeq.data.pixels import replace_outliers
from cryoeq.domain.events import Event, Note, Report
from cryoeq.errors import MapFileError, NoLatticeError
from cryoeq.io.mrc import header_notes, read_micrograph, write_image
from cryoeq.io.text import write_json
from cryoeq.lattice.indexing import (
    MIN_SCORE,
    FoundLattice,
    PeakStatistics,
    Spots,
    find_lattice,
    match_spots,
    node_orders,
)
from cryoeq.lattice.power_spectrum import SMALLEST_SIDE_PX, Spectrum, whiten_spectrum
from cryoeq.lattice.reduction import integer_determinant, log_orthogonality_defect, transform_basis
from cryoeq.lattice.subtraction import subtract_lattice
from cryoeq.lattice.unit_cell import cell_of_basis
from cryoeq.outputs.folder import make_folder
from cryoeq.outputs.lattice_files import plot_spectrum, write_spots
from cryoeq.pipelines.lattice.reduce import build_reducer
from cryoeq.runtime.device import choose_device

_SPOT_TOLERANCE_PX = 1.5


@dataclass(frozen=True)
class PlaneCell:
    """The unit cell of a lattice, projected into the image.

    Args:
        basis_angstrom: reduced vectors a and b as columns (x, y), a the shorter, the angle between them not acute.
        unreduced_angstrom: vectors at the end of the search, before their reduction.
        change: unimodular matrix from the unreduced to the reduced vectors.
        deviations: standard deviations of a, b (Angstrom) and gamma (radians), from the residuals of the spots.
    """

    basis_angstrom: Float[Tensor, "2 2"]
    unreduced_angstrom: Float[Tensor, "2 2"]
    change: Int[Tensor, "2 2"]
    deviations: Float[Tensor, " 3"]


def find(config: FindConfig) -> Iterator[Event]:
    """Find the lattice of a micrograph, index its spots, and on request subtract it from the image.

    Yields:
        Notes, and one report.

    Raises:
        MapFileError: the micrograph is damaged, or has no pixel size.
        NoLatticeError: no lattice stands out of the noise.
        OutputError: a file cannot be written.
    """
    device = choose_device(config.device)
    image, pixel_size = read_micrograph(config.micrograph, angpix=config.pixel_size_angstrom)
    if min(image.shape) < SMALLEST_SIDE_PX:
        found = f"{config.micrograph} is {image.shape[1]} x {image.shape[0]} px"
        raise MapFileError(
            found, f"A micrograph of {SMALLEST_SIDE_PX} px or more a side was expected", "Check the file"
        )
    yield from (Note(text, "warning") for text in header_notes(config.micrograph))
    (image,), replaced = replace_outliers(image[None])
    if count := int(replaced):
        yield Note(f"{count} hot or dead pixels were replaced by the median of their neighbourhood.", "warning")
    folder, image = make_folder(config.output), image.to(device)
    spectrum = whiten_spectrum(
        image,
        pixel_size,
        coarsest_angstrom=config.largest_cell_angstrom,
        finest_angstrom=config.finest_angstrom or 2 * pixel_size,
    ).cpu()
    lattice = find_lattice(
        spectrum,
        smallest_cell_angstrom=config.smallest_cell_angstrom,
        largest_cell_angstrom=config.largest_cell_angstrom,
    )
    if lattice is None or lattice.score < MIN_SCORE:
        plot_spectrum(folder / "spectrum.png", spectrum, None, None, title=f"{config.micrograph.name}: no lattice")
        score = "too few peaks" if lattice is None else f"best score {lattice.score:.1f}"
        raise NoLatticeError(
            f"{config.micrograph}: no lattice stands out of the noise ({score})",
            f"A lattice scores {MIN_SCORE:g} or more, noise alone less",
            f"Look at {folder / 'spectrum.png'}; where spots are visible, try --min-cell, --max-cell or --finest",
        )
    cell = _reduced_cell(lattice, config.reducer, pixel_size)
    spots = _indexed_spots(spectrum, cell, lattice.finest_angstrom)
    write_spots(folder / "spots.star", spots.orders, spots.frequencies, spots.power, pixel_size)
    write_json(folder / "lattice.json", _as_json(config, lattice, cell, spots, pixel_size))
    title = f"{config.micrograph.name}: {_cell_text(cell)}"
    reciprocal = torch.linalg.inv(cell.basis_angstrom).T * pixel_size
    plot_spectrum(folder / "spectrum.png", spectrum, reciprocal, (spots.orders, spots.frequencies), title=title)
    yield Note(f"Written to {folder}: lattice.json, spots.star, spectrum.png")
    if config.subtract:
        yield _subtract(config, image, reciprocal, pixel_size)
    yield Report(f"Lattice of {config.micrograph.name}", _rows(config, lattice, cell, spots))


def _reduced_cell(lattice: FoundLattice, reducer: str, pixel_size_angstrom: float) -> PlaneCell:
    basis = torch.linalg.inv(lattice.reciprocal).T * pixel_size_angstrom
    change = build_reducer(reducer, 2)(basis[None])[0]
    reduced = transform_basis(basis, change)
    lengths = reduced.norm(dim=0)
    order = lengths.argsort(stable=True)
    sign = torch.tensor([1, -1 if float(reduced[:, 0] @ reduced[:, 1]) > 0 else 1])
    change = change[:, order] * sign

    def cell_parameters(reciprocal: Tensor) -> Tensor:
        vectors = torch.linalg.inv(reciprocal.reshape(2, 2)).T * pixel_size_angstrom
        return torch.cat(cell_of_basis(vectors @ change.double()))

    jacobian = torch.autograd.functional.jacobian(cell_parameters, lattice.reciprocal.flatten())
    deviations = (jacobian @ lattice.covariance @ jacobian.T).diagonal().clamp(min=0).sqrt()
    return PlaneCell(transform_basis(basis, change), basis, change, deviations)


def _indexed_spots(spectrum: Spectrum, cell: PlaneCell, finest_angstrom: float) -> Spots:
    """All peaks at nodes of the reduced cell, up to the resolution of the score: most peaks beyond it are noise."""
    reciprocal = torch.linalg.inv(cell.basis_angstrom).T * spectrum.pixel_size_angstrom
    max_order = math.ceil(float(cell.basis_angstrom.norm(dim=0).max()) / spectrum.pixel_size_angstrom)
    orders = node_orders(max_order)
    radii = (orders.double() @ reciprocal.T).norm(dim=1) / spectrum.pixel_size_angstrom
    statistics = PeakStatistics.from_spectrum(spectrum)
    return match_spots(statistics, reciprocal, orders[radii <= 1 / finest_angstrom], _SPOT_TOLERANCE_PX)


def _subtract(
    config: FindConfig, image: Float[Tensor, "ny nx"], reciprocal: Float[Tensor, "2 2"], pixel_size_angstrom: float
) -> Note:
    values, fraction = subtract_lattice(image, reciprocal, torch.Generator().manual_seed(config.seed))
    name = f"{config.micrograph.stem}_subtracted.mrc"
    write_image(
        config.output / name, values.cpu(), pixel_size_angstrom, label="lattice subtracted by cryoeq lattice find"
    )
    return Note(
        f"{config.output / name}: lattice subtracted; {fraction:.2%} of the Fourier coefficients have the amplitude of "
        "the noise around them, with their phases kept."
    )


def _cell_text(cell: PlaneCell) -> str:
    lengths, angles_rad = cell_of_basis(cell.basis_angstrom)
    return f"a = {lengths[0]:.2f} Å, b = {lengths[1]:.2f} Å, γ = {math.degrees(angles_rad[0]):.2f}°"


def _rows(config: FindConfig, lattice: FoundLattice, cell: PlaneCell, spots: Spots) -> dict[str, str]:
    da, db, dgamma = cell.deviations.tolist()
    matrix = "; ".join(" ".join(f"{value:d}" for value in row) for row in cell.change.tolist())
    finest = f"{lattice.finest_angstrom:.1f} Å"
    return {
        "Cell": _cell_text(cell),
        "Uncertainty": f"{da:.2f} Å, {db:.2f} Å, {math.degrees(dgamma):.2f}° (from the spots' residuals)",
        "Reduction": f"[{matrix}] times the vectors of the search, by {config.reducer}",
        "Score": f"{lattice.score:.1f} standard errors above the background, up to {finest} (noise: < {MIN_SCORE:g})",
        "Spots": f"{len(spots.orders)} indexed",
    }


def _as_json(
    config: FindConfig, lattice: FoundLattice, cell: PlaneCell, spots: Spots, pixel_size_angstrom: float
) -> dict[str, object]:
    lengths, angles_rad = cell_of_basis(cell.basis_angstrom)
    a, b = lengths.tolist()
    da, db, dgamma = cell.deviations.tolist()
    return {
        "micrograph": str(config.micrograph),
        "pixel_size_angstrom": pixel_size_angstrom,
        "a_angstrom": a,
        "b_angstrom": b,
        "gamma_deg": math.degrees(angles_rad[0]),
        "deviation": {"a_angstrom": da, "b_angstrom": db, "gamma_deg": math.degrees(dgamma)},
        "basis_angstrom": cell.basis_angstrom.T.tolist(),
        "reciprocal_per_angstrom": torch.linalg.inv(cell.basis_angstrom).tolist(),
        "found_basis_angstrom": cell.unreduced_angstrom.T.tolist(),
        "reducer": config.reducer,
        "change_of_basis_columns": cell.change.T.tolist(),
        "determinant": integer_determinant(cell.change),
        "log_defect": float(log_orthogonality_defect(cell.basis_angstrom)),
        "score": lattice.score,
        "score_finest_angstrom": lattice.finest_angstrom,
        "n_spots": len(spots.orders),
    }
