"""``cryoeq help``: the texts of the README files, complete, and what no topic is."""

import re

import pytest

from cryoeq.cli.help_topics import TOPICS, topic_text
from cryoeq.cli.main import run
from cryoeq.config.loading import packaged_file


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run(["help", *words]) == 0
    return capsys.readouterr().out


def test_every_topic_is_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    listed = shown(capsys)
    for name, topic in TOPICS.items():
        assert re.search(rf"^  {name} +{re.escape(topic.summary)}$", listed, re.M)
        text = shown(capsys, name)
        assert text == topic_text(name)
        assert len(text.split()) > 20, name
        assert "](" not in text, name


def test_a_page_has_all_the_words_of_its_file() -> None:
    for name, topic in TOPICS.items():
        if topic.heading or topic.source.endswith(".py"):
            continue
        source = packaged_file(topic.source).read_text(encoding="utf-8")
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", source)
        assert plain.split() == topic_text(name).split(), name


def test_conventions_come_without_the_tests_that_pin_them() -> None:
    text = topic_text("conventions")
    for word in ("Axes.", "Centre.", "Rotation.", "Shift.", "CTF.", "Hand.", "Shells.", "SNR.", "Units."):
        assert f"\n{word} " in f"\n{text}", word
    assert "test_" not in text
    assert text.startswith("Axes.")


def test_exit_codes_are_one_table() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \| (.+) \|$", topic_text("exit-codes"), re.M)
    assert [code for code, _ in rows] == ["0", "1", "2", "3", "4", "130, 143", "141"]
    assert topic_text("exit-codes").count("\n#") == 0


@pytest.mark.parametrize("command", ["reconstruct", "lattice", "help"])
def test_the_page_of_a_command_is_its_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert run([command, "--help"]) == 0
    expected = capsys.readouterr().out
    assert shown(capsys, command) == expected


def test_what_is_no_topic_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["help", "conventoins"]) == 2
    assert "did you mean 'conventions'?" in capsys.readouterr().err
    assert run(["help", "recnstruct"]) == 2
    assert "did you mean 'reconstruct'?" in capsys.readouterr().err
