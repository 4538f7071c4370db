#!/usr/bin/python3
"""The report in a browser: no script error, every drawing visible, nothing wider than a phone, all of it in print."""

import json
import re
import shutil
import subprocess
import tempfile
import zlib
from pathlib import Path

from cases import Skip, run_cases
from hosts import SLOW, expect

import report
import report_data

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SECONDS = 60
# Written into a copy only. Errors are caught from the first line on; what is seen goes where --dump-dom shows it.
CATCH = ("<script>window.wrong = []; addEventListener('error', function (e) "
         "{ wrong.push(String(e.message || e.type)); }, true);</script>")
LOOK = """<script>addEventListener('load', function () {
var all = Array.from(document.querySelectorAll('svg')), wide = document.documentElement.clientWidth;
document.querySelectorAll('details').forEach(function (d) { d.open = true; });
var flat = all.filter(function (s) { var b = s.getBoundingClientRect(); return b.width < 10 || b.height < 5; });
var out = all.filter(function (s) { return s.getBoundingClientRect().right > wide + 1; });
var lost = [];
all.forEach(function (s) { var box = s.getBoundingClientRect();
  s.querySelectorAll('text').forEach(function (t) { var b = t.getBoundingClientRect();
    var over = b.right > box.right + 3 || b.left < box.left - 3 || b.bottom > box.bottom + 3;
    if (b.width > 0 && over) lost.push(t.textContent); }); });
var seen = {errors: wrong, drawings: all.length, flat: flat.length, outside: out.length, lost: lost, inner: wide,
  scroll: document.documentElement.scrollWidth, title: document.title,
  plots: document.querySelectorAll('section[id^=scenario] figure').length};
var note = document.createElement('p'); note.id = 'seen'; note.textContent = JSON.stringify(seen);
document.body.appendChild(note);
});</script>"""
# A window of a browser without a screen is 500 wide at least; a frame is as narrow as it is told to be.
FRAME = """<!DOCTYPE html><body style="margin:0">
<iframe id="f" src="looked-at.html" style="width:%dpx;height:900px;border:0"></iframe>
<script>addEventListener('load', function () { var p = document.createElement('p'); p.id = 'seen';
p.textContent = document.getElementById('f').contentDocument.getElementById('seen').textContent;
document.body.appendChild(p); });
</script>"""


class Look:
    """A report in a folder of its own, and a browser to look at it with."""

    def __init__(self):
        if not BROWSER:
            raise Skip("chromium is not installed (testbed/install report)")
        self.folder = tempfile.TemporaryDirectory(prefix="wander-page-", ignore_cleanup_errors=True)
        self.out = Path(self.folder.name)
        report_data.make(self.out)
        self.path = report.write(self.out)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.folder.cleanup()

    def browse(self, page, *options):
        argv = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
                "--allow-file-access-from-files", f"--user-data-dir={self.out / 'browser'}", *options, page.as_uri()]
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=SECONDS * SLOW)
        expect(done.returncode == 0, f"expected {' '.join(argv)} to exit with 0; it exited with {done.returncode} and "
                                     f"said:\n"
                                     f"{done.stderr[-1000:]}")
        return done.stdout

    def seen(self, width, change=lambda text: text):
        """What a window of this width shows."""
        text = change(self.path.read_text()).replace("<head>", "<head>" + CATCH, 1).replace("</body>", LOOK
                                                                                            + "</body>", 1)
        (self.out / "looked-at.html").write_text(text)
        frame = self.out / "frame.html"
        frame.write_text(FRAME % width)
        dumped = self.browse(frame, f"--window-size={max(width, 600)},1000", "--virtual-time-budget=10000",
                             "--dump-dom")
        found = re.search(r'<p id="seen">(.*?)</p>', dumped, re.DOTALL)
        expect(found, f"expected the page to say what is seen; got {dumped[-500:]}")
        return json.loads(found.group(1).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


def check(seen, width):
    expect(seen["inner"] == width, f"expected to look through a window {width} wide; it is {seen['inner']}")
    expect(not seen["errors"], f"expected no script error; got {seen['errors']}")
    expect(seen["title"].startswith("Moving virtual machines"), f"expected the page's own title; got {seen['title']!r}")
    expect(seen["plots"] >= 40 and seen["drawings"] >= seen["plots"], f"expected 40 plots or more; got {seen}")
    expect(seen["flat"] == 0 and seen["outside"] == 0, f"expected every drawing to have a size and to be inside; got "
                                                       f"{seen}")
    expect(seen["scroll"] <= seen["inner"], f"expected no scrolling to the side; the page is {seen['scroll']} wide in "
                                            f"{width}")
    expect(not seen["lost"], f"expected every word inside its drawing; got {seen['lost'][:5]}")


def at_width(width):
    def case(context):
        with Look() as look:
            check(look.seen(width), width)
    return case


DEFECTS = '</h1><p style="width:700px">wide</p><script>nothing()</script>'


def sees(context):
    """That what this test looks for would be found."""
    def spoil(text):
        return text.replace("</h1>", DEFECTS, 1).replace("<svg", '<svg style="height:0;max-height:0"', 1)

    with Look() as look:
        broken = look.seen(390, spoil)
        expect(broken["errors"] and broken["scroll"] > 390 and broken["flat"] == 1,
               f"expected defects to be seen; got {broken}")


def pdf_text(path):
    """The drawn operators of all pages, as far as they are packed the usual way."""
    data, found = path.read_bytes(), []
    for piece in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", data, re.DOTALL):
        try:
            found.append(zlib.decompress(piece))
        except zlib.error:
            continue
    return data, b"\n".join(found)


def in_print(context):
    """Printing unfolds what is folded: more pages than without."""
    with Look() as look:
        pages = []
        for name, change in (("all", lambda text: text), ("folded", unprinted)):
            page = look.out / f"{name}.html"
            page.write_text(change(look.path.read_text()))
            look.browse(page, f"--print-to-pdf={look.out / name}.pdf", "--no-pdf-header-footer",
                        "--virtual-time-budget=10000")
            data, drawn = pdf_text(look.out / f"{name}.pdf")
            pages.append(len(re.findall(rb"/Type ?/Page\b", data)))
            expect(data.startswith(b"%PDF") and drawn, f"expected a PDF with something on it; got {len(data)} bytes")
        print(f"    {pages[0]} pages; {pages[1]} with what is folded left out")
        expect(pages[0] > pages[1] >= 4, f"expected what is folded to be printed too; {pages[0]} pages and {pages[1]} "
                                         f"without")


def unprinted(text):
    return text.replace("beforeprint", "never").replace("details::details-content", "details::nothing")


run_cases(__doc__, {"desktop": at_width(1280), "phone": at_width(390), "print": in_print, "sees": sees})
