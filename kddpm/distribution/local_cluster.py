"""Several workers on this machine, as if each were one of its own: to try what a cluster would do.

    python -m kddpm.local_cluster --workers=2 train.py --strategy=multi_worker --preset=digits --run_dir=runs/digits

Starts the command once for each worker, with its TF_CONFIG. Shows the stdout of the first worker and the stderr of all,
with the worker's number before every line. Ends when all have ended, with the first exit status that is not 0. Forwards
Ctrl-C, SIGTERM and SIGHUP to all of them.
"""

import argparse
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1  # Linux only
_PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}


def start(arguments: Sequence[str], workers: int, **kwargs) -> list[subprocess.Popen]:
    """Start `workers` Python processes with these arguments, as the tasks of one cluster on free ports of 127.0.0.1.

    Args:
        arguments: arguments of python, the script first.
        workers: number of processes.
        **kwargs: further arguments of `subprocess.Popen`.

    Returns:
        The processes, the chief first.
    """
    addresses = [f"127.0.0.1:{port}" for port in _free_ports(workers)]
    processes = []
    for index in range(workers):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TF_CONFIG": json.dumps(task)}
        command = [sys.executable, *arguments]
        processes.append(subprocess.Popen(command, env=environment, preexec_fn=_end_with_parent, **kwargs))
    return processes


def _end_with_parent() -> None:
    """On Linux, end this worker when its parent is killed: it would train on and block the run's next start."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _copy(index: int, source, to) -> None:
    for line in source:  # read to the end even what is not shown: a full pipe blocks its writer
        if to:
            print(f"[{index}] {line}", end="", flush=True, file=to)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m kddpm.local_cluster", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--workers", type=int, default=2, help="how many")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="a script, and its arguments")
    options = parser.parse_args()
    if options.workers < 1 or not options.command:
        parser.error("needs --workers of at least 1, and a script. Received: " + " ".join(sys.argv[1:]))
    processes: list[subprocess.Popen] = []

    def forward(number, frame):
        for process in processes:
            process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, forward)
    # In their own sessions, Ctrl-C in a terminal reaches them once, only through `forward`.
    processes += start(options.command, options.workers, start_new_session=True, **_PIPES)
    readers = []
    for index, process in enumerate(processes):
        for source, to in ((process.stdout, None if index else sys.stdout), (process.stderr, sys.stderr)):
            readers.append(threading.Thread(target=_copy, args=(index, source, to)))
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    sys.exit(next((status for process in processes if (status := process.wait())), 0))


if __name__ == "__main__":
    main()
