"""Which off-screen renderer of MuJoCo's works on this machine."""

from __future__ import annotations

import os
import subprocess
import sys

BACKENDS = ("egl", "osmesa", "glfw")
"""In the order in which they are tried; GLFW needs a display."""

PROBE = """
import importlib, sys
import mujoco
context = importlib.import_module(f"mujoco.{sys.argv[1]}").GLContext(16, 16)
context.make_current()
model = mujoco.MjModel.from_xml_string("<mujoco/>")
mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
print("renders", flush=True)
"""
PROBE_SECONDS = 60


def select_renderer(wanted: str | None = None) -> str:
    """Find a renderer that works and make it the one that Gymnasium's viewers use.

    Each is tried in a process of its own: a broken driver may end the process it is loaded into,
    and a process in which one has failed cannot load another.

    Args:
        wanted: the only one to try; None tries EGL, then OSMesa, then GLFW.

    Raises:
        ValueError: if there is none; the message names the system packages to install.
    """
    for backend in [wanted] if wanted else BACKENDS:
        if backend in BACKENDS and _works(backend):
            os.environ["MUJOCO_GL"] = backend
            return backend
    asked = f" ({wanted}, which MUJOCO_GL asks for)" if wanted else " (EGL, OSMesa)"
    otherwise = ", or unset MUJOCO_GL" if wanted else ""
    raise ValueError(
        f"No renderer{asked} works here: install the system package libegl1 or libosmesa6"
        f" (apt-get install libosmesa6){otherwise}; scoring without --video and --image needs none."
    )


def _works(backend: str) -> bool:
    environment = {**os.environ, "MUJOCO_GL": "disabled"}
    environment.pop("PYOPENGL_PLATFORM", None)
    try:
        probe = subprocess.run(
            [sys.executable, "-c", PROBE, backend],
            env=environment,
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    # OSMesa may complain when it is torn down, after it has rendered.
    return "renders" in probe.stdout
