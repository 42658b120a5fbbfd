"""What a real browser, Chromium without a window, makes of a page on disk."""

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import unquote

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WHY_NOT = "" if BROWSER else "no Chromium here (apt-get install chromium)"
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
_MEASURE = """<script>
addEventListener("load", () => {
  for (const one of document.querySelectorAll("details")) one.open = true;
  const wide = innerWidth, cut = [], told = one => one.tagName + "." + (one.getAttribute("class") || "") + " " +
    one.textContent.slice(0, 60);
  const inside = (a, b) => a.left >= b.left - 1 && a.right <= b.right + 1 && a.top >= b.top - 1 &&
    a.bottom <= b.bottom + 1;
  for (const one of document.body.querySelectorAll("*")) {
    const box = one.getBoundingClientRect();
    if (!box.width && !box.height) continue;
    if (box.right > wide + 1 || box.left < -1) cut.push(told(one));
    if (getComputedStyle(one).overflowX != "visible" && one.scrollWidth > one.clientWidth + 1) cut.push(told(one));
    const picture = one.ownerSVGElement;
    if (picture && !inside(box, picture.getBoundingClientRect())) cut.push(told(one));
  }
  const images = [...document.images].filter(one => one.loading != "lazy");
  const found = {width: wide, page: document.documentElement.scrollWidth, cut,
    broken: images.filter(one => !one.naturalWidth).length, images: images.length,
    background: getComputedStyle(document.body).backgroundColor, height: document.documentElement.scrollHeight};
  parent.postMessage(JSON.stringify(found), "*");
});
</script>"""
_FRAME = """<!DOCTYPE html><title>waits</title><script>
addEventListener("message", event => document.title = "MEASURED" + encodeURIComponent(event.data) + "END");
</script><iframe src="copy.html" style="border:0;width:{width}px;height:1000px"></iframe>"""
"""A window of Chromium has at least 500 pixels; a frame inside it may be narrower."""


def measure(page: Path, width: int, dark: bool = False) -> dict:
    """Return how a page is laid out in a window of some width: its width, and what is cut off or has to be scrolled.

    The script that measures is put into a copy without the page's policy, under which no script would run.
    """
    text = POLICY.sub("", page.read_text()).replace("</body>", _MEASURE + "</body>")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy.html")
        copy.write_text(text.replace('loading="lazy"', ""))
        frame = Path(folder, "frame.html")
        frame.write_text(_FRAME.format(width=width))
        wait = "--virtual-time-budget=10000"
        html = _run(frame, f"--window-size={width + 100},1000", "--dump-dom", wait, *_dark(dark)).stdout
    found = re.search("MEASURED(.*?)END", html)
    assert found, html[:2000]
    return json.loads(unquote(found[1]))


def complaints(page: Path) -> list[str]:
    """Return what the browser's console says of a page as it is."""
    log = _run(page, "--enable-logging=stderr", "--dump-dom").stderr
    return [line for line in log.splitlines() if "CONSOLE" in line]


def picture(page: Path, out: Path, width: int, height: int, dark: bool = False) -> None:
    """Write what the browser shows as PNG."""
    _run(page, f"--window-size={width},{height}", "--hide-scrollbars", f"--screenshot={out}", *_dark(dark))
    assert out.is_file()


def _dark(dark: bool) -> list[str]:
    return ["--blink-settings=preferredColorScheme=0"] if dark else []


def _run(page: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER
    with tempfile.TemporaryDirectory() as profile:
        command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", *flags]
        return subprocess.run([*command, page.absolute().as_uri()], capture_output=True, text=True, timeout=120)
