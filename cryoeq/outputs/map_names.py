"""Names of the maps of a run, of one class or of several."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MapNames:
    """File names of one class in the folder of its run.

    Args:
        whole: the map of all its particles.
        first_half: unfiltered map of half set 1.
        second_half: unfiltered map of half set 2.
        mask: the mask.
        postprocessed: average of the half maps, filtered and sharpened.
        fsc: correlation of the half maps, without ending (``.star``, ``.xml``, ``.png``).
        slices: picture of its central slices.
        projections: picture of its projections.
    """

    whole: str
    first_half: str
    second_half: str
    mask: str
    postprocessed: str
    fsc: str
    slices: str
    projections: str


def map_names(number: int = 1, n_classes: int = 1) -> MapNames:
    """The names of the files of a class.

    Args:
        number: of the class, from 1.
        n_classes: number of classes of the run; files of a run of one class have no number but where RELION's have it.
    """
    name = f"class{number:03d}"
    ending = "" if n_classes == 1 else f"_{name}"
    return MapNames(
        whole=f"run_{name}.mrc",
        first_half=f"run_half1_{name}_unfil.mrc",
        second_half=f"run_half2_{name}_unfil.mrc",
        mask=f"run_mask{ending}.mrc",
        postprocessed=f"run_postprocess{ending}.mrc",
        fsc=f"run_fsc{ending}",
        slices=f"slices{ending}.png",
        projections=f"projections{ending}.png",
    )
