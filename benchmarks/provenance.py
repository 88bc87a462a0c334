"""Where numbers come from: machine, versions, commit. Only what may be published; no paths, no host names."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("convgym", "gymnasium", "numpy", "scipy", "tokenizers", "torch", "transformers")


def describe(command: str) -> dict[str, Any]:
    """Machine, versions and commit of a comparison that starts now.

    Args:
        command: The command that makes the comparison again.
    """
    return {
        "command": command,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit(),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **versions()},
    }


def versions() -> dict[str, str]:
    """Installed versions of the packages that can change a number."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Processor, usable cores, memory and load of this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": processor(),
        "cores": cores,
        "memory_gb": round(pages / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def processor() -> str:
    """The processor's model name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8", "replace").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def commit() -> dict[str, Any]:
    """Commit of this package's checkout, and whether files were changed since; empty without git."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():  # installed, or a copy inside somebody else's repository
        return {}
    head = _git(here, "rev-parse", "HEAD")
    if not head:
        return {}
    return {"id": head, "changed": bool(_git(here, "status", "--porcelain", "--untracked-files=no"))}


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
