"""Profiles: flat YAML files of notebook parameters that differ from the defaults; values are checked against these."""

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import yaml

from lib.base import build_graph, keys
from lib.base.files import cause

PROFILES = build_graph.NOTEBOOKS / "profiles"
PLAIN_VALUES = {  # YAML 1.1 also reads yes as true, 010 as 8, 0x1f as 31 and 1:30 as 90, which here are texts
    "bool": re.compile(r"(true|True|TRUE|false|False|FALSE)$"),
    "int": re.compile(r"[-+]?(0|[1-9][\d_]*)$"),
    "float": re.compile(
        r"[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*|\d+(?=[eE]))([eE][-+]?\d+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
    ),
}
MAY_BE_EMPTY = "; empty: "  # in the comment beside a list parameter, before what its being empty means


def _resolvers() -> dict[str, list[tuple[str, re.Pattern]]]:
    """PyYAML's rules of what a plain value is, by its first character, with the patterns of ``PLAIN_VALUES`` and none
    for dates."""
    resolvers = {}
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items():
        kinds = [(tag, PLAIN_VALUES.get(tag.rpartition(":")[2], pattern)) for tag, pattern in rules]
        resolvers[first] = [rule for rule in kinds if not rule[0].endswith(":timestamp")]
    return resolvers


class Loader(yaml.SafeLoader):
    """YAML as people mean it: ``1e-3`` is a number (PyYAML wants ``1.0e-3``), and ``yes``, ``010`` and ``2024-01-01``
    are texts, which may be a label, or name a profile; no parameter is a date."""

    yaml_implicit_resolvers = _resolvers()


def profile_path(profile: str) -> Path:
    """The YAML file of a profile, given by name or by path.

    Raises:
        ValueError: no such profile.
    """
    is_file = Path(profile).suffix in (".yaml", ".yml")
    path = Path(profile).expanduser() if is_file else PROFILES / f"{profile}.yaml"
    if not path.exists():
        names = sorted(file.stem for file in PROFILES.glob("*.yaml"))
        raise ValueError(f"unknown profile {profile!r}; there are {names}, or give the path of a YAML file")
    return path


def read_profile(path: Path) -> dict[str, Any]:
    """The flat parameters of a profile; ``profile`` is the file's name.

    Raises:
        ValueError: not a flat YAML mapping, another ``profile`` in it, or a key (see :mod:`lib.base.keys`).
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a YAML file: {cause(error)}") from error
    values = flat_yaml(text, str(path))
    values = {} if values is None else values
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ValueError(f"{path} must be flat: one 'parameter: value' a line")
    keys.check_parameters(values)
    values = as_meant(values)
    if values.get("profile", path.stem) != path.stem:
        raise ValueError(
            f"{path} sets profile: {values['profile']!r}; it must be the file's name, {path.stem!r}, or left out"
        )
    return {"profile": path.stem} | values


def flat_yaml(text: str, place: str) -> Any:
    """The value of a YAML text: a scalar, a list of scalars, or a mapping from scalars to these.

    Raises:
        ValueError: not YAML, nested, or a value that a record (JSON in UTF-8) cannot hold.
    """
    try:
        nested = _nested(yaml.compose(text, Loader))  # before values are made: aliases of aliases multiply
        value = None if nested else yaml.load(text, Loader)
        json.dumps(value, ensure_ascii=False).encode()
    except Exception as error:  # PyYAML lets out KeyError ("!!bool x"), AttributeError ("!!timestamp x") and more
        raise ValueError(f"{place} is not flat YAML: {cause(error)}") from error
    if nested:
        line = nested.start_mark.line + 1
        raise ValueError(
            f"{place}, line {line}: allowed are numbers, texts, true, false and lists of these, "
            "no mapping or deeper list"
        )
    return value


def _nested(node: yaml.Node | None) -> yaml.Node | None:
    """The first part of a YAML document that makes it deeper than :func:`flat_yaml` allows."""
    entries = [entry for pair in node.value for entry in pair] if isinstance(node, yaml.MappingNode) else [node]
    for entry in entries:
        leaves = entry.value if isinstance(entry, yaml.SequenceNode) else [entry]
        for leaf in leaves:
            if isinstance(leaf, yaml.CollectionNode):
                return leaf
    return None


def as_meant(values: dict[str, Any]) -> dict[str, Any]:
    """Values as they were read, with the text of a whole number for a parameter that is a text (``text_column: 0``),
    and with the home folder for ``~`` in what names files."""
    defaults = complete({})
    return {name: _meant(name, value, defaults.get(name)) for name, value in values.items()}


def _meant(name: str, value: Any, default: Any) -> Any:
    if isinstance(value, list):
        return [_meant(name, entry, default) for entry in value]
    if isinstance(value, str) and name in build_graph.FILE_PARAMETERS:
        return os.path.expanduser(value)
    return str(value) if isinstance(default, str) and type(value) is int else value


def complete(profile: dict[str, Any]) -> dict[str, Any]:
    """All notebooks' parameters: a profile's values, and the defaults of the others."""
    values: dict[str, Any] = {}
    for path in build_graph.notebooks():
        values |= build_graph.parameters(path)
    return values | profile


def other_parameter(record: Path, profile: dict[str, Any]) -> str:
    """A parameter with which a record was made in the place of a profile's, or of its notebook's default where the
    profile has none, and both values; empty if there is none."""
    recorded = json.loads(record.read_text(encoding="utf-8")).get("parameters", {})
    values = build_graph.parameters(build_graph.NOTEBOOKS / f"{record.stem}.py") | profile
    name = next((name for name, value in values.items() if recorded.get(name, value) != value), "")
    return name and f"it was made with {name} {recorded[name]!r}, and the profile has {values[name]!r}"


def select(notebook: Path, values: dict[str, Any]) -> dict[str, Any]:
    """The values that this notebook declares and that differ from its defaults.

    Raises:
        ValueError: a name that no notebook declares, a value of another type than the default, NaN or infinity, a list
            that names an entry twice, or an empty one whose comment does not say what that means (``MAY_BE_EMPTY``),
            or a key (see :mod:`lib.base.keys`).
    """
    keys.check_parameters(values)
    known = {name for path in build_graph.notebooks() for name in build_graph.parameters(path)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"unknown parameter {unknown}; the notebooks declare {', '.join(sorted(known))}")
    defaults = build_graph.parameters(notebook)
    chosen = {name: value for name, value in values.items() if name in defaults and value != defaults[name]}
    for name, value in chosen.items():
        _check_value(name, value, defaults[name])
        if isinstance(value, list):
            _check_list(name, value, defaults[name], build_graph.comments(notebook)[name])
    return chosen


def _check_value(name: str, value: Any, default: Any) -> None:
    lists = isinstance(value, list) and isinstance(default, list)
    types = {type(item) for item in (default if lists else [default])}
    allowed = types | {int} if float in types else types  # of an empty list any
    for item in value if lists else [value]:
        if allowed and type(item) not in allowed:
            shown, kind = repr(item)[:100], type(item).__name__
            raise ValueError(f"parameter {name}: {shown} is {kind}, the default is {default!r}")
        if isinstance(item, float) and not math.isfinite(item):
            raise ValueError(f"parameter {name}: {item} is not a finite number")


def _check_list(name: str, value: list, default: list, comment: str) -> None:
    if not value and MAY_BE_EMPTY not in comment:
        raise ValueError(f"parameter {name}: an empty list; it needs one entry or more, the default is {default!r}")
    twice = [item for item in value if value.count(item) > 1]
    if twice:
        raise ValueError(f"parameter {name}: {twice[0]!r} stands in the list twice; every entry must be another one")
