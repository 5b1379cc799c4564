"""The report's page, alone and in a browser; its Markdown and CSV; the charts' geometry."""

import csv
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from natural2nanoscale.charts import bottom_axis, curves, interval_plot, ticks
from natural2nanoscale.files import save_png
from natural2nanoscale.study.report import POLICY, Figure, Pictures, Report, Table, write_report
from natural2nanoscale.text import markdown_text

NAMES = ("real + synthetic + rotation − real + rotation", "synthetic − real")


@pytest.fixture
def report(tmp_path):
    """One part of every kind, a wide table and a picture wider than a telephone among them."""
    save_png(tmp_path / "sheet.png", np.tile(np.arange(256, dtype=np.uint8), (40, 3)))
    rows = [[name, "77.7 ± 4.8", "-6.8 to +1.3", "30 % (-2 to 45 %)", *["98.1 ± 0.5"] * 6] for name in NAMES] + [
        ["a < b", "1.0", "–", "12 %", *"234567"]
    ]
    grown = [("copies", [(64, 80.0, 1.0), (288, 85.0, None)]), ("mixed", [(64, 78.0, 2.0), (288, 84.0, 1.5)])]
    return Report(
        "A study",
        "No benefit was found: -2.7 mIoU (95 % interval -6.8 to +1.3).",
        [
            Table(
                "Training sets",
                ["training set", "mIoU", "interval", "share", *(f"class {i}" for i in range(6))],
                rows,
                "A note.",
            ),
            Figure("Differences", interval_plot([(NAMES[0], -2.7, [(-6.8, 1.3), None])], "difference")),
            Figure("Sizes", curves(grown, "slices", "mIoU", ("real", 74.6), logarithmic=True)),
            Pictures("Slices", [("real, mask, synthetic", tmp_path / "sheet.png")]),
        ],
        [("Command", "python -m natural2nanoscale demo"), ("Settings", "x" * 2000)],
    )


def test_tables_are_the_same_everywhere(report, tmp_path):
    text = write_report(tmp_path, report)
    assert (tmp_path / "report.md").read_text() == text
    assert f"| {NAMES[0]} | 77.7 ± 4.8 | -6.8 to +1.3 |" in text and "![real, mask, synthetic](sheet.png)" in text
    with (tmp_path / "tables/training-sets.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [table[0][key] for key in ("mIoU", "mIoU ±", "interval low", "interval high")] == [
        "77.7",
        "4.8",
        "-6.8",
        "+1.3",
    ]
    assert table[2]["mIoU"] == "1.0" and table[2]["mIoU ±"] == ""
    shares = [[row[key] for key in ("share", "share low", "share high")] for row in table]
    assert shares == [["30", "-2", "45"], ["30", "-2", "45"], ["12", "", ""]]
    page = (tmp_path / "report.html").read_text()
    assert '77.7 <span class="off">± 4.8</span>' in page and "a &lt; b" in page
    assert "http" not in page.replace("http-equiv", "") and "<script" not in page and "default-src 'none'" in page


def test_names_of_classes_are_shown_as_they_are(tmp_path):
    hostile = "<b>a</b> | [b](c) ~d~ $e$"
    table = Table(hostile, ["training set", hostile], [["real", hostile]], hostile)
    text = write_report(tmp_path, Report(hostile, hostile, [table], [("Settings", hostile)]))
    assert text.count(markdown_text(hostile)) == 7 and hostile not in text and "<b>" not in text
    assert "<b>" not in (tmp_path / "report.html").read_text()


