"""Names of point groups: those that settings accept are those that have rotations."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from cryoeq.config.symmetry import PointGroup
from cryoeq.errors import ConfigError
from cryoeq.geometry.pointgroup import symmetry_rotations

ADAPTER = TypeAdapter(PointGroup)
NAMES = st.one_of(
    st.from_regex(r"\s?[CDcd][0-9]{0,2}\s?", fullmatch=True),
    st.sampled_from(["T", "o", "I", "I1", "i2", "I3", "O4", ""]),
)


@settings(deadline=None)  # groups of icosahedra take their time on a busy machine
@given(NAMES)
def test_settings_accept_what_has_rotations(name: str) -> None:
    try:
        symmetry_rotations(name)
    except ConfigError:
        with pytest.raises(ValidationError):
            ADAPTER.validate_python(name)
    else:
        assert ADAPTER.validate_python(name) == name


@pytest.mark.parametrize(("order", "is_accepted"), [(360, True), (361, False)])
def test_the_highest_order(order: int, is_accepted: bool) -> None:
    for accept in (ADAPTER.validate_python, symmetry_rotations):
        if is_accepted:
            accept(f"C{order}")
        else:
            with pytest.raises((ValidationError, ConfigError)):
                accept(f"C{order}")
