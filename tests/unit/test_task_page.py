import base64
import hashlib
import re

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from lib.results import task_page
from lib.results.task_page import About

ABOUT = About("Do SAEs help on my tasks?", "a model", 15, ["mine", "other"], 16, "mine", 0.02)
HOSTILE = "<script>alert(1)</script>"


def row(task="a", probe="dense", value=0.9, variant=None, k=np.nan, setting="normal", level=np.nan):
    return {
        "task": task, "kind": f"kind of {task}", "setting": setting, "level": level, "probe": probe,
        "variant": variant, "k": k, "n_train": 100, "n_test": 200,
        "value": value, "low": value - 0.03, "high": min(1, value + 0.02),
    }  # fmt: skip


def pair(task, dense, sae, **where):
    return [row(task, value=dense, **where), row(task, "k-sparse", sae, "mine", 16, **where)]


def average(value=-0.031, low=-0.045, high=-0.018, verdict="behind", n=12, wins=2, **key):
    key = {"setting": "normal", "level": np.nan, "probe": "k-sparse", "variant": "mine", "k": 16} | key
    return key | {"value": value, "low": low, "high": high, "win_rate": wins / n, "n": n, "verdict": verdict}


def parsed(tasks, averages=None, about=ABOUT):
    html = task_page.page(pd.DataFrame(tasks), pd.DataFrame(averages or [average()]), about)
    return BeautifulSoup(html, "html.parser")


def labels(soup):
    return [label.get_text() for label in soup.select("svg.wide text.label")]


@pytest.mark.parametrize(
    "of_run, sentence",
    [
        (
            average(),
            "No: on these 12 tasks, probes on 16 latents are behind the dense probe by 0.031 AUROC on average "
            "(95 % 0.018 to 0.045 over tasks; ahead on 2 of 12).",
        ),
        (
            average(0.0304, 0.0126, 0.0451, "ahead", n=7, wins=6),
            "Yes: on these 7 tasks, probes on 16 latents are ahead of the dense probe by 0.030 AUROC on average "
            "(95 % 0.013 to 0.045 over tasks; ahead on 6 of 7).",
        ),
        (
            average(-0.0004, -0.008, 0.007, "no difference", wins=5),
            "They make no difference: on these 12 tasks, probes on 16 latents differ from the dense probe by 0.000 "
            "AUROC on average (95 % −0.008 to +0.007 over tasks, where 0.02 would matter; ahead on 5 of 12).",
        ),
        (
            average(0.006, -0.011, 0.027, "inconclusive", wins=7),
            "Cannot tell: on these 12 tasks, probes on 16 latents differ from the dense probe by +0.006 AUROC on "
            "average (95 % −0.011 to +0.027 over tasks, where 0.02 would matter; ahead on 7 of 12).",
        ),
        (
            average(0.05, np.nan, np.nan, "ahead", n=1, wins=1),
            "Yes: on this one task, a probe on 16 latents is ahead of the dense probe by 0.050 AUROC (one task gives "
            "no interval over tasks).",
        ),
        (
            average(-0.02, np.nan, np.nan, "inconclusive", n=2, wins=0),
            "Cannot tell: on these 2 tasks, probes on 16 latents differ from the dense probe by −0.020 AUROC on "
            "average (no interval over tasks; ahead on 0 of 2).",
        ),
    ],
)
def test_the_first_sentence_is_the_verdict_with_its_numbers(of_run, sentence):
    others = [average(0.5, 0.4, 0.6, "ahead", **key) for key in ({"k": 1}, {"variant": "other"}, {"setting": "ood"})]
    rows = [average(0.5, 0.4, 0.6, "ahead", probe="TF-IDF", variant=None, k=np.nan), *others, of_run]
    assert task_page.answer(pd.DataFrame(rows), ABOUT) == sentence
    soup = parsed(pair("a", 0.9, 0.8), rows)
    assert soup.h1.find_next_sibling("p").get_text() == sentence