def test_charts_put_values_where_they_belong():
    assert ticks(65.2, 87.1) == [65, 70, 75, 80, 85, 90] and ticks(-8.9, 2.7) == [-10, -5, 0, 5]
    assert ticks(0.3, 0.3)[0] <= 0.3 < ticks(0.3, 0.3)[-1] and ticks(-0.02, 0.01)[0] <= -0.02
    _, place = bottom_axis(-8.9, 2.7, 100, "")
    assert place(-10) == 14 and place(5) == 346 and place(0) == pytest.approx(14 + 332 * 2 / 3)
    drawing = interval_plot([("a", -5.0, [(-10.0, 5.0), None])], "x")
    bar = re.search(r'<line x1="([\d.]+)" y1="[\d.]+" x2="([\d.]+)" y2="[\d.]+" class="bar bar0"', drawing)
    mean = re.search(r'<circle cx="([\d.]+)"', drawing)
    assert [float(end) for end in (*bar.groups(), mean[1])] == pytest.approx([14, 346, 14 + 332 / 3], abs=0.06)


def test_long_names_in_charts_take_several_lines():
    long = "real + synthetic + nnunet: adapted, predicted, detail \u2212 self-training + nnunet"
    rows = [(long, 1.0, [(0.0, 2.0)]), ("short", 1.0, [(0.0, 2.0)])]
    differences = interval_plot(rows, "x")
    curved = curves([(name, [(1, mean, None)]) for name, mean, _ in rows], "", "")
    for drawing in (differences, curved):
        found = re.findall(r'<text x="(.*?)" y="(.*?)".*?>(.*?)<', drawing)
        lines = [(float(x), float(y), words) for x, y, words in found if len(words) > 4 and words in f"{long} short"]
        assert " ".join(words for _, _, words in lines[:-1]) == long and len(lines) > 2
        assert all(x + 7 * len(words) <= 346 for x, _, words in lines)
        assert all(below[1] - above[1] >= 14 for above, below in zip(lines, lines[1:], strict=False))
    dots = [float(y) for y in re.findall(r'cy="(.*?)"', differences)]
    assert dots == [42.0, 80.0]  # eleven below the last line of each


FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --disable-sync --no-first-run --disable-background-networking"
    " --disable-component-update --enable-logging=stderr --virtual-time-budget=2000 --window-size=1400,900 --dump-dom"
).split()
PROBE = """<script>
let refused = 0;
document.addEventListener("securitypolicyviolation", () => refused++);
window.addEventListener("load", () => setTimeout(() => parent.postMessage({
  width: innerWidth, scroll: document.documentElement.scrollWidth, refused: refused,
  pictures: [...document.images].filter(image => image.naturalWidth).length,
  outside: [...document.querySelectorAll("section > *, img, svg")].filter(
    part => part.getBoundingClientRect().right > innerWidth + 0.5).length,
  text: Math.min(...[...document.querySelectorAll("svg text")].map(words => words.getBoundingClientRect().height))
}, "*"), 100));
</script>"""
WRAPPER = """<!DOCTYPE html><body><pre></pre><script>
window.addEventListener("message", event => {
  document.querySelector("pre").textContent += JSON.stringify(event.data) + "\\n";
});
</script><iframe src="copy.html" style="width:360px;height:800px;border:0"></iframe>
<iframe src="copy.html" style="width:1280px;height:800px;border:0"></iframe>"""


def test_page_in_a_browser(report, tmp_path):
    """At the widths of a telephone and a desk nothing sticks out, is asked for, or is complained of."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no `chromium` on PATH: the page can be looked at in any browser instead")
    write_report(tmp_path, report)
    page = (tmp_path / "report.html").read_text()
    assert POLICY in page
    (tmp_path / "copy.html").write_text(page.replace(POLICY, f"{POLICY}; script-src 'unsafe-inline'") + PROBE)
    (tmp_path / "wrapper.html").write_text(WRAPPER)
    result = subprocess.run(
        [browser, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "wrapper.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=300,
    )
    found = [json.loads(line) for line in re.search(r"<pre>(.*?)</pre>", result.stdout, re.S)[1].splitlines()]
    assert sorted(seen["width"] for seen in found) == [360, 1280]
    for seen in found:
        assert seen["scroll"] <= seen["width"] and seen["outside"] == 0
        assert seen["refused"] == 0 and seen["pictures"] == 1
        assert seen["text"] >= 10  # pixels: charts can be read on a telephone
    assert "CONSOLE" not in result.stderr
