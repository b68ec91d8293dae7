"""The page of the server works in headless Chromium."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import write_random
from serving import PATIENCE, Served, listening

from pyrerank import Reranker

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")), reason="no Chromium here"
    ),
]
CAT = Path(__file__).parents[1] / "data/pictures/cat.jpg"


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("vl")
    write_random(folder, "qwen3-vl-reranker", tied=True)
    served = Served(Reranker(folder, device="cpu"), api_keys=("my-key",))
    yield served
    served.close()


@pytest.fixture(scope="module")
def address(served) -> Iterator[str]:
    with listening(served) as (host, port):
        yield f"http://{host}:{port}/"


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (
        "headless=new", "no-sandbox", "disable-gpu", "no-first-run", "disable-sync",
        "disable-background-networking", "disable-component-update", "window-size=1100,900",
        f"user-data-dir={tmp_path_factory.mktemp('browser')}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, address) -> webdriver.Chrome:
    browser.get(address)
    return browser


def keyed(page: webdriver.Chrome) -> None:
    page.find_element(By.TAG_NAME, "summary").click()
    page.find_element(By.ID, "key").send_keys("my-key")


def texts(page: webdriver.Chrome) -> list:
    return page.find_elements(By.TAG_NAME, "textarea")


def until(page: webdriver.Chrome, what: str) -> str:
    """The text of an element, once it has one that is final."""

    def found(page: webdriver.Chrome) -> str:
        text: str = page.find_element(By.ID, what).text
        return "" if text.endswith("…") else text

    return WebDriverWait(page, PATIENCE).until(found)


def results(page: webdriver.Chrome) -> list[str]:
    return [item.text for item in page.find_elements(By.CSS_SELECTOR, "#results li")]


def press(page: webdriver.Chrome, *keys: str) -> None:
    """Keys for whatever has the focus."""
    webdriver.ActionChains(page).send_keys(*keys).perform()


def test_ranking_by_keyboard(page, served):
    keyed(page)
    documents = ["red", "<b>green</b>", "blue"]
    texts(page)[0].click()
    press(page, "a colour")
    for document in documents:
        press(page, Keys.TAB, Keys.TAB, document)  # past the pictures
    for _ in range(6):
        if page.switch_to.active_element.get_attribute("id") == "rank":
            break
        press(page, Keys.TAB)
    press(page, Keys.ENTER)
    assert re.match(r"3 documents, \d+ tokens, \d+ ms", until(page, "status"))
    want = served.engine.rank("a colour", documents)
    for shown, each in zip(results(page), want, strict=True):
        assert shown.startswith(f"{each.score:.6f} (logit ") and shown.endswith(each.document)
    assert page.switch_to.active_element.get_attribute("id") == "rank"


def test_pictures(page, served):
    keyed(page)
    texts(page)[0].send_keys("a cat")
    files = page.find_elements(By.CSS_SELECTOR, "input[type=file]")
    files[2].send_keys(str(CAT))
    texts(page)[1].send_keys("a dog")
    page.find_element(By.ID, "rank").click()
    until(page, "status")
    want = served.engine.rank("a cat", ["a dog", {"image": str(CAT)}])
    assert [shown[:8] for shown in results(page)] == [f"{each.score:.6f}" for each in want]
    shown = page.find_elements(By.CSS_SELECTOR, "#results img")
    assert [image.get_attribute("alt") for image in shown] == ["cat.jpg"]
    assert int(shown[0].get_attribute("naturalWidth")) > 0


def test_more_documents_and_a_mistake(page):
    keyed(page)
    texts(page)[0].send_keys("a cat")
    page.find_element(By.ID, "add").click()
    assert page.switch_to.active_element == texts(page)[4]
    files = page.find_elements(By.CSS_SELECTOR, "input[type=file]")
    texts(page)[1].send_keys("a dog")
    files[3].send_keys(str(Path(__file__)))  # no picture
    page.find_element(By.ID, "rank").click()
    assert "documents[1], part[0] is not a picture" in until(page, "error")
    assert page.switch_to.active_element == texts(page)[3]
    assert not results(page)


def test_without_a_key(page):
    texts(page)[0].send_keys("a")
    texts(page)[1].send_keys("b")
    page.find_element(By.ID, "rank").click()
    assert until(page, "error") == "a valid API key is needed"


def test_every_control_has_a_name_for_a_screen_reader(page):
    tree = page.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    controls = {"textbox", "button", "image", "DisclosureTriangle"}
    found = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in tree
        if not node["ignored"] and node["role"]["value"] in controls
    ]
    assert len(found) >= 4 + 4 + 2 and all(name for _, name in found), found
    groups = [n["name"]["value"] for n in tree if n.get("role", {}).get("value") == "group"]
    assert {"Query", "Document 1", "Document 2", "Document 3"} <= set(groups)


def test_nothing_is_asked_of_others_and_nothing_is_blocked(page, address):
    page.get_log("performance"), page.get_log("browser")
    page.refresh()
    until(page, "ranking")
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    urls = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert urls and all(url.startswith(address) for url in urls), urls
    messages = [entry["message"] for entry in page.get_log("browser")]
    # without a key, it does not learn the model's name; and it has no icon
    assert [m for m in messages if "v1/models" not in m and "favicon" not in m] == []


def test_a_server_without_a_page(served):
    bare = Served(served.engine, page=False)
    try:
        assert bare.get("/").status_code == 404
    finally:
        bare.close()
