"""Names of files by class: RELION's, those of a run of one class as they always were, and no two alike."""

from dataclasses import astuple

from cryoeq.outputs.map_names import map_names


def test_a_run_of_one_class_has_the_names_that_it_always_had() -> None:
    assert astuple(map_names()) == (
        "run_class001.mrc", "run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc", "run_mask.mrc",
        "run_postprocess.mrc", "run_fsc", "slices.png", "projections.png",
    )  # fmt: skip


def test_no_two_files_of_several_classes_have_one_name() -> None:
    names = [name for number in range(1, 13) for name in astuple(map_names(number, 12))]
    assert len(set(names)) == len(names)
    assert {"run_class012.mrc", "run_mask_class002.mrc", "run_fsc_class001", "run_postprocess_class003.mrc"} <= {*names}
