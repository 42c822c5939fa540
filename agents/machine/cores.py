"""How many cores this process may use."""

import os


def available_cores() -> int:
    """Those it is bound to, where the system tells; otherwise all that the machine has."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(affinity(0)) if affinity else os.cpu_count() or 1
