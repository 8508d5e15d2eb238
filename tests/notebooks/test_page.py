"""The page of latent cards in a real browser (Debian: chromium and chromium-driver)."""

from pathlib import Path

import numpy as np
import pytest

from lib.interp import cards
from lib.interp.cards import Card
from lib.interp.examples import Example

pytestmark = pytest.mark.slow


def card(latent, frequency, score, text):
    words = [f" {word}" for word in text.split(" ")]
    facts, groups = {"frequency": frequency, "score": score}, {"top": [Example(words, np.arange(len(words)) % 11, 0)]}
    return Card("an SAE", latent, "for a test", facts, f"rule {latent}", groups)


def shown(driver):
    from selenium.webdriver.common.by import By

    latents = []
    for element in driver.find_elements(By.CLASS_NAME, "card"):
        if element.is_displayed():
            title = element.find_element(By.TAG_NAME, "h3").text
            latents.append(int(title.split("latent ")[1].split()[0]))
    return latents


def test_search_and_sort_work_and_hostile_text_is_text(browser, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    page = Path(tmp_path / "latents.html")
    hostile = "<script>document.title='taken'</script> <img src=x onerror=alert(1)> </article>"
    fruit = [
        card(1, 0.2, None, "apples and pears"),
        card(2, 0.01, 0.9, f"plums {hostile}"),
        card(3, 0.05, -0.2, "Pears only"),
    ]
    page.write_text(cards.page(fruit, "Latents"), encoding="utf-8")
    browser.get(page.as_uri())
    assert shown(browser) == [1, 2, 3] and browser.title == "Latents"
    assert "<script>document.title='taken'</script>" in browser.find_element(By.TAG_NAME, "main").text
    assert not browser.find_elements(By.TAG_NAME, "img")
    search, sort = browser.find_element(By.ID, "search"), Select(browser.find_element(By.ID, "sort"))
    search.send_keys("pears")
    assert shown(browser) == [1, 3] and browser.find_element(By.ID, "count").text == "2 of 3 latents"
    search.clear()
    search.send_keys("rule 2")
    assert shown(browser) == [2]
    search.clear()
    search.send_keys(" ")
    sort.select_by_visible_text("frequency")
    assert shown(browser) == [1, 3, 2]
    sort.select_by_visible_text("score")
    assert shown(browser) == [2, 3, 1]  # what was not measured comes last
    browser.find_element(By.ID, "ascending").click()
    assert shown(browser) == [3, 2, 1]
    sort.select_by_visible_text("as listed")
    assert shown(browser) == [1, 2, 3]
    assert browser.get_log("browser") == []
