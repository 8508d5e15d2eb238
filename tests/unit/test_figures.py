import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.container import BarContainer, ErrorbarContainer

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


def test_a_name_in_a_caption_is_no_formula(tmp_path):
    """Two signs of a dollar would begin and end one, here one that cannot be set."""
    figure = figures.points(table(), "probe", "split")
    figures.save(figure, tmp_path, "mine", "Profile a$b^$c, 95 % bootstrap.")
    assert (tmp_path / "mine.png").exists()


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
    table = pd.DataFrame(
        [
            {
                "variant": name,
                "part": part,
                "value": sign * value,
                "low": sign * value - 0.02,
                "high": sign * value + 0.02,
            }
            for name, sign in (("one", 1), ("two", -1))
            for part, value in parts.items()
        ]
    )
    figure = why_figures.stacked(table, "loss", "AUROC lost")
    [ax] = figure.axes
    ends = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in ax.patches if bar.get_width()]
    assert sum(right - left for left, right in ends) == pytest.approx(0), "the two variants mirror each other"
    assert min(map(min, ends)) == pytest.approx(-0.35) and max(map(max, ends)) == pytest.approx(0.35)
    low, high = ax.get_xlim()
    assert low < -0.35 and high > 0.35
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["one", "two"]
    bars = [container for container in ax.containers if isinstance(container, BarContainer)]
    *lines, _ = (container for container in ax.containers if isinstance(container, ErrorbarContainer))
    for of_part, line in zip(bars, lines, strict=True):
        [intervals] = line.lines[2]
        darker = [why_figures.SHADE * channel for channel in of_part.patches[0].get_facecolor()[:3]]
        assert intervals.get_color()[0][:3] == pytest.approx(darker), "an interval has the colour of its part"
        heights = [segment[0, 1] for segment in intervals.get_segments()]
        first, second = ((bar.get_y(), bar.get_y() + bar.get_height()) for bar in of_part.patches)
        assert first[1] < heights[0] < second[0] and second[1] < heights[1], "and lies on no bar"


def test_a_heat_map_leaves_undefined_cells_empty():
    latents = pd.MultiIndex.from_tuples([(1, 7), (0, 9)])
    table = pd.DataFrame({"caps": [0.0, 1.0], "aim": [0.5, np.nan]}, index=latents)
    counts = pd.DataFrame({"caps": [why_figures.FEW, 19], "aim": [2, 0]}, index=latents)
    [ax, _] = why_figures.shares(table, counts, ["aim"], "share silent").axes
    assert [text.get_text() for text in ax.texts] == ["0.50 of 2", "0.00", "1.00 of 19"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["aim (jailbreak)", "caps (innocuous)"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["7, harmful", "9, harmless"]


def controls():
    ks = pd.DataFrame({"k": [1, 10, 100]}).assign(split="ood", value=[0.6, 0.7, 0.8])
    names = ["pretraining SAE", "coordinates", "untrained SAE"]
    every = pd.concat([ks.assign(variant=name, value=ks["value"] - 0.1 * i) for i, name in enumerate(names)])
    return every.assign(low=every["value"] - 0.2, high=every["value"] + 0.05)


def test_lines_without_a_band_have_their_intervals_side_by_side_in_the_panel():
    rows = controls()
    figure = figures.curves(
        rows,
        "k",
        "split",
        "variant",
        "k",
        logx=True,
        colours=why_figures.COLOURS,
        banded=["pretraining SAE"],
        bar_at=10,
    )
    figure.draw_without_rendering()
    [ax] = figure.axes
    bars = [bar for bar in ax.containers if len(bar.lines[2][0].get_segments())]
    assert len(bars) == 2 and len(ax.collections) - len(ax.containers) == 1, "one band"
    places = [bar.lines[2][0].get_transform().transform(bar.lines[2][0].get_segments()[0])[0, 0] for bar in bars]
    assert places[1] - places[0] > 3, "pixels"
    assert ax.get_ylim()[0] < rows.loc[rows["k"] == 10, "low"].min(), "none is cut off"
    colours = {line.get_label(): line.get_color() for line in ax.lines}
    assert {name: colours[name] for name in rows["variant"]} == {
        name: why_figures.COLOURS[name] for name in rows["variant"]
    }


def test_the_settings_used_are_the_ticks_also_where_one_has_four_digits():
    rows = pd.DataFrame({"setting": [60, 200, 600, 1702], "split": "val", "probe": "dense", "value": 0.9})
    rows = rows.assign(low=0.8, high=1.0)
    [ax] = figures.curves(rows, "setting", "split", "probe", "prompts", logx=True).axes
    assert ax.get_xticks().tolist() == [60, 200, 600, 1702] and not len(ax.get_xticks(minor=True))
    [ax] = figures.curves(rows.assign(setting=rows["setting"] + 0.12345), "setting", "split", "probe", "L0").axes
    assert ax.get_xticks().tolist() != (rows["setting"] + 0.12345).tolist(), "measured values keep the axis' own"


def test_a_panel_of_its_own_scale_is_not_so_low_that_thousandths_look_like_differences():
    rows = table().assign(layer=1)
    rows.loc[rows["split"] == "val", ["value", "low", "high"]] = [0.999, 0.998, 1.0]
    figure = figures.curves(rows, "layer", "split", "probe", "layer", share_y=False)
    low, high = figure.axes[0].get_ylim()
    assert high - low >= figures.LEAST_HEIGHT and low < 0.998 and high >= 1.0


def test_one_line_alone_needs_no_legend():
    rows = table().assign(layer=1)
    figure = figures.curves(rows[rows["probe"] == "dense"], "layer", "split", "probe", "layer")
    assert not figure.legends
    [legend] = figures.curves(rows.iloc[:3], "layer", "split", "probe", "layer").legends
    assert [text.get_text() for text in legend.get_texts()] == ["dense", "words"], "also what the last panel lacks"


def test_bins_of_lengths_hold_whole_words():
    rng = np.random.default_rng(0)
    words = rng.integers(1, 90, 400)
    prompts = pd.DataFrame({"text": [" ".join(["w"] * n) for n in words], "split": "train", "label": words % 2})
    [ax] = figures.lengths(prompts).axes
    edges = np.unique(np.concatenate([path.vertices[:, 0] for p in ax.collections for path in p.get_paths()]))
    assert (np.mod(edges, 1) == 0.5).all() and set(np.diff(edges)) == {3}


def test_counts_of_frequencies_begin_at_zero():
    samples = {"a": [np.full(300, 0.01)], "b": [np.array([0.01, 0.2])]}
    figure = sae_figures.frequency_histograms(samples, "a", 0.1)
    for ax in figure.axes:
        assert ax.get_ylim()[0] == 0 and ax.get_yticks().tolist() == [0, 1, 5, 20, 50, 100, 200]


def test_no_word_of_a_caption_stands_alone():
    text = " ".join(["word"] * 21)
    lines = figures._balanced(text, 100).splitlines()
    assert len(lines) == 2 and [len(line.split()) for line in lines] == [11, 10]
    assert "95\N{NO-BREAK SPACE}% of" in figures._balanced("95 % of " * 30, 50).replace("\n", " ")
    assert figures._balanced("short", 100) == "short" and figures._balanced("", 100) == ""
