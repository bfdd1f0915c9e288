"""The page about runs in a browser: it draws, loads nothing, its videos play. Skipped where there is no Chromium."""

import re
import shutil
import subprocess

import numpy as np
import pytest

from tests.reports.pages import make_run
from vdm_jax.reports.page import page, read_run

pytestmark = pytest.mark.full
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell", "chrome-headless-shell")
# Plays every video for a moment and writes what became of it, and of the pictures, to the title.
CHECK = """<script>
addEventListener("load", async () => {
  document.querySelectorAll("details").forEach(one => one.open = true);
  const videos = [...document.querySelectorAll("video")];
  await Promise.all(videos.map(video => new Promise(done => {
    video.addEventListener("timeupdate", () => { if (video.currentTime > 0) done(); });
    video.addEventListener("error", done);
    video.play().catch(done);
  })));
  const played = videos.filter(video => video.currentTime > 0 && video.videoWidth == 16).length;
  const shown = [...document.images].filter(image => image.naturalWidth > 0);
  const charts = shown.filter(image => image.src.startsWith("data:image/svg") && image.clientWidth > 200).length;
  document.title = `played ${played} of ${videos.length}, ${shown.length - charts} pictures, ${charts} charts`;
});
</script>"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A function that opens a file and returns what the browser says and its DOM."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"needs a browser on PATH: {', '.join(BROWSERS)}")
    home = tmp_path_factory.mktemp("browser")

    def look(path, *flags):
        command = [found, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={home}",
                   "--host-resolver-rules=MAP * ~NOTFOUND", "--autoplay-policy=no-user-gesture-required",
                   "--enable-logging=stderr", "--timeout=20000", *flags, path.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        return "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line), done.stdout

    return look


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    runs = [make_run(folder, "one"), make_run(folder, "two", seed=7, value=80.0)]
    path = folder / "report.html"
    path.write_text(page([read_run(run, run.name) for run in runs]))
    return path


def test_the_page_opens_without_complaints_and_looks_like_something(browser, path):
    from PIL import Image

    picture = path.with_suffix(".png")
    console, _ = browser(path, f"--screenshot={picture}", "--window-size=1100,2400")
    assert console == ""  # a resource that its policy forbids would be named here
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    ink = (pixels.min(-1) < 128).mean(1) > 0.001
    assert pixels.shape[:2] == (2400, 1100) and ink.sum() > 150  # rows of pixels with text or lines


def test_its_videos_play(browser, path):
    """With a script put in, which the page's own policy would not let run."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", path.read_text())
    checked = path.with_name("checked.html")
    checked.write_text(text.replace("</body>", f"{CHECK}</body>"))
    _, dom = browser(checked, "--dump-dom", "--virtual-time-budget=15000")
    title = re.search(r"<title>(.*?)</title>", dom)[1]
    assert title == "played 4 of 4, 4 pictures, 3 charts"
