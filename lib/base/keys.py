"""Keys of servers stand in environment variables; a parameter names the variable and never holds the key, as parameters
are shown and recorded."""

import re
from collections.abc import Mapping
from typing import Any

PARAMETER = "llm_key_variable"
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check(variable: Any) -> None:
    """Raise ``ValueError``, which does not repeat it, unless this may be the name of an environment variable."""
    if not (isinstance(variable, str) and VARIABLE.fullmatch(variable)):
        raise ValueError(
            f"parameter {PARAMETER} must be the name of an environment variable, such as OPENAI_API_KEY; what it holds "
            "is none, and is not repeated here, as it may be the key itself"
        )


def check_parameters(values: Mapping[str, Any]) -> None:
    """:func:`check` of the parameter, where there is one."""
    if PARAMETER in values:
        check(values[PARAMETER])
