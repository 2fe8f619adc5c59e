"""Where and with what a benchmark ran."""

import datetime
import platform
from importlib import metadata
from pathlib import Path
from typing import Any


def processor() -> str:
    """The processor's name, as the kernel says it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())


def machine(*packages: str) -> dict[str, Any]:
    """The date, the processor, Python's version, and those of the packages that are installed."""
    installed = {found.metadata["Name"]: found.version for found in metadata.distributions()}
    return {
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "python": platform.python_version(),
        "versions": {name: installed[name] for name in packages if name in installed},
    }
