"""Run a stage's command and append its wall time, CPU time and peak to a log: what a project has as ``effimini``.

Input: the command's arguments; REHEARSAL_COMMAND, the real program; REHEARSAL_LOG. Output: a JSON line. Guarantees: the
CPU time is that of the command and of all processes that it started, those included that outlive it for a moment
(Dask's workers and their server): this process adopts and awaits them. It imports only the standard library.
"""

import ctypes
import json
import os
import resource
import sys
import time

PR_SET_CHILD_SUBREAPER = 36
PATIENCE = 10.0  # seconds for processes that outlive the command


def main() -> int:
    """Run the command, log its figures and return its exit status."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    begin = time.time()
    child = os.posix_spawn(os.environ["REHEARSAL_COMMAND"], ["effimini", *sys.argv[1:]], os.environ)
    _, status = os.waitpid(child, 0)
    end = time.time()
    while time.time() < end + PATIENCE:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.02)
        except ChildProcessError:
            break
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    line = {
        "stage": stage_of(sys.argv[1:]),
        "arguments": sys.argv[1:],
        "begin": begin,
        "wall": end - begin,
        "cpu": used.ru_utime + used.ru_stime,
        "status": os.waitstatus_to_exitcode(status),
    }
    with open(os.environ["REHEARSAL_LOG"], "a") as log:  # noqa: PTH123 -- pathlib takes longer to import than all else
        log.write(json.dumps(line) + "\n")
    return int(line["status"]) if line["status"] >= 0 else 1


def stage_of(arguments: list[str]) -> str:
    """Return the stage of a command's arguments."""
    return "_".join(arguments[:2]) if arguments[:1] == ["validate"] else arguments[0]


if __name__ == "__main__":
    sys.exit(main())
