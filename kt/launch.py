"""Several training processes: `kt` starts itself again under torch.distributed.run, and ends them when it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
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
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", *options]
    command += ["-m", "kt.train_rank", str(described), *(["--quiet"] if quiet else [])]
    supervised = [sys.executable, "-m", "kt.supervise", "--", *command]
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    with subprocess.Popen(supervised, stdin=subprocess.PIPE, env=environment) as running:
        code = running.wait()
    if code:
        raise TrainingError(f"a training process ended with {code}: its message stands above; run again to go on from there")
