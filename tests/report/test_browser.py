"""The page in a real browser, wide and as narrow as a phone: what its script shows, and what it does on a key."""

import http.server
import json
import os
import re
import shutil
import subprocess
import threading
import time
from html import unescape
from pathlib import Path

import pytest

from report.run_folders import HOSTILE, logged_rollouts, write_run
from tropd.report.run_page import run_page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium is installed (Debian: apt install chromium)")

# Loads the page in a frame of its own, does what a person would, and writes down what is to be seen.
VISITOR = """<!doctype html><iframe id="frame" width="%d" height="900" src="/page#%s"></iframe><pre id="seen"></pre>
<script>
document.getElementById("frame").onload = (event) => {
  const page = event.target.contentDocument, at = (id) => page.getElementById(id);
  const press = (key) => page.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
  const choose = (id, value) => { at(id).value = value; at(id).dispatchEvent(new Event("input", {bubbles: true})); };
  const look = () => ({
    panel: at("panel").hidden ? "" : at("panel").innerText, text: at("text").innerText, found: at("found").innerText,
    token: page.querySelector(".sel") && page.querySelector(".sel").textContent,
    focused: page.activeElement.classList.contains("sel"), hits: page.querySelectorAll(".hit").length,
    hash: event.target.contentWindow.location.hash,
  });
  const seen = {images: page.images.length, start: look()};
  seen.overflow = page.documentElement.scrollWidth - page.documentElement.clientWidth;
  page.querySelector(".sel").focus();
  press("ArrowRight"); seen.right = look();
  press("n"); seen.next = look();
  choose("by-region", "1"); seen.outliers = look();
  choose("by-depth", "-5"); seen.deep = look();
  choose("by-depth", ""); choose("by-region", ""); choose("by-text", "sort A"); seen.words = look();
  choose("by-text", "nowhere"); seen.none = look();
  document.getElementById("seen").textContent = JSON.stringify(seen);
};
</script>"""


class Site:
    """Pages on this machine, and a browser that goes to them.

    Attributes:
        pages: by their path.
        asked: paths that were asked for, in order.
    """

    def __init__(self, server: http.server.HTTPServer, folder: Path):
        self.server, self.folder = server, folder
        self.pages: dict[str, str] = {}
        self.asked: list[str] = []

    def command(self, *options: str) -> list[str]:
        """The browser at the first page."""
        unboxed = ["--no-sandbox"] if os.geteuid() == 0 else []
        profile = f"--user-data-dir={self.folder / 'browser'}"
        address = f"http://127.0.0.1:{self.server.server_port}/"
        return [
            BROWSER,
            "--headless=new",
            "--disable-gpu",
            profile,
            "--window-size=1400,1000",
            *unboxed,
            *options,
            address,
        ]

    def visit(self, page: str, width: int, place: str = "") -> dict:
        """What a visitor has seen of a page in a browser of some width."""
        self.pages.update({"/": VISITOR % (width, place), "/page": page})
        command = self.command("--virtual-time-budget=5000", "--dump-dom")
        printed = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
        found = re.search(r'<pre id="seen">(.+?)</pre>', printed, re.DOTALL)
        assert found, printed[-2000:]
        return json.loads(unescape(found[1]))


@pytest.fixture
def site(tmp_path):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found.asked.append(self.path)
            body = found.pages.get(self.path, "").encode()
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Site(server, tmp_path)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield found
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("width", [1280, 390])
def test_a_person_finds_a_token_and_what_was_made_of_it(tmp_path, site, width):
    seen = site.visit(run_page([write_run(tmp_path / "run", rollouts=logged_rollouts())]), width)
    assert seen["overflow"] == 0, "nothing but a table scrolls to the side"
    assert seen["images"] == 0, "what a model wrote is text"
    start = seen["start"]
    assert start["found"] == "3 of 3 rollouts." and start["token"] == " 9", "the first outlier of the fullest rollout"
    panel = " ".join(start["panel"].split())
    for words in ("outlier", "−7.250 nats", "K1 term, −r 7.250", "forward KL over the top-k 1.500", "“ 3”", "99.0%"):
        assert words in panel
    assert "60.7% (log −0.500)" in panel and "0.0431% (log −7.750)" in panel, "both models' probabilities"
    assert seen["right"]["token"] == "↵\n" and seen["right"]["focused"]
    assert "K1 term" in seen["right"]["panel"] and "were not logged" in seen["right"]["panel"]
    assert seen["next"]["token"] == "∅" and "left out" in seen["next"]["panel"]
    assert seen["outliers"]["found"] == "2 of 3 rollouts, 2 tokens in them." and seen["outliers"]["hits"] == 1
    assert seen["deep"]["found"] == "1 of 3 rollouts, 1 token in them." and "at=0.1.0.2" in seen["deep"]["hash"]
    assert seen["words"]["found"] == "1 of 3 rollouts." and "fine" in seen["words"]["text"]
    assert seen["none"]["found"] == "0 of 3 rollouts." and seen["none"]["panel"] == ""


def test_an_address_leads_back_to_its_token(tmp_path, site):
    page = run_page([write_run(tmp_path / "run", rollouts=logged_rollouts())])
    start = site.visit(page, 1280, "at=0.3.0.0")["start"]
    assert start["token"] == HOSTILE.replace("\u202e", "\\u202e").replace("\x1b", "\\x1b")


def test_a_page_that_follows_a_run_asks_again(tmp_path, site):
    site.pages["/"] = run_page([write_run(tmp_path / "run")], follow=1)
    browser = subprocess.Popen(
        site.command("--remote-debugging-port=0"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while site.asked.count("/") < 3 and time.monotonic() < deadline:
        time.sleep(0.2)
    browser.terminate()
    browser.wait(timeout=30)
    assert site.asked.count("/") >= 3
