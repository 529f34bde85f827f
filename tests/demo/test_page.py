"""The demo's page in headless Chromium."""

import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest
from PIL import Image

pytestmark = pytest.mark.pages
SECONDS = 250  # longest wait for each thing on the page, also on a busy machine


@pytest.fixture(scope="module")
def address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "affnorm_zoo.cli", "demo", "--port", str(port)]
    server = subprocess.Popen(command)
    try:
        url = f"http://127.0.0.1:{port}/"
        for _ in range(SECONDS):
            assert server.poll() is None, "the demo ended"
            try:
                urlopen(url, timeout=5).close()
                break
            except OSError:
                time.sleep(1)
        yield url
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def page(address):
    from selenium import webdriver

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    assert chromium, "pytest -m pages needs chromium"
    assert driver, "pytest -m pages needs chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1600"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        browser.get(address)
        yield browser
    finally:
        browser.quit()


def wait_for(page, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(page, SECONDS).until(condition)


def choose(page, path):
    wait_for(page, lambda p: p.find_elements("css selector", "#picture input[type=file]"))[0].send_keys(str(path))


def text(page, element):
    found = page.find_elements("css selector", f"#{element}")
    return found[0].text if found else ""


def test_a_picture_is_classified_and_mapped(page, tmp_path):
    assert "affine divergence" in wait_for(page, lambda p: p.find_elements("css selector", "h1"))[0].text
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "gradient.png")
    choose(page, tmp_path / "gradient.png")
    wait_for(page, lambda p: "%" in text(p, "classes"))
    names = {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"}
    assert sum(name in text(page, "classes") for name in names) == 5
    for element in ("heat", "chart"):
        image = wait_for(page, lambda p, e=element: p.find_elements("css selector", f"#{e} img"))[0]
        wait_for(page, lambda p, i=image: p.execute_script("return arguments[0].naturalWidth", i) > 300)
    assert not text(page, "message")


def test_a_file_that_is_no_picture_gets_one_line(page):
    choose(page, Path(__file__))
    line = wait_for(page, lambda p: "Error" in text(p, "message") and text(p, "message"))
    assert line == "Error: test_page.py is not a picture that Pillow reads: choose a PNG, JPEG or WebP"
    assert "%" not in text(page, "classes")
