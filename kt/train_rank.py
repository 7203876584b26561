"""One process of several that train together: `python -m torch.distributed.run ... -m kt.train_rank FILE [--quiet]`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from kt.errors import KtError
from kt.offline import go_offline
from kt.train import train_here
from kt.train_config import ExperimentConfig, Training


def main(described: str, quiet: bool) -> int:
    """Train as the file says; the first process alone tells what went wrong."""
    go_offline()
    found = json.loads(Path(described).read_bytes())
    training = Training(**{**found["training"], "aspects": tuple(found["training"]["aspects"])})
    try:
        train_here(ExperimentConfig(**found["config"]), training, quiet=quiet)
    except KtError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"kt: {error}", file=sys.stderr, flush=True)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], "--quiet" in sys.argv[2:]))