def test_without_the_probe_there_is_no_answer():
    rows = pd.DataFrame([average(k=1)])
    sentence = "Cannot tell: no task has both a dense probe and a probe on 16 latents of mine."
    assert task_page.answer(rows, ABOUT) == sentence
    assert task_page.answer(pd.DataFrame([average(np.nan, verdict=None)]), ABOUT) == sentence
    assert task_page.answer(pd.DataFrame([average(k=1)]), ABOUT._replace(k=1)).startswith("No: on these 12 tasks, prob")
    soup = parsed([row("a")], [average(k=1)])
    assert not soup.select("svg.wide") and "No task has values of both probes" in soup.get_text()


def test_texts_are_escaped_and_only_the_template_s_script_may_run():
    about = ABOUT._replace(
        title=f"title {HOSTILE}", model=HOSTILE, saes=["mine", HOSTILE], notes=[f"cut {HOSTILE}"], measured=[HOSTILE]
    )
    tasks = [*pair(HOSTILE, 0.9, 0.8), row(f"'\" {HOSTILE}"), row(HOSTILE, "control", 0.6, HOSTILE, 16)]
    averages = pd.DataFrame([average(), average(variant=HOSTILE)])
    html = task_page.page(pd.DataFrame(tasks).assign(kind=HOSTILE), averages, about)
    assert HOSTILE not in html and "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:|#)|url\(|@import|https?://", html)
    (script,) = BeautifulSoup(html, "html.parser").find_all("script")
    digest = base64.b64encode(hashlib.sha256(script.string.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', html)
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_a_task_without_a_value_is_in_the_table_and_among_the_notes_but_not_in_the_figure():
    soup = parsed([*pair("whole", 0.9, 0.85), row("half", value=0.7), *pair("empty", 0.8, np.nan)])
    assert len(soup.select("svg.wide .point")) == 1
    cells = {tr.th.get_text(): [td.get_text() for td in tr.find_all("td")] for tr in soup.select("#normal tbody tr")}
    assert list(cells)[0] == "whole"
    assert cells["half"][:3] == ["n/a", "0.700 0.670 to 0.720", "n/a"] and cells["empty"][2] == "n/a"
    (note,) = soup.select("h2 + ul li")
    assert note.get_text().endswith("not in the figure: half, empty.")


def test_one_task_has_a_point_with_title_and_label():
    soup = parsed(pair("the task", 0.9, 0.85), [average(-0.05, np.nan, np.nan, "inconclusive", n=1, wins=0)])
    (point,) = soup.select("svg.wide .point")
    assert point["tabindex"] == "0"
    assert point.title.get_text() == (
        "the task (kind of the task): dense 0.900 (0.870 to 0.920), probe on 16 latents 0.850 (0.820 to 0.870), "
        "difference −0.050"
    )
    assert labels(soup) == ["−0.050 the task"]
    assert "one task gives no interval over tasks" in soup.select_one(".answer").get_text()


def test_labels_are_those_of_the_ten_largest_differences_and_do_not_overlap():
    rng = np.random.default_rng(0)
    differences = rng.permutation([*np.linspace(-0.2, -0.1, 6), *np.linspace(0.1, 0.15, 4), *[0.05] * 8, *[-0.01] * 7])
    tasks = [pair(f"task {i}", 0.8, 0.8 + difference) for i, difference in enumerate(differences)]
    soup = parsed(sum(tasks, []))
    expected = {f"task {i}" for i, difference in enumerate(differences) if abs(difference) > 0.09}
    assert len(expected) == 10 and {label.partition(" ")[2] for label in labels(soup)} == expected
    listed = [item.bdi.get_text() for item in soup.select("figure ol li")]
    assert listed[0] == f"task {differences.argmin()}" and set(listed) == expected
    for drawing, height in (("wide", 18), ("narrow", 15)):
        at = [float(label["y"]) for label in soup.select(f"svg.{drawing} text.label")]
        assert min(np.diff(at)) >= height - 0.02


def test_labels_are_spread_no_more_than_needed():
    assert task_page.spread([10.0, 50.0, 90.0], 15.0, 0.0, 100.0) == [10, 50, 90]
    assert task_page.spread([50.0, 50.0, 90.0], 20.0, 0.0, 100.0) == [40, 60, 90]
    assert task_page.spread([95.0, 98.0], 10.0, 0.0, 100.0) == pytest.approx([90, 100])
    assert task_page.spread([], 10.0, 0.0, 100.0) == []


def test_settings_are_averaged_apart_and_levels_are_words():
    scarce = {"setting": "scarcity", "level": 16.0}
    tasks = [*pair("a", 0.9, 0.8), *pair("a", 0.7, 0.75, **scarce), row("a", "TF-IDF", 0.6), row("a", "all latents")]
    averages = [average(**scarce), average(), average(setting="label noise", level=0.1), average(k=1, **scarce)]
    soup = parsed(tasks, averages)
    (by_setting, rest) = soup.select('[aria-label^="Averages"]')
    names = [th.get_text() for th in by_setting.select("tbody th")]
    assert names == ["normal", "scarcity 16 training rows", "label noise 10 % of labels flipped"]
    assert rest.find_parent("details") and len(rest.select("tbody tr")) == 1
    headers = [th.get_text() for th in soup.select("#normal thead th")]
    assert headers[1:6] == ["difference", "dense", "16 latents", "TF-IDF", "all latents"]
    (other,) = soup.select("details .sortable tbody tr")
    assert [td.get_text() for td in other.find_all("td")][:2] == ["scarcity 16 training rows", "+0.050"]


def test_what_cannot_be_shown_is_refused():
    tasks, averages = pd.DataFrame(pair("a", 0.9, 0.8)), pd.DataFrame([average()])
    with pytest.raises(ValueError, match="tasks lacks the columns \\['kind'\\]"):
        task_page.page(tasks.drop(columns="kind"), averages, ABOUT)
    with pytest.raises(ValueError, match="two rows of {'task': 'a'"):
        task_page.page(pd.concat([tasks, tasks]), averages, ABOUT)
    with pytest.raises(ValueError, match="unknown setting 'odd'"):
        task_page.page(tasks.assign(setting="odd"), averages, ABOUT)
    with pytest.raises(ValueError, match="unknown verdict 'better'"):
        task_page.page(tasks, averages.assign(verdict="better"), ABOUT)
    with pytest.raises(ValueError, match="2 rows of the probe on 16 latents of mine"):
        task_page.answer(pd.DataFrame([average(), average()]), ABOUT)


def test_the_page_is_written(tmp_path):
    tasks, averages = pd.DataFrame(pair("Straße – 日本語", 0.9, 0.8)), pd.DataFrame([average()])
    path = task_page.save(tmp_path / "new" / "tasks.html", tasks, averages, ABOUT)
    assert path.read_text(encoding="utf-8") == task_page.page(tasks, averages, ABOUT)


@pytest.mark.slow
def test_search_and_sort_in_a_browser(browser, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    tasks = [*pair("pears", 0.9, 0.95), *pair(f"Apples {HOSTILE}", 0.8, 0.7), row("plums", value=0.99)]
    path = task_page.save(tmp_path / "tasks.html", pd.DataFrame(tasks), pd.DataFrame([average()]), ABOUT)
    browser.get(path.as_uri())

    def shown():
        rows = browser.find_elements(By.CSS_SELECTOR, "#normal tbody tr")
        return [row.find_element(By.TAG_NAME, "th").text.split()[0] for row in rows if row.is_displayed()]

    assert shown() == ["pears", "Apples", "plums"]
    task, difference, dense = browser.find_elements(By.CSS_SELECTOR, "#normal thead button")[:3]
    difference.click()
    assert shown() == ["Apples", "pears", "plums"]  # what was not measured comes last
    dense.send_keys(Keys.ENTER)
    assert shown() == ["plums", "pears", "Apples"]
    task.send_keys(Keys.SPACE)
    assert shown() == ["Apples", "pears", "plums"]
    browser.find_element(By.ID, "search").send_keys("PEAR")
    assert shown() == ["pears"] and browser.find_element(By.ID, "count").text == "1 of 3 tasks"
    point = browser.find_elements(By.CSS_SELECTOR, "svg.wide .point")[1]
    browser.execute_script("arguments[0].focus()", point)
    assert browser.find_element(By.ID, "read").text == point.find_element(By.TAG_NAME, "title").get_property(
        "textContent"
    )
    assert browser.get_log("browser") == []
