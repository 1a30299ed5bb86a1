"""What a time depends on besides the code."""

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path

import torch

import adaptiverl

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"


def load() -> float:
    """Programs that ran or wanted to in the last minute, this one among them; 0 where unknown."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def is_busy(load: float) -> bool:
    """Whether other programs left fewer cores than torch has threads."""
    return load > (os.cpu_count() or 1) - torch.get_num_threads() + 0.5


def provenance(device: torch.device) -> dict[str, str | int]:
    return {
        "commit": commit(),
        "adaptiverl": adaptiverl.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": processor(device),
        "threads": torch.get_num_threads(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def commit(checkout: Path = ROOT) -> str:
    """The commit in short, with ``+`` if tracked files differ from it."""
    try:
        head = _git(checkout, "rev-parse", "--short=12", "HEAD")
        changed = _git(checkout, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")


def _git(checkout: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=checkout, check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout.strip()


def processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_model()} ({torch.backends.cpu.get_cpu_capability()})"


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()
