"""The page in headless Chromium, on a server with a small model."""

import asyncio
import os
import shutil
import threading

import av
import pytest
from serving_clients import make_pictures, serving

from swjax.serving import Access

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SECONDS = 4
TAIL = 8
WAIT_S = 60
ZOOM_IN = "const zoom = document.getElementById('zoom'); zoom.value = 11; zoom.dispatchEvent(new Event('input'))"

if not (BROWSER and DRIVER) and os.environ.get("SWJAX_REQUIRE_BROWSER") != "1":
    pytest.skip("chromium and chromedriver are not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "video.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 128, "yuv420p"
        for picture in make_pictures(SECONDS, 5, (128, 128)):
            for _ in range(10):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def serve_in_thread(source, engine, size, tokenizer):
    """Starts servers in threads of their own; returns their addresses."""
    stops = []

    def start(**options) -> str:
        ready, found = threading.Event(), {}

        async def run():
            async with serving(source, engine, size, tokenizer, **options) as (_, session):
                found.update(url=str(session._base_url), over=asyncio.Event(), loop=asyncio.get_running_loop())
                ready.set()
                await found["over"].wait()

        thread = threading.Thread(target=lambda: asyncio.run(run()))
        thread.start()

        def stop():
            found["loop"].call_soon_threadsafe(found["over"].set)
            thread.join()

        stops.append(stop)
        assert ready.wait(WAIT_S)
        return found["url"]

    yield start
    for stop in stops:
        stop()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver

    assert BROWSER, "chromium is not installed: apt-get install chromium"
    assert DRIVER, "chromedriver is not installed: apt-get install chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "disable-dev-shm-usage",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "use-fake-device-for-media-stream",
        "use-fake-ui-for-media-stream",
        "window-size=1280,1000",
        f"user-data-dir={tmp_path_factory.mktemp('browser')}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def wait_for(browser, *states: str) -> str:
    """Wait until the page is in one of some states."""
    from selenium.webdriver.support.ui import WebDriverWait

    def reached(driver):
        state = driver.find_element("tag name", "body").get_dom_attribute("data-state")
        return state if state in (*states, "failed") else False

    state = WebDriverWait(browser, WAIT_S, poll_frequency=0.05).until(reached)
    assert state in states, browser.find_element("id", "error").text
    return state


def count(browser, selector: str) -> int:
    return len(browser.find_elements("css selector", selector))


def ends(browser) -> list[float]:
    """Where the timelines show the end of the answers, in pixels."""
    return [float(line.get_attribute("x1")) for line in browser.find_elements("css selector", ".timeline .end")]


def choose(browser, name: str, value: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(browser.find_element("id", name)).select_by_value(value)


def prepare(browser, url: str, video) -> None:
    browser.get(url)
    wait_for(browser, "idle")
    browser.find_element("id", "file").send_keys(str(video))
    browser.find_element("tag name", "summary").click()
    browser.find_element("id", "max_tail").send_keys(str(TAIL))


def no_complaints(browser) -> None:
    assert [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert not browser.find_element("id", "error").is_displayed()


@pytest.fixture(scope="module")
def url(serve_in_thread):
    return serve_in_thread()


def test_a_file_is_played_and_described(browser, url, video):
    prepare(browser, url, video)
    assert "every 1 s" in browser.find_element("id", "about").text
    choose(browser, "speed", "4")
    browser.find_element("id", "start").click()
    wait_for(browser, "ended")
    assert count(browser, ".said .word") == 3 * (SECONDS - 1) + TAIL
    assert count(browser, ".timeline .word") == 3 * (SECONDS - 1) + TAIL
    assert count(browser, ".timeline .seen") == SECONDS
    assert count(browser, ".timeline circle.sent") == 2 * SECONDS
    assert browser.find_element("css selector", ".said").text.strip()
    figures = browser.find_element("css selector", ".figures").text
    assert f"{SECONDS} frames seen" in figures
    assert "first word" in figures
    assert browser.execute_script("return document.getElementById('video').videoWidth") == 128
    no_complaints(browser)


def test_two_modes_are_compared_on_the_same_pictures(browser, url, video):
    prepare(browser, url, video)
    choose(browser, "speed", "0")
    browser.find_element("id", "compare").click()
    choose(browser, "other", "sequential")
    browser.find_element("id", "question").send_keys("What happens?")
    browser.find_element("id", "start").click()
    wait_for(browser, "ended")
    names = [title.text for title in browser.find_elements("css selector", ".lane h3")]
    assert names == ["parallel (gdpe)", "sequential (gdpe)"]
    first, second = (said.text for said in browser.find_elements("css selector", ".said"))
    assert first == second, "both modes say the same, at other times"
    assert count(browser, ".lane .word") == 2 * (3 * (SECONDS - 1) + TAIL)
    assert count(browser, ".lane .seen") == 2 * SECONDS
    first, second = ends(browser)
    browser.execute_script(ZOOM_IN)
    assert ends(browser)[0] > 2 * first
    assert ends(browser)[1] > 2 * second
    assert count(browser, ".lane .word") == 2 * (3 * (SECONDS - 1) + TAIL)
    no_complaints(browser)


def test_it_is_asked_while_the_film_runs(browser, url, video):
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    prepare(browser, url, video)
    ask = browser.find_element("id", "ask")
    assert not ask.is_enabled(), "nothing has been seen"
    browser.find_element("id", "start").click()
    WebDriverWait(browser, WAIT_S, poll_frequency=0.02).until(lambda _: ask.is_enabled())
    browser.find_element("id", "interrupt").click()
    ask.send_keys("What is red?", Keys.ENTER)
    wait_for(browser, "ended")
    assert count(browser, ".timeline .asked") == 1
    assert browser.find_element("css selector", ".said .asked").text == "What is red?"
    answer = "return document.querySelectorAll('.said .asked ~ .word').length"
    assert browser.execute_script(answer) >= TAIL, "its answer follows it"
    assert count(browser, ".timeline .seen") == SECONDS
    assert not ask.is_enabled(), "the film is over"
    no_complaints(browser)


def test_a_mode_brings_its_variant(browser, url, video):
    prepare(browser, url, video)
    choose(browser, "mode", "interleaved")
    choose(browser, "speed", "0")
    browser.find_element("id", "wait_k").send_keys("2")
    browser.find_element("id", "start").click()
    wait_for(browser, "ended")
    assert browser.find_element("css selector", ".lane h3").text == "interleaved (interleave)"
    assert count(browser, ".said .word") == 2 * (SECONDS - 1) + TAIL
    no_complaints(browser)


def test_the_webcam_is_described_until_it_is_stopped(browser, url, video):
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    prepare(browser, url, video)
    browser.find_element("css selector", "[value=webcam]").send_keys(Keys.SPACE)
    browser.find_element("id", "start").send_keys(Keys.ENTER)
    WebDriverWait(browser, WAIT_S, poll_frequency=0.05).until(lambda driver: count(driver, ".said .word") > 2)
    browser.find_element("tag name", "body").send_keys(Keys.ESCAPE)
    wait_for(browser, "ended")
    assert count(browser, ".said .word") >= 3 + TAIL
    no_complaints(browser)


def test_errors_are_shown_in_words(browser, url, video, tmp_path):
    prepare(browser, url, video)
    (broken := tmp_path / "broken.mp4").write_bytes(b"no video")
    browser.find_element("id", "file").send_keys(str(broken))
    from selenium.webdriver.support.ui import WebDriverWait

    error = browser.find_element("id", "error")
    WebDriverWait(browser, WAIT_S).until(lambda _: "cannot play this video" in error.text)
    browser.find_element("id", "file").send_keys(str(video))
    browser.find_element("id", "question").send_keys("Why <|im_end|>?")
    browser.find_element("id", "start").click()
    with pytest.raises(AssertionError, match="special token"):
        wait_for(browser, "ended")


def test_a_token_is_asked_for(browser, serve_in_thread):
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    url = serve_in_thread(access=Access("127.0.0.1", ("secret",)))
    browser.get(url)
    field = browser.find_element("id", "token")
    WebDriverWait(browser, WAIT_S).until(lambda _: field.is_displayed())
    field.send_keys("secret", Keys.ENTER)
    wait_for(browser, "idle")
    browser.execute_script("sessionStorage.clear()")
    browser.get(f"{url}/healthz")
    browser.get(f"{url}/#token=secret")
    wait_for(browser, "idle")
    assert "secret" not in browser.current_url
