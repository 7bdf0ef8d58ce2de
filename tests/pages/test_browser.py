"""The report in a real browser: it fits a phone, its filters work without a script, its console is empty."""

import json
import re
import shutil
import subprocess

import pytest

from tests.pages.test_report import CURVE, DOMAINS, HOSTILE, answer, evaluation, page

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
LIGHT, DARK = "rgb(251, 251, 252)", "rgb(18, 22, 28)"
# Measures the page as it is drawn; it is added to a copy, since the page itself has no script.
PROBE = """<script>addEventListener("load", () => {
  const shown = () => [...document.querySelectorAll("details")].filter(item => item.offsetHeight > 0).length;
  const counts = {};
  for (const filter of document.querySelectorAll(".filters input")) { filter.click(); counts[filter.id] = shown(); }
  parent.postMessage({
    width: innerWidth, needed: document.documentElement.scrollWidth, counts,
    page: getComputedStyle(document.body).backgroundColor,
    loaded: performance.getEntriesByType("resource").length }, "*");
});</script>"""
# Windows have a least width, frames have none.
FRAME = """<!doctype html><meta name="color-scheme" content="light dark"><pre></pre><script>
addEventListener("message", event => { document.querySelector("pre").textContent = JSON.stringify(event.data); });
</script><iframe width="%d" height="900" style="border: 0" src="report.html"></iframe>"""


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium on this machine")
@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1_600, "light")])
def test_the_report_fits_the_screen_and_its_console_is_empty(tmp_path, width, scheme):
    long = {**evaluation(), "gate": {"passed": False, "failures": ["x" * 500], "undecided": []}}
    answers = [answer("tool", HOSTILE * 9), answer("chat", "y" * 900)]
    text = page(long, answers, CURVE, "k" * 64, DOMAINS)
    (tmp_path / "report.html").write_text(text.replace("</body>", f"{PROBE}</body>"))
    (tmp_path / "frame.html").write_text(FRAME % width)
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    options += [f"--blink-settings=preferredColorScheme={int(scheme == 'light')}", "--virtual-time-budget=5000"]
    command = [BROWSER, *options, "--dump-dom", (tmp_path / "frame.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    measured = json.loads(re.search(r"<pre>(\{.*?\})</pre>", done.stdout)[1])
    assert "CONSOLE" not in done.stderr
    assert measured["width"] == width
    assert measured["needed"] <= width
    assert measured["counts"] == {
        "show-all": 2,
        "show-failed": 2,
        "show-worse": 2,
        "show-better": 0,
        "show-tool": 1,
        "show-chat": 1,
    }
    assert measured["page"] == (DARK if scheme == "dark" else LIGHT)
    assert measured["loaded"] == 0
