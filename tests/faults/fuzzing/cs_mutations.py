"""Changes of cryoSPARC's tables."""

import io
import random
from typing import Any

import numpy as np

from faults.fuzzing.cases import Change, Scenario, mutation

Table = np.ndarray[Any, Any]
_IMPOSSIBLE: dict[str, tuple[float, ...]] = {
    "blob/psize_A": (0, -5, 1e9), "ctf/accel_kv": (0, -300, 300000), "ctf/cs_mm": (-2, 2.7e6),
    "ctf/amp_contrast": (-0.1, 10), "ctf/df1_A": (1.5, 1e30), "ctf/df2_A": (1.5, 1e30), "blob/idx": (2**31, 99),
    "alignments3D/shift": (1e6, 1e30), "alignments3D/psize_A": (0, -5, 1e9), "alignments3D/pose": (1e30,),
    "alignments3D/split": (7,), "blob/shape": (0, 48),
}  # fmt: skip
_NEEDED = ("blob/path", "blob/idx", "blob/psize_A", "ctf/df1_A", "ctf/df2_A", "ctf/accel_kv", "ctf/cs_mm",
           "ctf/amp_contrast", "ctf/df_angle_rad", "alignments3D/pose", "alignments3D/shift")  # fmt: skip
_LABELS = {
    "blob/psize_A": ("rlnImagePixelSize", "pixel size"), "ctf/accel_kv": ("rlnVoltage",),
    "ctf/cs_mm": ("rlnSphericalAberration",), "ctf/amp_contrast": ("rlnAmplitudeContrast",),
    "ctf/df1_A": ("rlnDefocusU",), "ctf/df2_A": ("rlnDefocusV",), "ctf/df_angle_rad": ("rlnDefocusAngle",),
    "alignments3D/pose": ("rlnAngle",), "alignments3D/shift": ("rlnOrigin",),
    "alignments3D/split": ("rlnRandomSubset",),
}  # fmt: skip


def _load(content: bytes) -> Table | None:
    try:
        table = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError):
        return None
    is_table = isinstance(table, np.ndarray) and table.dtype.names and table.ndim == 1 and len(table)
    return table if is_table else None


def _dump(table: Table) -> bytes:
    file = io.BytesIO()
    np.save(file, table, allow_pickle=True)
    return file.getvalue()


def _retyped(table: Table, types: dict[str, Any]) -> Table:
    """A table with these columns, in this order."""
    new = np.empty(
        len(table), [(name, kind) if not isinstance(kind, tuple) else (name, *kind) for name, kind in types.items()]
    )
    for name in types:
        if name in (table.dtype.names or ()):
            new[name] = table[name].reshape(new[name].shape)
    return new


def _types(table: Table) -> dict[str, Any]:
    return {name: table.dtype[name] for name in table.dtype.names or ()}


def _subjects(name: str) -> tuple[str, ...]:
    return (name, *_LABELS.get(name, ()))


@mutation("cs", "harmless")
def fields_in_another_order(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if (table := _load(content)) is None:
        return None
    types = list(_types(table).items())
    chance.shuffle(types)
    return Change(_dump(_retyped(table, dict(types))), "fields in another order")


@mutation("cs", "harmless")
def fields_of_other_width(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if (table := _load(content)) is None:
        return None
    types = _types(table)
    for name, kind in types.items():
        base, shape = kind.subdtype or (kind, ())
        if base.kind in "fui" and chance.random() < 0.5:
            wider = chance.choice((f">{base.kind}{base.itemsize}", f"<{base.kind}8"))
            types[name] = np.dtype((wider, shape))
        elif base.kind == "S" and chance.random() < 0.5:
            types[name] = np.dtype("U100")
    return Change(_dump(_retyped(table, types)), "fields of other widths")


@mutation("cs", "harmless")
def field_that_nobody_knows(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if (table := _load(content)) is None:
        return None
    name = chance.choice(("blob/foo", "my own", "ctf/tilt_foo", "alignments2D/pose"))
    new = _retyped(table, _types(table) | {name: np.dtype("f4")})
    new[name] = np.nan
    return Change(_dump(new), f"field {name} added")


@mutation("cs", "harmless", needs_free_order=True)
def rows_of_a_cs_in_another_order(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if (table := _load(content)) is None:
        return None
    return Change(_dump(table[chance.sample(range(len(table)), len(table))]), "rows in another order")


@mutation("cs", "broken")
def needed_field_taken_out(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    name = chance.choice(_NEEDED)
    if (table := _load(content)) is None or name not in _types(table):
        return None
    types = {key: kind for key, kind in _types(table).items() if key != name}
    return Change(_dump(_retyped(table, types)), f"field {name} taken out", _subjects(name))


@mutation("cs", "broken")
def value_that_is_impossible(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    name = chance.choice(sorted(_IMPOSSIBLE))
    if (table := _load(content)) is None or name not in _types(table):
        return None
    table = table.copy()
    is_real = table[name].dtype.kind == "f"
    values = (*_IMPOSSIBLE[name], np.nan, np.inf) if is_real else _IMPOSSIBLE[name]
    value = chance.choice(values)
    rows = slice(None) if chance.random() < 0.5 else chance.randrange(len(table))
    table[name][rows] = np.asarray(value).astype(table[name].dtype)
    return Change(_dump(table), f"{name} is {value} in {rows}", _subjects(name))


@mutation("cs", "broken")
def image_of_a_cs_that_is_not_there(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if (table := _load(content)) is None or "blob/path" not in _types(table):
        return None
    new = _retyped(table, _types(table) | {"blob/path": np.dtype("S60")})
    path = chance.choice((b"nowhere.mrcs", b"", b">", b"/", b"..", b"\xff\xfe", b"a@b", b"particles.cs"))
    new["blob/path"][chance.choice((slice(None), 3))] = path
    return Change(_dump(new), f"path {path!r}", (path.decode("latin-1") or "blob/path", "blob/path", "rlnImageName"))


@mutation("cs", "broken", only=("reconstruct",))
def rows_twice(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if (table := _load(content)) is None:
        return None
    words = ("same image", "twice", "several rows", "repeated", "duplicate", "more than one")
    return Change(_dump(np.concatenate([table, table[: chance.choice((1, len(table)))]])), "rows twice", words)


@mutation("cs", "any")
def field_of_another_shape(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if (table := _load(content)) is None:
        return None
    name = chance.choice(list(_types(table)))
    types_of_values = ("O", "S8", "f4", "(3,)f4", "(3,3)f4", "c8", "M8[s]", "?", "(0,)f4", "V4")
    kind = np.dtype(chance.choice(types_of_values))
    types = _types(table)
    new = np.zeros(len(table), [(key, kind if key == name else types[key]) for key in types])
    for key in types:
        if key != name:
            new[key] = table[key]
    return Change(_dump(new), f"{name} of type {kind}", _subjects(name))


@mutation("cs", "any")
def another_array(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if (table := _load(content)) is None:
        return None
    parts = (table[:0], table[:1], table[:3], table[0], table[:2].reshape(2, -1))
    other = chance.choice((*parts, np.zeros(3), np.array("text"), np.array([{"a": 1}], object)))
    return Change(_dump(other), f"an array of shape {other.shape}", ("particles", "images"))
