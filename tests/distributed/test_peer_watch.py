"""A process that dies or fails ends the others within seconds, also one that waits and sees nothing of it."""

import os
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(120)
# The first process sleeps, as one would that waits for a GPU; what another does stands in {fate}.
CHILD = """
import os, sys, time, torch
os.environ.update({environment!r})
sys.stderr = sys.stdout = open({said!r}, "a", buffering=1)
from cryoeq.errors import Terminated
from cryoeq.runtime import peer_watch
from cryoeq.runtime.distributed import process_group, world_size
peer_watch._GRACE_S = 0.5
rank = int(os.environ["RANK"])
with process_group(torch.device("cpu")), peer_watch.watch_peers():
    open({said!r} + ".begun", "w").close()
    if rank == 1:
        {fate}
    elif {seconds}:
        time.sleep({seconds})
    print("ended")
"""
FATES = {
    "is killed": ("time.sleep(600)", 600, [4, -signal.SIGKILL, 4]),
    "fails": ("raise RuntimeError('broken')", 600, [4, 1, 4]),
    "is stopped": ("raise Terminated('SIGTERM')", 3, [0, 1, 0]),  # the others are stopped too, in their own time
    "ends early": ("pass", 3, [0, 0, 0]),
}


@pytest.mark.parametrize("fate", FATES)
def test_one_of_three_processes(
    start_code: Callable[[str], ForkServerProcess], environments: Callable[[int], list[dict[str, str]]],
    codes_of: Callable[..., list[int]], tmp_path: Path, fate: str,
) -> None:  # fmt: skip
    what, seconds, expected = FATES[fate]
    said = [tmp_path / f"said_{rank}" for rank in range(3)]
    processes = [
        start_code(CHILD.format(environment=environment, said=str(path), fate=what, seconds=seconds))
        for environment, path in zip(environments(3), said, strict=True)
    ]
    began = [path.with_suffix(".begun") for path in said]
    while not all(path.exists() for path in began):
        time.sleep(0.02)
    if fate == "is killed":
        assert processes[1].pid is not None
        os.kill(processes[1].pid, signal.SIGKILL)
    began_s = time.monotonic()
    codes = codes_of(processes, 60)
    assert time.monotonic() - began_s < 60  # a few seconds where nothing else runs
    assert codes == expected
    texts = [path.read_text() for path in said]
    for rank in (0, 2):
        assert ("ended" in texts[rank]) == (expected[rank] == 0)
        assert ("lost touch with the others" in texts[rank]) == (expected[rank] == 4)
