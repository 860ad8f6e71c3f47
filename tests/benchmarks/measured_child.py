"""Run a command and write what it took: ``python measured_child.py RESULT TIME_LIMIT_S COMMAND...``.

A program of its own, and a small one: the peak memory of a process counts that of the process which started it.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path


def main() -> None:
    """Start the command, wait for it, kill it with its children at the time limit or when told to stop."""
    result, limit_s, *command = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    start = time.perf_counter()
    process = subprocess.Popen(command, start_new_session=True)
    timer = threading.Timer(float(limit_s), os.killpg, (process.pid, signal.SIGKILL))
    timer.daemon = True
    timer.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    finally:
        timer.cancel()
    wall_s = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    cost = {
        "wall_s": round(wall_s, 2),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_rss_mib": round(usage.ru_maxrss / 1024, 1),
        "exit_code": process.returncode,
        "timed_out": process.returncode == -signal.SIGKILL and wall_s >= float(limit_s),
    }
    Path(result).write_text(json.dumps(cost), encoding="utf-8")


if __name__ == "__main__":
    main()
