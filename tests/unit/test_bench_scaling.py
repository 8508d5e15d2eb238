import matplotlib
import pytest

matplotlib.use("Agg")

from bench import scaling  # noqa: E402


def test_the_slope_is_the_exponent_of_the_least_squares_line():
    assert scaling.slope((1, 4, 16), [3.0, 6.0, 12.0]) == pytest.approx(0.5)  # 3 √scale
    assert scaling.slope((1, 2, 4), [1.0, 2.0, 16.0]) == pytest.approx(2)  # log2: 0, 1, 4 over 0, 1, 2


def rows():
    """Of each curve: 1, 2, … at the scales, from half to twice as much, slope 0.5."""
    rows = []
    for (job, axis), scales in scaling.CURVES.items():
        for quantity in scaling.QUANTITIES:
            values = {f"x{scale}": i + 1 for i, scale in enumerate(scales)} | {"slope": 0.5}
            for name, value in values.items():
                row = {"name": f"{job}_{quantity}_{axis}_{name}", "value": value, "min": value / 2, "max": value * 2}
                rows.append(row | {"n": 3, "profile": "embedded", "hardware": {"threads": 2}})
    return rows


def test_the_figure_is_drawn_from_the_rows_alone(tmp_path):
    figure = scaling.draw(rows(), tmp_path)
    assert (tmp_path / "scaling.png").exists() and "n = 3 rounds" in figure.get_supxlabel()
    harvest, training, *memory = figure.axes
    texts = [text.get_text() for text in training.get_legend().get_texts()]
    assert texts == ["slope 1", "training, tokens: slope 0.50 [0.25, 1.00]", "training, width: slope 0.50 [0.25, 1.00]"]
    assert harvest.containers[0].lines[0].get_xydata().tolist() == [[1, 1], [4, 2], [16, 3]]
    assert len(memory) == 2 and all("GiB" in ax.get_ylabel() for ax in memory)
    assert all(ax.get_xscale() == ax.get_yscale() == "log" for ax in memory)
