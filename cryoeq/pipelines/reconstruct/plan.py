"""Plan of a run: the stages that each mode of pose inference goes through, for progress as stage n of N."""

from cryoeq.domain.events import Plan
from cryoeq.pipelines.reconstruct.junk import STAGE as JUNK_STAGE
from cryoeq.reconstruction.class_assignment import STAGE as ASSIGNMENT_STAGE
from cryoeq.reconstruction.class_refinement import STAGE as CLASS_STAGE
from cryoeq.reconstruction.full_box_refinement import FINAL_STAGE as FULL_BOX_FINAL_STAGE
from cryoeq.reconstruction.full_box_refinement import STAGE as FULL_BOX_STAGE
from cryoeq.reconstruction.global_realignment import STAGE as REALIGNMENT_STAGE
from cryoeq.reconstruction.half_set_refinement import CONSENSUS_STAGE, FINAL_STAGE, HALF_SETS_STAGE, LOCAL_STAGE
from cryoeq.reconstruction.initial_model import STAGE as INITIAL_MODEL_STAGE
from cryoeq.reconstruction.state import RefinementSettings

_MAPS = "reconstructing"
_FULL_BOX = "reading", FULL_BOX_STAGE, FULL_BOX_FINAL_STAGE


def plan_search(settings: RefinementSettings, *, has_full_box: bool = False) -> Plan:
    """Stages of an ab initio search.

    Args:
        settings: of the refinement.
        has_full_box: whether the stored images have more shells than the search.
    """
    local = (LOCAL_STAGE,) if settings.local_iterations else ()
    full_box = _FULL_BOX if has_full_box else ()
    final = (FINAL_STAGE, REALIGNMENT_STAGE, *full_box, _MAPS, JUNK_STAGE)
    return Plan((*_ab_initio(settings), HALF_SETS_STAGE, *_realignment(settings), *local, *final))


def plan_refinement(settings: RefinementSettings, *, is_local: bool) -> Plan:
    """Stages of a refinement from a map, or from poses.

    Args:
        settings: of the refinement.
        is_local: whether it starts from poses.
    """
    if is_local:
        return Plan((*_FULL_BOX, _MAPS, JUNK_STAGE))
    local = (LOCAL_STAGE,) if settings.local_iterations else ()
    search = ("reading", REALIGNMENT_STAGE, HALF_SETS_STAGE, *_realignment(settings), *local)
    return Plan((*search, FINAL_STAGE, REALIGNMENT_STAGE, *_FULL_BOX, _MAPS, JUNK_STAGE))


def plan_classes(settings: RefinementSettings, *, has_full_box: bool) -> Plan:
    """Stages of a search for several classes; those of the refinement come once for each class.

    Args:
        settings: of the refinement.
        has_full_box: whether the stored images have more shells than the search.
    """
    full_box = _FULL_BOX if has_full_box else ()
    local, realignment = (LOCAL_STAGE,) if settings.local_iterations else (), _realignment(settings)
    of_class = (HALF_SETS_STAGE, *realignment, *local)
    without_junk = (JUNK_STAGE, LOCAL_STAGE, *realignment, *local, FINAL_STAGE, REALIGNMENT_STAGE)
    first = ("reading", INITIAL_MODEL_STAGE, CLASS_STAGE, ASSIGNMENT_STAGE)
    return Plan((*first, *of_class, *without_junk, *full_box, _MAPS, JUNK_STAGE))


def plan_hybrid(settings: RefinementSettings, *, has_network: bool) -> Plan:
    """Stages of a search that trains view encoders.

    Args:
        settings: of the refinement.
        has_network: whether a network gives their posterior.
    """
    local = (LOCAL_STAGE,) if settings.local_iterations else ()
    halves = (HALF_SETS_STAGE, *_realignment(settings), *local)
    training = "view network" if has_network else "view encoder"
    encoder = (training, "view encoder calibration") * 2 + ("encoder inference",)
    return Plan((*_ab_initio(settings), *halves, *encoder, FINAL_STAGE, REALIGNMENT_STAGE, _MAPS, JUNK_STAGE))


def plan_amortized() -> Plan:
    """Stages of amortized inference."""
    return Plan(("training", "encoder inference", _MAPS))


def _ab_initio(settings: RefinementSettings) -> tuple[str, ...]:
    return "reading", INITIAL_MODEL_STAGE, CONSENSUS_STAGE, *_realignment(settings)


def _realignment(settings: RefinementSettings) -> tuple[str, ...]:
    """Where particles are centred, every iteration searches all poses, and none are re-aligned."""
    return (REALIGNMENT_STAGE,) if settings.shift_sigma_px > 0 else ()
