"""The examples for SLURM: they parse, ask for what SLURM knows, and call cryoeq as it wants to be called.

``sbatch``, ``srun`` and ``scontrol`` are stood in for by scripts that note how they were called.
"""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "configs" / "cluster"
SCRIPTS = sorted(FOLDER.glob("*.sbatch"))
KNOWN = {
    "--job-name", "--nodes", "--ntasks", "--ntasks-per-node", "--cpus-per-task", "--gres", "--mem", "--time",
    "--output", "--array", "--requeue", "--open-mode", "--signal",
}  # fmt: skip
NOTE = 'printf "%s " "$(basename "$0")" "$@" >> "$NOTES"; echo >> "$NOTES"\n'
# As sbatch does: checks the options in the script, sets the job's variables, and runs the script with its arguments.
SBATCH = """
script=$1
grep '^#SBATCH' "$script" | while read -r _ option rest; do
    [ -z "$rest" ] || { echo "two options in one line: $option $rest"; exit 1; }
done
export SLURM_JOB_ID=7 SLURM_ARRAY_TASK_ID=3 SLURM_CPUS_PER_TASK=8 SLURM_JOB_NUM_NODES=2 SLURM_JOB_NODELIST=n[1-2]
exec bash "$@"
"""
FAKES = {
    "sbatch": SBATCH,
    "srun": 'exec "$@"\n',
    "scontrol": NOTE + 'if [ "$1" = show ]; then echo n1; echo n2; fi\n',
    "torchrun": NOTE,
    "cryoeq": NOTE + 'exit "${CODE:-0}"\n',
}
WAITS = """
trap 'echo asked >> "$NOTES"; exit 143' USR1
echo ready >> "$NOTES"
while :; do sleep 0.02; done
"""


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine with SLURM."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in FAKES.items():
        (tools / name).write_text("#!/bin/bash\n" + text)
        (tools / name).chmod(0o755)
    return os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}", "NOTES": str(tmp_path / "notes"), "TMPDIR": "/scratch/job",
    }  # fmt: skip


def submit(name: str, tmp_path: Path, cluster: dict[str, str], *options: str) -> tuple[int, list[str]]:
    command = ["sbatch", str(FOLDER / name), "my particles.star", str(tmp_path / "map"), *options]
    ended = subprocess.run(command, env=cluster, capture_output=True, text=True, check=False, timeout=60)
    return ended.returncode, (tmp_path / "notes").read_text().splitlines()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_sound(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)
    lines = [line.split() for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    assert all(len(line) == 2 for line in lines)
    assert {line[1].partition("=")[0] for line in lines} <= KNOWN


def test_one_node(tmp_path: Path, cluster: dict[str, str]) -> None:
    code, notes = submit("single_node.sbatch", tmp_path, cluster, "--sym", "C4")
    assert code == 0
    options = f"-o {tmp_path}/map --resume --threads 8 --scratch-dir /scratch/job --sym C4"
    assert notes == [f"cryoeq reconstruct my particles.star {options} "]
    assert submit("single_node.sbatch", tmp_path, cluster | {"CODE": "4"})[0] == 4


def test_several_nodes(tmp_path: Path, cluster: dict[str, str]) -> None:
    code, notes = submit("multi_node.sbatch", tmp_path, cluster | {"SLURM_GPUS_ON_NODE": "8"}, "--sym", "C4")
    assert code == 0
    assert notes[0] == "scontrol show hostnames n[1-2] "
    assert notes[1].startswith("torchrun --nnodes=2 --nproc-per-node=8 --max-restarts=2 --rdzv-id=7 ")
    assert "--rdzv-endpoint=n1:29500 -m cryoeq reconstruct my particles.star" in notes[1]
    assert notes[1].endswith(f"-o {tmp_path}/map --resume --scratch-dir /scratch/job --sym C4 ")


def test_an_array_of_seeds(tmp_path: Path, cluster: dict[str, str]) -> None:
    code, notes = submit("seeds.sbatch", tmp_path, cluster)
    assert code == 0
    assert f"-o {tmp_path}/map/seed_3 --seed 3 " in notes[0]
    assert (tmp_path / "map").is_dir()


@pytest.mark.parametrize("code", [0, 3])
def test_a_job_that_ends_is_not_requeued(tmp_path: Path, cluster: dict[str, str], code: int) -> None:
    ended, notes = submit("requeue.sbatch", tmp_path, cluster | {"CODE": str(code)})
    assert (ended, len(notes)) == (code, 1)


def test_a_job_that_is_preempted_is_requeued(tmp_path: Path, cluster: dict[str, str]) -> None:
    waits = tmp_path / "bin" / "cryoeq"
    waits.write_text("#!/bin/bash\n" + WAITS)
    notes = tmp_path / "notes"
    command = ["sbatch", str(FOLDER / "requeue.sbatch"), "particles.star", str(tmp_path / "map")]
    with subprocess.Popen(command, env=cluster) as job:
        end = time.monotonic() + 60
        while not (notes.exists() and "ready" in notes.read_text()) and time.monotonic() < end:
            time.sleep(0.01)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(60) == 143
    assert notes.read_text().splitlines() == ["ready", "asked", "scontrol requeue 7 "]


def test_the_scripts_use_options_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    from cryoeq.cli.main import run

    assert run(["reconstruct", "--help"]) == 0
    known = capsys.readouterr().out
    for option in ("--resume", "--threads", "--scratch-dir", "--seed", "-o"):
        assert option in known


def test_the_definition_for_apptainer() -> None:
    text = (FOLDER / "cryoeq.def").read_text()
    assert text.count("Bootstrap: docker") == 2
    for section in ("%files", "%post", "%environment", "%runscript", "%test", "%labels"):
        assert f"\n{section}" in text
    for name in text.split("%files")[1].split("%post")[0].split():
        assert name.startswith("/opt/") or name == "dist/cryoeq-*.whl" or (FOLDER.parents[1] / name).is_file()
