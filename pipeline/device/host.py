"""What this machine's processor says of itself."""

from __future__ import annotations

from pathlib import Path

_FACTS = Path("/proc/cpuinfo")


def processor_fact(name: str) -> str:
    """As `vendor_id` or `model name`, of the first core; empty where the system does not tell."""
    lines = _FACTS.read_text(encoding="utf-8").splitlines() if _FACTS.exists() else []
    facts = (line.split(":", 1) for line in lines if ":" in line)
    return next((value.strip() for key, value in facts if key.strip() == name), "")
