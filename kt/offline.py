"""What --offline means: no address but this machine's and those the config lists as inside; children are told too."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from kt.errors import OfflineError

SWITCHES = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "DO_NOT_TRACK": "1",
    "WANDB_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Environment that keeps Hugging Face, vLLM, wandb and Ray from looking outside or reporting home."""


def go_offline() -> None:
    """Set the switches for this process and every child it will start."""
    os.environ.update(SWITCHES)


def check_addresses(urls: Iterable[str], inside: Sequence[str]) -> None:
    """Raise OfflineError for a URL that is neither this machine's nor on a host listed as inside."""
    for url in urls:
        host = urlsplit(url).hostname or ""
        if not (is_loopback(host) or host in inside):
            raise OfflineError(
                f"--offline: {host} is not this machine; serve the model at 127.0.0.1, or list the host in the config"
                " under `inside`"
            )


def is_loopback(host: str) -> bool:
    """Say whether a host's name or address can only be this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
