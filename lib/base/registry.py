"""Registries: the variants of a thing (architectures, poolings, probes, judges, corpora, selections) by name."""

from collections.abc import Mapping
from typing import TypeVar

Entry = TypeVar("Entry")


def lookup(registry: Mapping[str, Entry], kind: str, name: str) -> Entry:
    """The entry of ``registry`` under ``name``; ``kind`` says what the registry holds, such as ``"pooling"``.

    Raises:
        ValueError: no entry of that name; the sentence lists the names that there are.
    """
    if name not in registry:
        raise ValueError(f"unknown {kind} {name!r}; allowed are {', '.join(map(str, registry))}")
    return registry[name]
