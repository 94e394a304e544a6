"""The report: one file, everything escaped, working from file:// in a real browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests import table_tools as tools
from vtprune.harness.reporting.figures import geometry
from vtprune.harness.reporting.report import page, samples
from vtprune.harness.reporting.tables import analysis, spec

pytestmark = pytest.mark.slow

EVIL = "</script><script>document.title='pwned'</script><img src=x onerror=alert(1)> @TITLE@ @DATA@"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with its report; made once, so the tests only read it."""
    store = tmp_path_factory.mktemp("store")
    table = spec.load("mini_table2")
    tools.fill(store, table)
    for file in store.glob("runs/*/*/*/samples.jsonl"):
        entries = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for entry in entries:
            entry |= {"prompt": f"question {entry['doc_id']} {EVIL}", "reference": EVIL,
                      "answer": f"{entry['answer']} {EVIL}"}  # fmt: skip
        file.write_text("".join(json.dumps(e) + "\n" for e in entries), encoding="utf-8")
        (file.parent / "cell.yaml").write_text(
            "config: {engine: {name: e}, bench: {engines: {e: {table: none}}}}", encoding="utf-8"
        )
    text = page.build(analysis.build(table, store), store, limit=10)
    (store / "report.html").write_text(text, encoding="utf-8")
    return store


@pytest.fixture
def made(store, tmp_path):
    """A copy of the page, which a test may change."""
    return Path(shutil.copy(store / "report.html", tmp_path))


def test_the_page_needs_no_other_file(made):
    text = made.read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!data:)[^"']*["']""", text.split("<script")[0])
    assert "default-src 'none'" in text and "http" not in re.sub(r"http-equiv", "", text)


def test_what_a_model_said_never_becomes_markup(made):
    text = made.read_text(encoding="utf-8")
    assert text.count("<script") == 2 and text.count("</script>") == 2
    assert "<img src=x" not in text
    stored = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1]
    data = json.loads(stored)
    assert data["samples"][0]["reference"] == EVIL  # unharmed as data, inert as markup
    assert len(data["samples"]) == 30 and data["benches"][0]["label"] == "GQA"


def test_samples_on_which_the_rows_disagree_come_first():
    agree, differ = {0: {"score": 1}, 1: {"score": 1}, 2: {"score": 0}}, {2: {"score": 1}}
    journals = {"a": agree, "b": {**agree, **differ}}
    assert samples._interesting(journals, 1) == [2]
    assert samples._interesting(journals, 2) == [0, 2]


def test_the_overlay_says_which_tokens_stay():
    tokens = np.arange(6).reshape(2, 3)
    panel = geometry.Panel("image", tokens, (0.0, 0.0, 1.0, 1.0))
    alive = np.array([True, False, False, False, False, True])
    assert samples._panel(panel, alive) == {
        "n": "image", "r": 2, "c": 3, "k": "100001", "box": [0.0, 0.0, 1.0, 1.0]
    }  # fmt: skip


def test_the_page_is_the_same_twice(store):
    table = spec.load("mini_table2")
    again = page.build(analysis.build(table, store), store, limit=10)
    assert again == (store / "report.html").read_text(encoding="utf-8")


def test_the_numbers_can_be_sorted_and_explained(made):
    text = made.read_text(encoding="utf-8")
    assert 'data-sort="' in text and "95 % interval" in text and "McNemar, Holm" in text


def probe(made, script):
    """Let the page run a script of the test as well, which its policy forbids."""
    text = made.read_text(encoding="utf-8").replace("</body>", script)
    text, n = re.subn(r"script-src '[^']*'", "script-src 'unsafe-inline'", text, count=1)
    assert n == 1
    made.write_text(text, encoding="utf-8")


def browser() -> str:
    found = next((shutil.which(name) for name in BROWSERS if shutil.which(name)), None)
    if found is None:
        pytest.skip("no Chromium here (apt-get install chromium): the report was not rendered")
    return found


