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


def directed(estimate: Any, above: str, below: str, digits: int = 3) -> str:
    """The size of a results row's difference with its interval, behind ``above`` or, where it is negative, ``below``:
    ``ahead by 0.10 [0.05, 0.15]`` or ``behind by 0.10 [0.05, 0.15]``."""
    if not estimate.value < 0:
        return f"{above} {text(estimate, digits)}"
    turned = estimate._replace(value=-estimate.value, low=-estimate.high, high=-estimate.low)
    return f"{below} {text(turned, digits)}"


def course(estimates: pd.DataFrame, digits: int = 3) -> str:
    """The texts of estimates that follow one another, and the way from the first to the last:
    ``0.94 [0.90, 0.98], then 0.59 [0.48, 0.69]: it falls``."""
    said = ", then ".join(texts(estimates, digits))
    values = estimates["value"].dropna()
    if len(values) < 2:
        return said
    first, last = (round(float(value), digits) for value in values.iloc[[0, -1]])
    way = "stays" if first == last else "falls" if last < first else "rises"
    return f"{said}: it {way}"


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
