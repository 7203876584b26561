"""Several training processes: `kt` starts itself again under torch.distributed.run, and ends them when it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from kt.errors import TrainingError


def launch(described: Path, processes: int, torchrun: Mapping[str, str | int], quiet: bool) -> None:
    """Run a training described by a JSON file on `processes` processes of this host.

    `torchrun` holds options of torch.distributed.run under their own names (nnodes, node-rank, rdzv-endpoint, ...): with
    them the training spans several hosts, on each of which the same command runs. TrainingError if a process fails.
    """
    options = [f"--{name.replace('_', '-')}={value}" for name, value in torchrun.items()]
    if not torchrun:
        options = ["--standalone"]  # loopback only, a free port
    command = [sys.executable, "-m", "kt.launch", f"--nproc-per-node={processes}", *options]
    command += ["-m", "kt.train_rank", str(described), *(["--quiet"] if quiet else [])]
    supervised = [sys.executable, "-m", "kt.supervise", "--", *command]
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    with subprocess.Popen(supervised, stdin=subprocess.PIPE, env=environment) as running:
        code = running.wait()
    if code:
        raise TrainingError(f"a training process ended with {code}: its message stands above; run again to go on from there")


def main(arguments: Sequence[str]) -> int:
    """Run torch.distributed.run in this process; a signal, or a process that failed, ends it with a code and no traceback."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as run

    try:
        run(arguments)
    except SignalException as error:
        return 128 + error.sigval
    except ChildFailedError as error:
        return max(1, error.get_first_failure()[1].exitcode)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
