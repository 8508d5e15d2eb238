"""The figure of gaps against costs: where points stand, and in which order."""

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")

from lib.results import cost_figures, why_figures  # noqa: E402

ROWS = [
    ("pretraining SAE", "SAE", 0.061, 1.7e14),
    ("1/10 of the tokens", "SAE", 0.066, 1.7e13),
    ("1/100 of the tokens", "SAE", 0.088, 1.7e12),
    ("k-means centres", "k-means centres", 0.072, 7.7e11),
    ("principal components", "principal components", 0.058, 3.1e9),
    ("coordinates", "coordinates", 0.103, 0.0),
    ("random directions", "random directions", 0.12, 0.0),
    ("untrained SAE", "untrained SAE", 0.118, 0.0),
    ("training tokens", "training tokens", 0.078, 0.0),
    ("Gemma Scope", "SAE", 0.04, np.nan),
]


def table(rows=ROWS):
    points = pd.DataFrame(rows, columns=["variant", "kind", "value", "making"])
    return points.assign(low=points["value"] - 0.015, high=points["value"] + 0.01)


def ticks(axis):
    return [tick.get_text() for tick in axis.get_ticklabels()]


def places(ax):
    """Where the dot of each row stands, from the top."""
    dots = [container.lines[0].get_xydata()[0] for container in ax.containers]
    return np.array(sorted(dots, key=lambda dot: dot[1]))[:, 0]


def test_rows_are_in_the_order_of_cost_with_their_names_and_colours():
    points = table()
    left, right = cost_figures.gaps_against_cost(points).axes
    in_order = points.sort_values(["making", "value"])
    assert ticks(left.yaxis) == in_order["variant"].tolist() and ticks(left.yaxis)[-1] == "Gemma Scope"
    assert left.get_ylim() == right.get_ylim() and left.get_ylim()[0] > left.get_ylim()[1], "the cheapest at the top"
    np.testing.assert_allclose(places(right), in_order["value"])
    bars = [container.lines[2][0].get_segments()[0] for container in right.containers]
    np.testing.assert_allclose([bar[:, 0] for bar in bars], in_order[["low", "high"]])
    colours = [container.lines[0].get_color() for container in right.containers]
    assert colours == [why_figures.COLOURS.get(name, why_figures.OTHER_SAE) for name in in_order["variant"]]
    assert right.get_xlim()[0] < 0, "the dense probe is in the picture"


def test_rows_without_a_price_stand_at_marked_ends():
    points = table().sort_values(["making", "value"])
    left, right = cost_figures.gaps_against_cost(table()).axes
    x, known = places(left), points["making"].gt(0).to_numpy()
    np.testing.assert_allclose(x[known], points.loc[points["making"].gt(0), "making"])
    assert x[points["making"].eq(0)].max() < x[known].min() and x[points["making"].isna()].min() > x[known].max()
    assert {"0", cost_figures.UNKNOWN, "$10^{11}$"} <= set(ticks(left.xaxis))
    assert left.get_xlabel() == cost_figures.MAKING and right.get_xlabel() == cost_figures.GAP


@pytest.mark.parametrize("rows, n_ticks", [(ROWS[5:7], 1), (ROWS[9:], 1), (ROWS[:1], 1), (ROWS[:3], 3)])
def test_one_sort_of_cost_alone_is_a_figure_too(rows, n_ticks):
    points = table(rows).assign(low=np.nan, high=np.nan)
    left, _ = cost_figures.gaps_against_cost(points).axes
    assert len(left.get_xticks()) == n_ticks and set(ticks(left.yaxis)) == set(points["variant"])


def test_what_cannot_be_drawn_is_said():
    for points in (table([]), table().assign(making=-1.0), table().assign(value=None)):
        with pytest.raises(ValueError, match="there must be points, of costs of at least 0, each with a value"):
            cost_figures.gaps_against_cost(points)
