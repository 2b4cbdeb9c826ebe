"""Local rules, what a block learns from: the contract, and the shipped ones, a file each."""

from __future__ import annotations

from importlib import import_module
from typing import Any

SHIPPED = {
    "AugLocal": "auglocal",
    "Contrastive": "contrastive",
    "DGL": "dgl",
    "ForwardForward": "forward_forward",
    "InfoPro": "infopro",
    "MonoForward": "mono_forward",
    "NoProp": "noprop",
    "SoftHebb": "soft_hebb",
}
"""The file of each shipped rule, by its class, which is the name that a config has for it."""


def __getattr__(name: str) -> Any:
    """A shipped rule: each file is imported only where its rule is used."""
    if name not in SHIPPED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{SHIPPED[name]}"), name)
