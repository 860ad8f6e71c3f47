"""Changes of star files: of their layout, which means nothing, and of their values, which may mean anything."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from faults.fuzzing.cases import Change, Scenario, mutation
from faults.fuzzing.file_mutations import TOKENS, changed_lines

POSE = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst")
ANGLES = POSE[:3]
# Values that no microscope has, of columns that cryoeq reads.
IMPOSSIBLE = {
    "rlnVoltage": ("0", "-300", "300000", "3", "1e30"), "rlnSphericalAberration": ("-1", "2.7e6", "2700", "1e30"),
    "rlnAmplitudeContrast": ("-0.1", "10", "1.5", "1e10"), "rlnImagePixelSize": ("0", "-5", "1e9", "1e-9", "5e-10"),
    "rlnDetectorPixelSize": ("0", "-5"), "rlnMagnification": ("0", "-1"), "rlnImageSize": ("0", "-24", "48", "1e9"),
    "rlnDefocusU": ("1.5", "1e30", "1e9"), "rlnDefocusV": ("1.5", "1e30", "1e9"), "rlnRandomSubset": ("0", "3", "1.5"),
    "rlnOpticsGroup": ("0", "99", "1.5", "-1"), "rlnImageDimensionality": ("3",), "rlnOriginXAngst": ("1e9", "5000"),
    "rlnOriginYAngst": ("-1e9", "1e30"), "rlnOriginX": ("1e6",), "rlnAngleRot": ("1e300",), "rlnAngleTilt": ("1e39",),
    "rlnCtfDataAreCtfPremultiplied": ("7",), "rlnPhaseShift": ("1e30",), "rlnCtfBfactor": ("-1e9", "1e30"),
    "rlnCtfScalefactor": ("1e30", "-1e30", "0"),
}  # fmt: skip
NO_NUMBERS = ("nan", "inf", "-inf", "None", "", "abc", "1,5", "1e999", "<NA>", "0x1F", "--", "12;3", "1_000")
_NEEDED = (*ANGLES, "rlnDefocusU", "rlnDefocusV", "rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast",
           "rlnImagePixelSize", "rlnImageName", "rlnDefocusAngle", "rlnOpticsGroup")  # fmt: skip
_TEXT = ("rlnImageName", "rlnMicrographName", "rlnOpticsGroupName")


@dataclass
class Block:
    """A table of a star file."""

    name: str
    labels: list[str]
    rows: list[list[str]]

    def column(self, label: str) -> list[str]:
        at = self.labels.index(label)
        return [row[at] for row in self.rows]

    def set(self, label: str, values: Sequence[str]) -> None:
        if label not in self.labels:
            self.labels.append(label)
            for row in self.rows:
                row.append("")
        at = self.labels.index(label)
        for row, value in zip(self.rows, values, strict=True):
            row[at] = value


@dataclass
class Style:
    """How a star file is written."""

    between: str = "\t"
    after_label: str = " #{}"
    before: dict[str, str] = field(default_factory=dict)
    heading: str = ""


def parse(content: bytes) -> list[Block] | None:
    """The tables of a plain star file; None where it is no longer plain."""
    blocks: list[Block] = []
    for line in content.decode("latin-1").splitlines():
        words = line.split()
        if not words or words[0] in {"loop_", "#"}:
            continue
        if line.startswith("data_"):
            blocks.append(Block(line[5:], [], []))
        elif blocks and line.startswith("_"):
            blocks[-1].labels.append(words[0][1:])
        elif blocks:
            blocks[-1].rows.append(words)
    is_plain = bool(blocks) and all(
        block.labels and block.rows and all(len(row) == len(block.labels) for row in block.rows) for block in blocks
    )
    return blocks if is_plain else None


def render(blocks: Sequence[Block], style: Style | None = None) -> bytes:
    """The text of some tables."""
    style = style or Style()
    parts = []
    for block in blocks:
        parts.append(f"\n# version 30001\n\ndata_{block.name}{style.heading}\n\nloop_\n")
        parts.extend(f"_{label}{style.after_label.format(n)}\n" for n, label in enumerate(block.labels, 1))
        parts.extend(style.between.join(value or '""' for value in row) + "\n" for row in block.rows)
        parts.append("\n")
    return "".join(parts).encode("latin-1")


def _particles(blocks: Sequence[Block]) -> Block:
    return next((block for block in blocks if block.name == "particles"), blocks[-1])


def _with(blocks: list[Block] | None, label: str) -> Block | None:
    return next((block for block in blocks or () if label in block.labels and block.rows), None)


@mutation("star", "harmless")
def layout(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    blocks = parse(content)
    if blocks is None:
        return None
    between = chance.choice(("\t", " ", "   ", " \t "))
    after = chance.choice((" #{}", "", "   # {}", "\t#{}", " #{} of a column"))
    heading = chance.choice(("", " ", " # the table"))
    text = render(blocks, Style(between, after, {}, heading))
    ends = chance.choice((b"\n", b"\r\n", b" \n", b"\n"))
    text = text.replace(b"\n", ends)
    front = chance.choice((b"", b"\xef\xbb\xbf", b"# made by hand\n", b"\n\n\n"))
    return Change(front + text.rstrip() + chance.choice((b"", ends, ends * 5)), f"{between!r}, {after!r}, {ends!r}")


@mutation("star", "harmless")
def columns_in_another_order(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    blocks = parse(content)
    for block in blocks or ():
        order = chance.sample(range(len(block.labels)), len(block.labels))
        block.labels = [block.labels[i] for i in order]
        block.rows = [[row[i] for i in order] for row in block.rows]
    return None if blocks is None else Change(render(blocks), "columns in another order")


@mutation("star", "harmless", needs_free_order=True)
def rows_in_another_order(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if (blocks := parse(content)) is None:
        return None
    chance.shuffle(_particles(blocks).rows)
    return Change(render(blocks), "rows in another order")


@mutation("star", "harmless")
def tables_added_or_moved(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if (blocks := parse(content)) is None:
        return None
    new = Block(f"general{len(blocks)}", ["rlnFinalResolution"], [["7.5"]])
    blocks = chance.choice(([new, *blocks], [*blocks, new], blocks[::-1]))
    return Change(render(blocks), f"tables {[block.name for block in blocks]}")


@mutation("star", "harmless")
def column_that_nobody_knows(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if (blocks := parse(content)) is None:
        return None
    block = _particles(blocks)
    block.set(chance.choice(("myOwn", "rlnUnheardOf", "wrpFoo")), [chance.choice(NO_NUMBERS[:8]) for _ in block.rows])
    return Change(render(blocks), "an unknown column")


@mutation("star", "harmless")
def numbers_written_otherwise(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    blocks = parse(content)
    for block in blocks or ():
        for label in block.labels:
            if label not in _TEXT and chance.random() < 0.5:
                form = chance.choice((".9e", "+.6f", "012.6f", ".9E")) if "." in block.column(label)[0] else "03d"
                block.set(label, [_formatted(value, form) for value in block.column(label)])
    return None if blocks is None else Change(render(blocks), "numbers in another notation")


def _formatted(value: str, form: str) -> str:
    try:
        return format(int(value) if form.endswith("d") else float(value), form)
    except ValueError:
        return value


@mutation("star", "harmless", needs_free_order=True)
def angles_of_the_same_rotation(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    blocks = parse(content)
    if (block := _with(blocks, "rlnAnglePsi")) is None:
        return None
    rot, tilt, psi = ([float(value) for value in block.column(label)] for label in ANGLES)
    if chance.random() < 0.5:
        rot, tilt, psi = [a + 180 for a in rot], [-b for b in tilt], [c - 180 for c in psi]
    turns = 360 * chance.choice((-1, 0, 1, 2))
    for label, values in zip(ANGLES, ([a + turns for a in rot], tilt, [c - turns for c in psi]), strict=True):
        block.set(label, [f"{value:.6f}" for value in values])
    return Change(render(blocks or []), "other Euler angles of the same rotations")


@mutation("star", "harmless", needs_free_order=True)
def axes_of_the_defocus_exchanged(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    blocks = parse(content)
    if (block := _with(blocks, "rlnDefocusAngle")) is None:
        return None
    first, second = block.column("rlnDefocusU"), block.column("rlnDefocusV")
    block.set("rlnDefocusU", second)
    block.set("rlnDefocusV", first)
    block.set("rlnDefocusAngle", [f"{float(value) + 90:.6f}" for value in block.column("rlnDefocusAngle")])
    return Change(render(blocks or []), "U and V of the defocus exchanged, the angle turned by 90°")


@mutation("star", "harmless")
def optics_groups_renumbered(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    blocks = parse(content)
    if not blocks or _with(blocks, "rlnOpticsGroup") is None or len(blocks) < 2:
        return None
    shift = chance.choice((1, 41, 1000))
    for block in blocks:
        if "rlnOpticsGroup" in block.labels:
            block.set("rlnOpticsGroup", [str(int(value) + shift) for value in block.column("rlnOpticsGroup")])
    return Change(render(blocks), f"numbers of the optics groups plus {shift}")


@mutation("star", "harmless")
def optics_group_that_nobody_uses(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    blocks = parse(content)
    block = next((block for block in blocks or () if block.name == "optics" and "rlnOpticsGroup" in block.labels), None)
    if block is None:
        return None
    row = list(block.rows[0])
    row[block.labels.index("rlnOpticsGroup")] = "77"
    for label in chance.sample(block.labels, 2):
        if label not in {"rlnOpticsGroup", "rlnOpticsGroupName"}:
            row[block.labels.index(label)] = chance.choice(("None", "0", "1024", "-1", "nan"))
    block.rows.insert(chance.randrange(len(block.rows) + 1), row)
    return Change(render(blocks or []), f"unused optics group {row}")


@mutation("star", "harmless")
def images_named_otherwise(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    blocks = parse(content)
    if (block := _with(blocks, "rlnImageName")) is None:
        return None
    names = [name.partition("@") for name in block.column("rlnImageName")]
    way = chance.choice(("dots", "few zeros", "many zeros", "both ways"))
    if way == "dots":
        named = [f"{number}@./{path}" for number, _, path in names]
    elif way == "both ways":
        named = [f"{number}@{'./' * (i % 2)}{path}" for i, (number, _, path) in enumerate(names)]
    else:
        named = [f"{int(number):{'d' if way == 'few zeros' else '012d'}}@{path}" for number, _, path in names]
    block.set("rlnImageName", named)
    return Change(render(blocks or []), f"names of the images: {way}")


@mutation("star", "harmless")
def column_without_effect_taken_out(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    blocks = parse(content)
    label = chance.choice(("rlnMicrographName", "rlnMicrographOriginalPixelSize", "rlnOpticsGroupName"))
    block = _with(blocks, label)
    return None if block is None else _without(blocks or [], block, label)


@mutation("star", "broken")
def needed_column_taken_out(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    blocks = parse(content)
    label = chance.choice(_NEEDED)
    block = _with(blocks, label)
    return None if block is None else _without(blocks or [], block, label)


def _without(blocks: list[Block], block: Block, label: str) -> Change:
    at = block.labels.index(label)
    block.labels = block.labels[:at] + block.labels[at + 1 :]
    block.rows = [row[:at] + row[at + 1 :] for row in block.rows]
    return Change(render(blocks), f"column {label} taken out", (label,))


@mutation("star", "broken")
def table_taken_out(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    blocks = parse(content)
    if not blocks or len(blocks) < 2:
        return None
    gone = blocks.pop(chance.randrange(len(blocks)))
    return Change(render(blocks), f"table {gone.name} taken out", (gone.name, "rlnOpticsGroup", "pixel size"))


@mutation("star", "broken")
def value_that_is_no_number(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    return _with_value(chance, content, NO_NUMBERS)


@mutation("star", "broken")
def impossible_value(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    return _with_value(chance, content, None)


def _with_value(chance: random.Random, content: bytes, values: Sequence[str] | None) -> Change | None:
    """One value of a column, or all of them, replaced by one of these; by an impossible one where there are none."""
    blocks = parse(content)
    label = chance.choice(sorted(IMPOSSIBLE))
    if (block := _with(blocks, label)) is None:
        return None
    value = chance.choice(values or IMPOSSIBLE[label])
    row = chance.randrange(len(block.rows))
    is_all = chance.random() < 0.4
    block.set(label, [value if is_all or i == row else old for i, old in enumerate(block.column(label))])
    return Change(render(blocks or []), f"{label} {value!r} in {'all rows' if is_all else f'row {row + 1}'}", (label,))


@mutation("star", "broken")
def row_of_another_length(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if (blocks := parse(content)) is None:
        return None
    rows = _particles(blocks).rows
    row = chance.randrange(len(rows))
    rows[row] = chance.choice((rows[row][:-1], [*rows[row], "9"], rows[row][:1]))
    return Change(render(blocks), f"row {row + 1} has {len(rows[row])} values", (f"row {row + 1}",))


@mutation("star", "broken")
def label_twice(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if (blocks := parse(content)) is None:
        return None
    block = chance.choice(blocks)
    label, other = chance.choice(block.labels), chance.choice(block.labels)
    block.labels = [label if each == other else each for each in block.labels]
    return Change(render(blocks), f"{other} is called {label}", (label, other))


@mutation("star", "broken")
def optics_group_twice(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    blocks = parse(content)
    block = next((block for block in blocks or () if block.name == "optics" and "rlnVoltage" in block.labels), None)
    if block is None:
        return None
    row = list(block.rows[0])
    row[block.labels.index("rlnVoltage")] = "200.000000"
    block.rows.insert(chance.choice((0, 1)), row)
    return Change(render(blocks or []), "an optics group twice", ("optics group", "rlnOpticsGroup"))


@mutation("star", "broken")
def image_that_is_not_there(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    blocks = parse(content)
    if (block := _with(blocks, "rlnImageName")) is None:
        return None
    names = block.column("rlnImageName")
    row = chance.randrange(len(names))
    number, _, path = names[row].partition("@")
    names[row] = chance.choice((
        f"{number}@nowhere.mrcs", f"000000@{path}", f"999999@{path}", f"-00001@{path}", f"1.5@{path}", f"@{path}",
        f"99999999999999999999@{path}", path, number, f"{number}@", f"1@2@{path}", f"a@{path}", f"{number}@{path}/",
        "1",
        f"{number}@{path}.gz", f"1e0@{path}", f"{number}@/dev/null", f"{number}@/root/x/{path}",
        "0x1@", ".",
    ))  # fmt: skip
    block.set("rlnImageName", names)
    return Change(
        render(blocks or []),
        f"row {row + 1} is {names[row]}",
        (f"row {row + 1}:", names[row], names[row].rpartition("@")[2]),
    )


@mutation("star", "broken", only=("reconstruct",))
def image_in_several_rows(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if (blocks := parse(content)) is None or "rlnImageName" not in _particles(blocks).labels:
        return None
    rows = _particles(blocks).rows
    count = chance.choice((1, 5, len(rows)))
    rows.extend(list(row) for row in chance.sample(rows, min(count, len(rows))))
    words = ("same image", "twice", "several rows", "repeated", "duplicate", "more than one")
    return Change(render(blocks), f"{count} images in two rows", words)


@mutation("star", "broken", only=("reconstruct",))
def all_in_one_half_set(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    blocks = parse(content)
    if (block := _with(blocks, "rlnRandomSubset")) is None:
        return None
    block.set("rlnRandomSubset", [chance.choice("12")] * len(block.rows))
    return Change(render(blocks or []), "all in one half set", ("rlnRandomSubset", "half set"))


@mutation("star", "any")
def few_rows(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if (blocks := parse(content)) is None:
        return None
    block = _particles(blocks)
    block.rows = block.rows[: chance.choice((0, 1, 2, 3, 10))]
    return Change(render(blocks), f"{len(block.rows)} rows", ("particles", "images"))


@mutation("star", "any")
def any_value(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if (blocks := parse(content)) is None:
        return None
    block = chance.choice(blocks)
    row, at = chance.choice(block.rows), chance.randrange(len(block.labels))
    row[at] = chance.choice(TOKENS).decode("latin-1").strip() or "x"
    return Change(render(blocks), f"{block.labels[at]}: {row[at]!r}", (block.labels[at],))


@mutation("star", "any")
def encoding(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    name = chance.choice(("utf-16", "utf-16-le", "utf-32", "utf-7", "cp037"))
    return Change(content.decode("latin-1").encode(name), f"in {name}")


@mutation("star", "any")
def lines_of_a_star_changed(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    return Change(*changed_lines(chance, content))
