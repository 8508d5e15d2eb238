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
    """Texts of the estimates: the levels ``index`` as rows, a column per value of ``columns``, in the table's order.

    Raises:
        ValueError: two estimates for one cell.
    """
    levels = [index] if isinstance(index, str) else index
    cells = estimates.assign(shown=texts(estimates, digits)).set_index([*levels, columns])["shown"]
    if not cells.index.is_unique:
        repeated = cells.index[cells.index.duplicated()][0]
        raise ValueError(f"{repeated} has more than one estimate; a cell of a table holds one")
    rows = cells.index.droplevel(columns).unique()
    return cells.unstack(columns).reindex(index=rows, columns=list(dict.fromkeys(estimates[columns])))
