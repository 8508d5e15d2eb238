import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")

from lib.results import figures, sae_figures, why_figures  # noqa: E402


def table():
    rows = [("dense", "val", 0.99), ("dense", "ood", 0.85), ("words", "val", 0.95), ("words", "ood", 0.6)]
    estimates = pd.DataFrame(rows, columns=["probe", "split", "value"])
    return estimates.assign(low=estimates["value"] - 0.02, high=estimates["value"] + 0.01)


def test_every_point_and_its_interval_lies_inside_its_panel():
    data = table()
    figure = figures.points(data, "probe", "split", reference=data[data["probe"] == "dense"])
    for ax, split in zip(figure.axes, ("val", "ood"), strict=True):
        low, high = ax.get_xlim()
        rows = data[data["split"] == split]
        assert low < rows["low"].min() and rows["high"].max() < high
        assert ax.get_xlabel() == "AUROC" and ax.get_title() == figures.SPLITS[split]


def test_missing_values_are_left_out_not_drawn_as_numbers():
    data = table()
    data.loc[3, ["value", "low", "high"]] = None
    figure = figures.points(data, "probe", "split")
    drawn = figure.axes[1].containers[0].lines[0].get_xdata()
    assert len(drawn) == 1 and drawn[0] == pytest.approx(0.85)


def test_curves_keep_their_tick_labels_when_axes_are_not_shared():
    data = table().assign(layer=1)
    figure = figures.curves(data, "layer", "split", "probe", "layer", share_y=False)
    assert all(ax.get_ylabel() == "AUROC" for ax in figure.axes)


def test_save_writes_a_caption_and_a_picture(tmp_path):
    figure = figures.save(figures.points(table(), "probe", "split"), tmp_path, "x", "n = 4")
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG" and figure.get_supxlabel() == "n = 4"


def test_curves_without_a_defined_value_are_saved_as_empty_panels(tmp_path):
    undefined = {"value": [np.nan, np.nan], "low": [np.nan, np.nan], "high": [None, None]}
    empty = pd.DataFrame({"k": [1, 2], "panel": "p", "way": "w"} | undefined)
    figure = figures.curves(empty, "k", "panel", "way", "k", logx=True)
    figures.save(figure, tmp_path, "empty", "no gap")
    assert (tmp_path / "empty.png").exists()


def test_frequency_histograms_cut_at_the_line_and_outline_the_baseline():
    rng = np.random.default_rng(0)
    samples = {name: [np.exp(rng.normal(-4, 1, 500)).clip(max=0.9) for _ in range(2)] for name in "abcde"}
    samples["a"][0][:100] = 0.0
    figure = sae_figures.frequency_histograms(samples, "a", 0.1)
    panels = [ax for ax in figure.axes if ax.get_visible()]
    assert len(panels) == 5
    for ax, (name, part) in zip(panels, samples.items(), strict=True):
        (own, edges, _), (outline, _, _) = (patch.get_data() for patch in ax.patches)
        above = np.mean([(x > 0.1).sum() for x in part])
        assert own[edges[:-1] >= 0.1 - 1e-9].sum() == above, "no bin holds both sides of the line"
        assert f"{above:.1f} latents" in ax.get_title() and ax.get_title().startswith(name)
        assert outline.sum() == np.mean([(x > 0).sum() for x in samples["a"]])
        assert ax.get_xscale() == "log"
    assert [bool(ax.get_xlabel()) for ax in panels] == [False, False, True, True, True], "the lowest of each column"


def test_a_caption_is_no_wider_than_its_figure(tmp_path):
    figure = figures.save(figures.points(table(), "probe", "split"), tmp_path, "x", "word " * 100 + "\nsecond line")
    lines = figure.get_supxlabel().splitlines()
    assert len(lines) > 3 and max(map(len, lines)) <= 15 * figure.get_figwidth() and lines[-1] == "second line"


def test_stacked_parts_reach_their_sum_and_stay_inside_the_panel():
    parts = {"a": 0.3, "b": -0.1, "c": 0.05, "loss": 0.25}
    table = pd.DataFrame([
        {"variant": name, "part": part, "value": sign * value, "low": sign * value - 0.02, "high": sign * value + 0.02}
        for name, sign in (("one", 1), ("two", -1))
        for part, value in parts.items()
    ])
    figure = why_figures.stacked(table, "loss", "AUROC lost")
    [ax] = figure.axes
    ends = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in ax.patches if bar.get_width()]
    assert sum(right - left for left, right in ends) == pytest.approx(0), "the two variants mirror each other"
    assert min(map(min, ends)) == pytest.approx(-0.35) and max(map(max, ends)) == pytest.approx(0.35)
    low, high = ax.get_xlim()
    assert low < -0.35 and high > 0.35
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["one", "two"]


def test_a_heat_map_leaves_undefined_cells_empty():
    table = pd.DataFrame({"aim": [0.5, np.nan], "caps": [0.0, 1.0]}, index=["7", "9"])
    figure = why_figures.shares(table, "share silent", "latent")
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["0.00", "0.50", "1.00"]
