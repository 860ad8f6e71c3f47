"""``cryoeq infer`` never writes over the particles that it reads, nor over its own poses."""

from pathlib import Path

import pytest

from cryoeq.cli.main import run


@pytest.mark.parametrize("given", ["p.cs", "p.star"])
def test_particles_of_the_same_name_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str], given: str) -> None:
    particles = tmp_path / given
    particles.write_bytes(b"the only copy")
    assert run(["infer", str(tmp_path), str(particles), "-o", str(tmp_path / "p.star"), "--device", "cpu"]) == 2
    assert "would be written" in " ".join(capsys.readouterr().err.split())
    assert particles.read_bytes() == b"the only copy"
    assert [path.name for path in tmp_path.iterdir()] == [given]


@pytest.mark.parametrize("name", ["poses.cs", "poses.json", "poses.png"])
def test_poses_do_not_get_the_name_of_what_is_beside_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "p.star").write_text("data_\n")
    command = ["infer", str(tmp_path), str(tmp_path / "p.star"), "-o", str(tmp_path / name), "--device", "cpu"]
    assert run(command) == 2
    assert "Name it poses.star" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["job.json", "job.png", "job.cs"])
def test_files_of_others_are_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (tmp_path / "p.star").write_text("data_\n")
    (tmp_path / name).write_text('{"status": "done"}')
    command = ["infer", str(tmp_path), str(tmp_path / "p.star"), "-o", str(tmp_path / "job.star"), "--device", "cpu"]
    assert run(command) == 2
    assert "would be replaced" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / name).read_text() == '{"status": "done"}'
    (tmp_path / "job.json").write_text('{"share_searched_again": 0.1}')  # an earlier result: what is wrong is the input
    assert run(command) != 0
    assert "would be replaced" not in " ".join(capsys.readouterr().err.split())
