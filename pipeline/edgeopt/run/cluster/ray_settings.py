"""What the processes of Ray that edgeopt starts have in common: variables, and a folder for their files."""

import importlib.util
import os
import secrets
from contextlib import AbstractContextManager
from pathlib import Path

from edgeopt.config.scratch import lasting_temporary_folder, scratch_folder, sweep

OBJECT_STORE_BYTES = 100 << 20
"""Of a cluster started here; nothing large passes through Ray."""
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # telemetry
    "RAY_memory_monitor_refresh_ms": "0",  # kills workers; edgeopt has limits of its own
    "RAY_worker_niceness": "0",  # 15 by default: stages would starve beside anything else
}
"""What edgeopt sets for every process of Ray that it starts."""
SCRATCH = "edgeopt-ray-"
DEVICE = "device:"
"""Begins the name of the resource that a node declares for a device that it holds."""
LONGEST_FOLDER = 18
"""Characters of the folder for temporary files: the sockets of a cluster lie deep below it, and their paths
have 107 at most."""


def environment(*, own: bool) -> dict[str, str]:
    """The variables of a process that uses Ray; ``own``: of one that starts a cluster for itself."""
    variables = {**SETTINGS, "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE") or "token"}
    if own:
        # Loopback only, which this variable decides on every system, and a token that nobody else knows.
        variables |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return variables


def cluster_folder() -> AbstractContextManager[Path]:
    """A folder for all files of a process of Ray, and of what it starts; removed even if that is killed."""
    place = lasting_temporary_folder()
    if len(str(place)) > LONGEST_FOLDER:
        place = Path("/tmp")
    sweep(place, SCRATCH)
    return scratch_folder(place, SCRATCH, 0o700)


def installed() -> bool:
    """Whether Ray is installed; it is not imported."""
    return importlib.util.find_spec("ray") is not None


def default_cpus() -> int:
    """Stages that a node runs at a time: their libraries use several cores each."""
    return max(2, (os.cpu_count() or 2) // 2)


def host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def access_problem(log: Path) -> str:
    """What a log says of the token or of TLS, which the exceptions of Ray do not mention; '' if nothing."""
    text = log.read_text("utf-8", "replace")
    if "InvalidAuthToken" in text or "Unauthenticated" in text:
        return "the token is wrong"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return "its certificate is not of the authority in RAY_TLS_CA_CERT"
    return ""
