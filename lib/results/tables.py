"""Tables of estimates as a notebook shows them: each value with its interval as one text."""

from typing import Any

import pandas as pd


def text(estimate: Any, digits: int = 3) -> str:
    """``value [low, high]`` of an Estimate or a results row, the value alone without an interval, or ``n/a``."""
    if pd.isna(estimate.value):
        return "n/a"
    if pd.isna(estimate.low):
        return f"{estimate.value:.{digits}f} (no interval)"
    return f"{estimate.value:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def texts(estimates: pd.DataFrame, digits: int = 3) -> pd.Series:
    """:func:`text` of every row of a table with the columns ``value``, ``low`` and ``high``; the index is kept."""
    return pd.Series([text(row, digits) for row in estimates.itertuples()], index=estimates.index, dtype=object)


def in_columns(
    estimates: pd.DataFrame, index: str | list[str], columns: str = "split", digits: int = 3
) -> pd.DataFrame:
    """Texts of the estimates with the levels ``index`` as rows and one column per value of ``columns``, both in the
    order in which they stand in the table."""
    index = [index] if isinstance(index, str) else index
    shown = estimates.assign(shown=texts(estimates, digits))
    rows = list(shown[index].itertuples(index=False, name=None))
    wide = shown.pivot(index=index, columns=columns, values="shown")
    order = pd.MultiIndex.from_tuples(dict.fromkeys(rows), names=index) if len(index) > 1 else pd.Index(
        list(dict.fromkeys(row[0] for row in rows)), name=index[0])
    return wide.reindex(order)[list(dict.fromkeys(shown[columns]))]
