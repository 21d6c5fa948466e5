"""Run `effimini`, `dvc` and `stages` in forks of a process that has imported what they need: at once, not in seconds.

Input: a new folder. Output: scripts of these names in its ``bin``, to put first on the path. Guarantees: each command
has a process of its own, which is killed with its script, and so is what it started; signals to a script reach its
command. With ``WARM_FILE_LIMIT`` in its environment, `effimini` writes no file beyond so many bytes.
"""

import atexit
import importlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import psutil

NAMES = ("effimini", "dvc", "stages")
# what the commands import, at the start or later
IMPORTS = (
    *("dvc.cli", "dvc.dvcfile", "dvc.repo.checkout", "dvc.repo.experiments", "dvc.repo.reproduce", "dvc.repo.status"),
    *("dvc.stage.run", "dvc_data.index", "dulwich.repo", "networkx"),
    *("great_expectations", "datasets", "pyarrow.dataset"),
    *("effimini.__main__", "effimini.cli", "prep.catalogue.convert", "tests.state_machine.stages"),
)
SCRIPT = """#!{python} -SE
import json, os, signal, socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.connect({socket!r})
told = json.dumps([{name!r}, sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(sock, [len(told).to_bytes(4, "big")], [0, 1, 2])
sock.sendall(told)
pid = int.from_bytes(sock.recv(4), "big")
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: os.kill(pid, number))
status = sock.recv(4)
if not status:
    sys.exit(1)
code = os.waitstatus_to_exitcode(int.from_bytes(status, "big"))
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


class Warm:
    """The process whose forks run the commands; to be closed."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        path = folder / "socket"
        for name in NAMES:
            (self.bin / name).write_text(SCRIPT.format(python=sys.executable, socket=str(path), name=name))
            (self.bin / name).chmod(0o755)
        self._server = subprocess.Popen([sys.executable, "-m", "tests.warm", str(path)])
        while not path.exists():
            if self._server.poll() is not None:
                raise RuntimeError("the warm process ended")
            time.sleep(0.05)

    def commands(self) -> list[psutil.Process]:
        """Return what runs."""
        return psutil.Process(self._server.pid).children(recursive=True)

    def close(self) -> None:
        """End the process."""
        self._server.kill()
        self._server.wait()


def _serve(path: str) -> None:
    parent = os.getppid()
    for module in IMPORTS:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen()
    listener.settimeout(5)
    Path(f"{path}.new").rename(path)
    while os.getppid() == parent:  # until the tests end, however they do
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        if os.fork() == 0:
            listener.close()
            _watch(connection)
        connection.close()


def _watch(connection: socket.socket) -> NoReturn:
    """Run a command, and tell its script how it ended; kill it if its script is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    told, fds, _, _ = socket.recv_fds(connection, 4, 3)
    with connection.makefile("rb") as stream:
        command = stream.read(int.from_bytes(told, "big"))
    if len(fds) < 3 or not command.endswith(b"]"):  # the script was killed
        os._exit(0)
    child = os.fork()
    if child == 0:
        connection.close()
        _command(*json.loads(command), fds)
    for fd in fds:
        os.close(fd)
    with suppress(BrokenPipeError):
        connection.sendall(child.to_bytes(4, "big"))
    connection.setblocking(False)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            with suppress(OSError):
                connection.sendall(status.to_bytes(4, "big"))
            os._exit(0)
        try:
            if connection.recv(1) == b"":
                os.killpg(child, signal.SIGKILL)
        except (BlockingIOError, ProcessLookupError):
            time.sleep(0.003)


def _command(name: str, words: list[str], folder: str, env: dict[str, str], fds: list[int]) -> NoReturn:
    os.setpgid(0, 0)  # so that all that it starts can be killed with it
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [name, *words]
    code: Any = 1
    try:
        if name == "dvc":
            from dvc.cli import main

            code = main(words)
        elif name == "stages":
            from tests.state_machine.stages import main

            main()
            code = 0
        else:
            from effimini.__main__ import main

            if limit := env.get("WARM_FILE_LIMIT"):
                resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
            code = main() or 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except Exception:  # noqa: BLE001 -- shown, as Python does
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1])