def chromium(*arguments):
    line = [browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--hide-scrollbars", "--virtual-time-budget=4000", *arguments]  # fmt: skip
    return subprocess.run(line, capture_output=True, text=True, timeout=120, encoding="utf-8")


@pytest.mark.slow
def test_the_page_works_from_a_file_in_chromium(made):
    script = """<script>
      byId("method").value = "2"; byId("which").value = "lost";
      byId("which").dispatchEvent(new Event("input"));
      const head = [...document.querySelectorAll("table.grid thead th")][2];
      const large = head.closest("table").tBodies[0].rows[0].cells[2];
      large.dataset.sort = "1000"; large.textContent = "1000.00";  // as text it comes before 60
      head.click();
      document.body.dataset.lost = document.querySelectorAll("article").length;
      document.body.dataset.order = [...head.closest("table").tBodies[0].rows]
        .map(r => r.cells[2].dataset.sort).join(" ");
      document.body.dataset.wide = document.documentElement.scrollWidth <= innerWidth;
    </script></body>"""
    probe(made, script)
    done = chromium("--window-size=1280,900", "--dump-dom", made.as_uri())
    assert 'data-ready="yes"' in done.stdout, done.stderr[-400:]
    assert "pwned" not in re.search(r"<title>(.*?)</title>", done.stdout)[1]
    assert "&lt;/script&gt;" in done.stdout  # shown as text
    stored = re.search(r'id="data">(.*?)</script>', made.read_text(encoding="utf-8"), re.DOTALL)[1]
    first = [s for s in json.loads(stored)["samples"] if s["bench"] == "gqa"]
    assert json.loads(stored)["runs"][2] == "l2 norm only 0.7"
    lost = [s for s in first if s["answers"]["0"]["s"] > 0 and s["answers"]["2"]["s"] == 0]
    assert 0 < len(lost) < len(first)
    assert int(re.search(r'data-lost="(\d+)"', done.stdout)[1]) == len(lost)
    order = [float(x) for x in re.search(r'data-order="([^"]*)"', done.stdout)[1].split()]
    assert order == sorted(order, reverse=True) and len(order) == 5
    assert 'data-wide="true"' in done.stdout


@pytest.mark.slow
def test_a_script_that_came_into_the_page_is_not_run(made):
    script = "<script>document.title = 'pwned'</script></body>"
    text = made.read_text(encoding="utf-8").replace("</body>", script)
    made.write_text(text, encoding="utf-8")
    shown = chromium("--dump-dom", made.as_uri()).stdout
    assert 'data-ready="yes"' in shown, "its own script did"
    assert re.search(r"<title>(.*?)</title>", shown)[1] != "pwned"
    probe(made, "</body>")
    assert re.search(r"<title>(.*?)</title>", chromium("--dump-dom", made.as_uri()).stdout)[1] == (
        "pwned"
    ), "without the policy it is run"


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_is_wider_than_the_screen_and_a_tap_explains_a_number(made, width):
    """In a frame of that width, because a window is never below 500."""
    script = """<script>
      const cell = document.querySelector("table.grid tbody td[data-sort]");
      cell.click();
      const wide = document.documentElement.scrollWidth, images = [...document.images];
      parent.postMessage([wide, innerWidth, byId("told").textContent,
        Math.max(...images.map(i => i.getBoundingClientRect().right)), images.length], "*");
    </script></body>"""
    probe(made, script)
    frame = made.with_name("frame.html")
    frame.write_text(
        "<body><script>onmessage = e => document.body.dataset.seen = JSON.stringify(e.data)"
        f'</script><iframe src="{made.name}" style="width:{width}px;height:900px;border:0">',
        encoding="utf-8",
    )
    done = chromium("--window-size=1400,1000", "--dump-dom", frame.as_uri())
    seen = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert seen, done.stderr[-400:]
    page_width, inner, told, right, images = json.loads(html.unescape(seen[1]))
    assert (inner, images) == (width, 3) and page_width <= width and right <= width
    assert told.startswith("Random 0.7, GQA: 95 % interval")


@pytest.mark.slow
@pytest.mark.parametrize("size", ["1366,900", "500,900"])  # a window is never below 500 wide
def test_a_picture_of_the_page(made, size, tmp_path):
    file = Path(tmp_path) / "shot.png"
    done = chromium(f"--window-size={size}", f"--screenshot={file}", made.as_uri())
    assert file.exists(), done.stderr[-400:]
    import PIL.Image

    pixels = np.asarray(PIL.Image.open(file).convert("L"))
    assert pixels.std() > 10 and len(np.unique(pixels)) > 50  # not an empty page
