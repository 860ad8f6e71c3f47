"""Layers of settings, and what is said when one of them is wrong."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from pydantic import Field, ValidationError

from cryoeq.config import loading
from cryoeq.config.frozen import FrozenConfig
from cryoeq.config.loading import load_config, packaged_file
from cryoeq.errors import ConfigError


class Encoder(FrozenConfig):
    group: str = "d4"
    channels: int = Field(default=8, ge=1)


class Voxels(FrozenConfig):
    kind: Literal["voxel"] = "voxel"
    padding: int = Field(default=2, ge=1)


class Implicit(FrozenConfig):
    kind: Literal["implicit"] = "implicit"
    width: int = Field(default=64, ge=1)


class Example(FrozenConfig):
    options: ClassVar[Mapping[str, str]] = {"encoder.channels": "-c/--width"}
    usage: ClassVar[str] = "example PARTICLES"

    particles: Path
    seed: int = 0
    rate: float = Field(default=1e-3, gt=0)
    encoder: Encoder = Encoder()
    decoder: Voxels | Implicit = Field(default=Voxels(), discriminator="kind")


def test_the_later_layer_wins(tmp_path: Path) -> None:
    record, file = tmp_path / "job.json", tmp_path / "mine.yaml"
    record.write_text('{"settings": {"particles": "a.star", "seed": 1, "encoder": {"group": "c1", "channels": 1}}}')
    file.write_text("seed: 2\nencoder:\n  channels: 2\n")
    expected = Example(particles=Path("a.star"), seed=1, encoder=Encoder(group="c1", channels=1))
    assert load_config(Example, record=record) == expected
    assert load_config(Example, record=record, file=file).encoder == Encoder(group="c1", channels=2)
    overrides = ["seed=3", "encoder.channels=3"]
    config = load_config(Example, record=record, file=file, overrides=overrides, explicit={"seed": 4, "rate": None})
    assert (config.seed, config.encoder, config.rate) == (4, Encoder(group="c1", channels=3), 1e-3)
    assert load_config(Example, record=record, file=file, overrides=overrides).seed == 3


@pytest.mark.parametrize("content", ["{", "[]", '{"settings": 3}', '{"program": "another"}', None])
def test_a_record_of_another_program_sets_nothing(tmp_path: Path, content: str | None) -> None:
    record = tmp_path / "job.json"
    if content is not None:
        record.write_text(content)
    assert load_config(Example, record=record, overrides=["particles=a.star"]) == Example(particles=Path("a.star"))


def test_a_resolved_configuration_repeats_itself(tmp_path: Path) -> None:
    first = load_config(Example, overrides=["particles=a.star", "rate=2e-3", "decoder={kind: implicit, width: 9}"])
    file = tmp_path / "config.yaml"
    file.write_text(loading.yaml.safe_dump(first.model_dump(mode="json")))
    assert load_config(Example, file=file) == first


def test_settings_cannot_be_changed() -> None:
    config = Example(particles=Path("a.star"))
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["encoder.gruop=so2"],
            r"--set: encoder\.gruop is not a setting.*group, .*channels.*Did you mean encoder\.group",
        ),
        (["group=so2"], r"group is not a setting.*Did you mean encoder\.group\?"),
        (["encoder.channels=0"], r"encoder\.channels is 0\. Expected a number greater than or equal to 1"),
        (["encoder.channels=many"], r"encoder\.channels is 'many'.*whole number"),
        (["encoder=d4"], r"encoder is 'd4'"),
        (["rate=.nan"], r"rate is nan"),
        (["decoder.kind=voxel", "decoder.padding=0"], r"--set: decoder\.padding is 0"),
        (["decoder.kind=voxel", "decoder.width=3"], r"decoder\.width is not a setting"),
        (["decoder.kind=cube"], r"decoder is .*'voxel', 'implicit'"),
        (["seed"], r"--set seed\. cryoeq expects --set key=value"),
        (["seed=[1"], r"--set seed=\[1: the value is not YAML"),
    ],
)
def test_what_is_wrong_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(Example, overrides=["particles=a.star", *overrides])


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(ConfigError, match=r"No particles given\. Usage: example PARTICLES\."):
        load_config(Example)


def test_a_name_that_is_misspelt_is_not_told_as_missing(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("pticles: a.star\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: pticles is not a setting.*Did you mean particles"):
        load_config(Example, file=file)


def test_an_empty_path_is_not_the_working_directory() -> None:
    with pytest.raises(ConfigError, match="particles is empty"):
        load_config(Example, overrides=["particles=''"])


def test_the_layer_that_is_wrong_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("particles: a.star\nseed: x\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: seed is 'x'"):
        load_config(Example, file=file)
    with pytest.raises(ConfigError, match=r"^--seed is 'y'\. Expected"):
        load_config(Example, file=file, explicit={"seed": "y"})
    with pytest.raises(ConfigError, match=r"^-c/--width is 0\. Expected"):
        load_config(Example, explicit={"particles": "a.star", "encoder.channels": 0})


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"a: [1", "is not YAML"), (b"- 1\n", "holds list"), (b"\xff\xfe\x00a", "is not YAML"), (None, "cannot be read")],
)
def test_a_bad_file_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "mine.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"mine\.yaml.*{message}"):
        load_config(Example, file=file)


def test_a_file_that_is_not_packed() -> None:
    with pytest.raises(ConfigError, match=r"no/such\.file is missing from this installation"):
        packaged_file("no/such.file")


def test_a_value_where_a_section_belongs_is_not_lost_under_an_option() -> None:
    with pytest.raises(ConfigError, match="encoder is 5"):
        load_config(Example, overrides=["particles=a.star", "encoder=5"], explicit={"encoder.channels": 3})


class Compared(FrozenConfig):
    first: Path
    encoder: Encoder = Encoder()
    output: Path = Path("results")
    json_file: Path | None = None


def test_no_output_takes_the_place_of_an_input(tmp_path: Path) -> None:
    (tmp_path / "map.mrc").touch()
    (tmp_path / "link.json").symlink_to(tmp_path / "map.mrc")
    load_config(Compared, explicit={"first": tmp_path / "map.mrc", "json_file": tmp_path / "figures.json"})
    load_config(Compared, explicit={"first": tmp_path, "output": tmp_path})  # into the folder of the input
    for name in ("map.mrc", "link.json", "sub/../map.mrc"):
        (tmp_path / "sub").mkdir(exist_ok=True)
        with pytest.raises(ConfigError, match=f"{name} would be written over"):
            load_config(Compared, explicit={"first": tmp_path / "map.mrc", "json_file": tmp_path / name})


def test_keys_of_a_section_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("first: a\nencoder:\n  true: 1\n")
    with pytest.raises(ConfigError, match=r"settings\.yaml: encoder\.True is not a setting"):
        load_config(Compared, file=tmp_path / "settings.yaml")
