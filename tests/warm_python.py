"""Python processes that start in 0.1 s, not in 1 to 6 s: forks of one that has imported the packages.

`start` returns the beginning of a command line, to be used like ``sys.executable``: the arguments of Python follow,
which are ``-m``, ``-c`` or a script. The command runs in a process of its own with the streams, folder, environment
and exit status of an ordinary one. A test needs ``sys.executable`` where imports, threads or hash seeds matter, or
where it sends signals.

This file is what tests import, the server that forks, and the client that tests run.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from pathlib import Path

# That of the first import: a test may have changed it by the time it starts the server.
ENVIRONMENT = dict(os.environ)
_STARTED: list[Path] = []


def start() -> tuple[str, ...]:
    """The command of the client. The server is started once per process, and ends with it."""
    if not _STARTED:
        if sys.platform != "linux":  # others can't always be forked with all of this imported
            return (sys.executable,)
        import atexit
        import subprocess
        import tempfile

        folder = Path(tempfile.mkdtemp(prefix="warm-"))  # not one of pytest's: the path of a socket must be short
        command = [sys.executable, __file__, "serve", str(folder)]
        server = subprocess.Popen(
            command, cwd=folder, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert server.stdout.readline() == b"ready\n", "the server of warm_python did not start"
        _STARTED.append(folder)
        for name, arguments in (("spr", "-m spr"), ("python", "")):
            (folder / name).write_text(f'#!/bin/sh\nexec {" ".join(start())} {arguments} "$@"\n')
            (folder / name).chmod(0o755)
        atexit.register(server.communicate)  # closes its input, at which it ends
    return sys.executable, "-I", "-S", __file__, str(_STARTED[0])


def executable() -> str:
    """`start` as one file, for what takes the place of ``sys.executable``."""
    return f"{start()[-1]}/python" if len(start()) > 1 else sys.executable


def path() -> str:
    """PATH with `python` and `spr` as such commands, for shell scripts."""
    return os.pathsep.join([str(Path(executable()).parent), str(Path(sys.executable).parent), os.environ["PATH"]])


def serve(folder: Path) -> None:
    import gc
    import importlib
    import select
    import shutil
    import warnings

    sys.path.pop(0)  # the folder of this file
    with warnings.catch_warnings():
        from spr.cli import keep_logs_clean

        keep_logs_clean()
        for name in PACKAGES:
            importlib.import_module(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    listener.listen()
    gc.freeze()
    os.write(1, b"ready\n")
    while sys.stdin not in select.select([sys.stdin, listener], [], [])[0]:
        connection, _ = listener.accept()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not os.fork():
            listener.close()
            _serve_one(connection)
        connection.close()
    shutil.rmtree(folder)


PACKAGES = [
    "accelerate",
    "datasets",
    "peft",
    "torch",
    "transformers",
    "spr.evaluation.task",
    "spr.exports.writing",
    "spr.pipeline.runner",
    "spr.report.page",
    "spr.training.trainer",
]


def _serve_one(connection: socket.socket) -> None:
    """Fork again, so that a process is left that can wait for the command."""
    size, streams, _, _ = socket.recv_fds(connection, 8, 3)
    with connection.makefile("rb") as file:
        arguments, folder, environment = json.loads(file.read(int.from_bytes(size, "big")))
    child = os.fork()
    if not child:
        connection.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        _run(arguments)
    for stream in streams:
        os.close(stream)
    connection.sendall(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())
    os._exit(0)


def _run(arguments: list[str]) -> None:
    """Do what Python does with these arguments, and end the process."""
    import atexit
    import runpy
    import threading
    import traceback
    import types

    sys.stdin, sys.stdout = open(0), open(1, "w")  # noqa: SIM115 (open until the process ends)
    sys.stderr = open(2, "w", errors="backslashreplace", buffering=1)  # noqa: SIM115
    added = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry not in ("", *sys.path)]
    kind, *rest = [argument for argument in arguments if argument != "-u"]
    sys.path[:0] = ["" if kind in ("-m", "-c") else str(Path(kind).parent), *added]
    code = 0
    try:
        if kind == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif kind == "-c":
            sys.argv = ["-c", *rest[1:]]
            sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(rest[0], "<string>", "exec"), vars(sys.modules["__main__"]))  # noqa: S102 (a test's own code)
        else:
            sys.argv = [kind, *rest]
            runpy.run_path(kind, run_name="__main__")
        threading._shutdown()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
        if code and not isinstance(left.code, int):
            print(left.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(code)


def _call(folder: str, arguments: list[str]) -> None:
    request = json.dumps([arguments, str(Path.cwd()), dict(os.environ)]).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"{folder}/socket")
        socket.send_fds(connection, [len(request).to_bytes(8, "big")], [0, 1, 2])
        connection.sendall(request)
        with connection.makefile() as file:
            code = int(file.read())
    if code < 0:
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(Path(sys.argv[2]))
    else:
        _call(sys.argv[1], sys.argv[2:])
