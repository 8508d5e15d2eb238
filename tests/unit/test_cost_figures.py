"""The figure of gaps against costs: where points stand, and that labels can be read."""

import itertools

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")

from lib.results import cost_figures, figures  # noqa: E402

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


def names(ax):
    return {text.get_text(): text for text in ax.texts if text.get_text()}


def test_labels_lie_over_nothing_in_the_saved_picture(tmp_path):
    points = table()
    figure = cost_figures.gaps_against_cost(points)
    figures.save(figure, tmp_path, "costs", " ".join(["A caption of three lines."] * 15))
    (ax,) = figure.axes
    figure.draw_without_rendering()
    assert set(names(ax)) == {*points["variant"], "dense probe"}
    boxes = {name: text.get_window_extent() for name, text in names(ax).items()}
    over = [pair for pair in itertools.combinations(boxes, 2) if boxes[pair[0]].overlaps(boxes[pair[1]])]
    assert not over
    inside = ax.get_window_extent()
    for name, box in boxes.items():
        assert inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1, name
    dots = [container.lines[0].get_xydata()[0] for container in ax.containers]
    for x, y in ax.transData.transform(dots):
        assert not any(box.contains(x, y) for box in boxes.values())


def test_points_without_a_price_stand_at_marked_ends():
    points = table()
    (ax,) = cost_figures.gaps_against_cost(points).axes
    x = np.array([container.lines[0].get_xdata()[0] for container in ax.containers])
    known = points["making"].gt(0).to_numpy()
    np.testing.assert_allclose(x[known], points.loc[known, "making"])
    assert x[points["making"].eq(0)].max() < x[known].min() and x[points["making"].isna()].min() > x[known].max()
    assert len(set(x[points["making"].eq(0)])) == 4, "side by side"
    ticks = [tick.get_text() for tick in ax.get_xticklabels()]
    assert "0" in ticks and cost_figures.UNKNOWN in ticks and "$10^{12}$" in ticks
    assert ax.get_xlabel() == "cost of making the dictionary (FLOPs)" and ax.get_ylabel() == cost_figures.GAP
    assert ax.get_ylim()[0] < 0, "the dense probe is in the picture"


@pytest.mark.parametrize("rows, n_ticks", [(ROWS[5:7], 1), (ROWS[9:], 1), (ROWS[:1], 1), (ROWS[:3], 3)])
def test_one_sort_of_cost_alone_is_a_figure_too(rows, n_ticks):
    points = table(rows).assign(low=np.nan, high=np.nan)
    (ax,) = cost_figures.gaps_against_cost(points).axes
    assert len(ax.get_xticks()) == n_ticks and {*points["variant"]} < set(names(ax))


def test_what_cannot_be_drawn_is_said():
    for points in (table([]), table().assign(making=-1.0), table().assign(value=None)):
        with pytest.raises(ValueError, match="there must be points, of costs of at least 0, each with a value"):
            cost_figures.gaps_against_cost(points)
