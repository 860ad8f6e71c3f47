"""Changes that need no knowledge of a file: its bytes, its lines, or another file in its place."""

import bz2
import gzip
import random

from faults.fuzzing.cases import Change, Scenario, mutation

HTML = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>No such file</body></html>\n"
_ASKED_FOR = ("reconstruct", "fsc", "simulate", "lattice", "infer", "evaluate", "orientations")  # by name
TOKENS = (
    b"nan", b"inf", b"-inf", b"None", b"null", b"<NA>", b"1e400", b"-1", b"0", b"99999999999999999999", b"1,5", b"0x10",
    b"''", b'""', b'"', b"'", b"#", b"loop_", b"data_", b"_rln", b"@", b"000000@", b"..", b"/", b"~", b"\xff", b"\x00",
    b"\xc3\xbc", b"\t", b"\r", b"\n", b"1e-320", b"-0.0", b"True", b"1_000", b"\xd9\xa1", b"%s", b"{}", b"[]", b": :",
)  # fmt: skip


@mutation("file", "any")
def bytes_flipped(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if not content:
        return None
    changed, places = bytearray(content), []
    span = chance.choice((len(content), min(len(content), 1024)))
    for _ in range(chance.choice((1, 1, 2, 8, 64))):
        place = chance.randrange(span)
        changed[place] ^= 1 << chance.randrange(8)
        places.append(place)
    return Change(bytes(changed), f"bits flipped in bytes {places[:4]}")


@mutation("file", "any")
def bytes_taken_out(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    start = chance.randrange(max(len(content), 1))
    count = chance.choice((1, 2, 4, 100, 1024))
    return Change(content[:start] + content[start + count :], f"{count} bytes from {start} on are gone")


@mutation("file", "any")
def bytes_inserted(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    start = chance.randrange(len(content) + 1)
    new = chance.choice((*TOKENS, chance.randbytes(4), bytes(512)))
    return Change(content[:start] + new + content[start:], f"{new[:20]!r} inserted at {start}")


@mutation("file", "any")
def cut_short(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    size = chance.randrange(max(len(content), 1))
    return Change(content[:size], f"{size} of {len(content)} bytes are left")


@mutation("file", "any")
def part_overwritten(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    start = chance.randrange(max(len(content), 1))
    count = min(chance.choice((4, 64, 1024)), len(content) - start)
    new = chance.choice((bytes(count), b"\xff" * count, chance.randbytes(count)))
    return Change(content[:start] + new + content[start + count :], f"{count} bytes from {start} on overwritten")


@mutation("file", "broken")
def emptied(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    return Change(chance.choice((b"", b"\n", b" ", b"\x00")), "emptied", ("particles", "no "))


@mutation("file", "broken", only=_ASKED_FOR)
def gone(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    return Change(None, "does not exist")


@mutation("file", "broken")
def web_page_in_its_place(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    return Change(HTML, "is a web page")


@mutation("file", "broken")
def compressed(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    pack = chance.choice((lambda raw: gzip.compress(raw, mtime=0), bz2.compress))
    return Change(pack(content), "compressed under its old name")


@mutation("file", "any")
def another_file_in_its_place(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    name = chance.choice(sorted(scenario.files))
    return Change(scenario.files[name], f"is {name}", (name.rpartition("/")[2],))


def changed_lines(chance: random.Random, content: bytes) -> tuple[bytes, str]:
    """Lines lost, doubled or exchanged, or one token replaced."""
    lines = content.split(b"\n")
    here, there = chance.randrange(len(lines)), chance.randrange(len(lines))
    what = chance.choice(("lost", "doubled", "exchanged", "token", "joined"))
    if what == "lost":
        del lines[here]
    elif what == "doubled":
        lines.insert(there, lines[here])
    elif what == "exchanged":
        lines[here], lines[there] = lines[there], lines[here]
    elif what == "joined":
        lines[here : here + 2] = [b" ".join(lines[here : here + 2])]
    else:
        words = lines[here].split() or [b""]
        words[chance.randrange(len(words))] = chance.choice(TOKENS)
        lines[here] = b" ".join(words)
    return b"\n".join(lines), f"line {here + 1}: {what}"


@mutation("text", "any")
def lines_changed(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    return Change(*changed_lines(chance, content))


@mutation("text", "harmless")
def lines_of_windows(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    return Change(content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"), "ends of lines of Windows")
