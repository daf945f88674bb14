"""The page in a real browser: Debian's Chromium, headless. Screenshots are kept in pytest's temporary folder."""

import base64
import gzip
import json
import re
import shutil
import time

from results.make_tables import ROOT, main
from results.page import MOST_POINTS, build_page

import numpy as np
import pytest
from results_browser import CHROMIUM, DESKTOP, FLAGS, PHONE, Visit
from results_tree import CLASSES, add_test_score, make_tree, write_run

EVIL = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with runs of two projects, several seeds, images, and names that try to be markup."""
    root = make_tree(tmp_path_factory.mktemp("page"))
    runs = root / "results/runs"
    for seed in (0, 1):
        folder = write_run(runs / "stdc_seg", config="stdc2_seg50", seed=seed, scores=(40.0, 60.0 + seed), scope="full")
        add_test_score(folder, 200, 55.0 + seed)
    shown = write_run(runs / "semsegpaddle_glore", "semsegpaddle_glore", scores=(30.0, 46.25))
    evil = {"config_text": f"model:\n  name: {json.dumps(EVIL)}\n", "classes": [EVIL, *CLASSES[1:]], "protocol": EVIL}
    write_run(runs / "encnet_single_gpu", "encnet_single_gpu", config="evil", command=EVIL, **evil)
    panels = sorted((ROOT / "results/panels").glob("*/*"))[0]
    shutil.copytree(panels, root / "results/panels/semsegpaddle_glore" / shown.name)
    main([], root)
    return root / "results/site/index.html"


@needs_chromium
def test_it_loads_without_errors_and_asks_for_nothing(browser, page, tmp_path):
    visit = Visit(browser, page)
    visit.chart()
    visit.page.screenshot(path=tmp_path / "wide.png")
    assert visit.errors == []
    assert visit.requests == [f"file://{page}"]
    assert visit.models() == ["STDC2-Seg50"]  # what was measured on photographs; the rest is folded
    assert visit.page.evaluate("data.rows.length") > 35
    assert (tmp_path / "wide.png").stat().st_size > 20_000


@needs_chromium
def test_groups_fold_and_unfold(browser, page):
    visit = Visit(browser, page)
    heads = visit.page.locator(".folder").all_inner_texts()
    assert [re.sub(r" \(\d+\)$", "", head) for head in heads] == [
        "Measured on real photographs",
        "Not run yet",
        "Toy data: it shows that a network learns, and has no published number",
    ]
    toy = visit.page.locator(".folder", has_text="Toy data")
    toy.click()
    assert visit.models() == ["STDC2-Seg50", EVIL, "net"]
    toy.click()
    assert visit.models() == ["STDC2-Seg50"]


@needs_chromium
def test_the_filter_narrows_by_words_and_lists(browser, page):
    visit = Visit(browser, page)
    total = visit.page.evaluate("data.rows.length")
    visit.page.keyboard.press("/")
    visit.page.keyboard.type("pspnet cityscapes")
    configs = visit.page.locator(".config code").all_inner_texts()
    assert len(configs) == 4
    assert all("pspnet" in config and "cityscapes" in config for config in configs)
    assert visit.page.locator("#count").inner_text() == f"4 of {total} rows"
    visit.page.keyboard.press("Escape")
    visit.page.select_option("#filter-state", "toy")
    assert len(visit.models()) == 2
    visit.page.select_option("#filter-state", "photographs")
    visit.page.select_option("#filter-project", "stdc_seg")
    assert visit.models() == ["STDC2-Seg50"]
    visit.page.fill("#filter-text", "no such thing")
    assert visit.models() == []
    visit.page.click("#clear")
    assert visit.models() == ["STDC2-Seg50"]


@needs_chromium
def test_columns_sort_both_ways_within_their_group(browser, page):
    visit = Visit(browser, page)
    visit.page.locator(".folder", has_text="Toy data").click()
    head = visit.page.locator("#rows thead button", has_text="Val")
    for order, scores in (("descending", [60.5, 60.0, 46.25]), ("ascending", [60.5, 46.25, 60.0])):
        head.click()
        assert visit.page.locator("th[aria-sort]").get_attribute("aria-sort") == order
        found = visit.page.locator("td[data-label=Val]").all_inner_texts()
        assert [float(text.split()[0]) for text in found[:3]] == scores


@needs_chromium
def test_hovering_over_a_curve_shows_the_step_and_the_score(browser, page):
    visit = Visit(browser, page)
    visit.page.fill("#filter-text", "semsegpaddle_glore measured")
    visit.page.locator(".opener").first.click()
    chart = visit.chart("tr.detail .chart")
    chart.scroll_into_view_if_needed()
    chart.locator(".scatterlayer .point").last.hover(force=True)
    text = chart.locator(".hoverlayer .hovertext").first.text_content()
    assert "step 200: 46.25 %" in text
    assert visit.errors == []


@needs_chromium
def test_an_opened_row_has_classes_images_and_its_command(browser, page, tmp_path):
    visit = Visit(browser, page)
    visit.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visit.page.fill("#filter-text", "semsegpaddle_glore measured")
    visit.page.locator(".opener").first.click()
    detail = visit.page.locator("tr.detail")
    classes = detail.locator(".classes tr").all_inner_texts()
    names = {re.split(r"\s+", text.strip())[0]: re.split(r"\s+", text.strip())[-1] for text in classes}
    assert names == {"car": "47.3", "road": "46.3", "sky": "45.3", "train": "absent"}
    images = detail.locator(".panels img")
    assert images.count() == 9
    images.last.scroll_into_view_if_needed()
    visit.wait("[...document.querySelectorAll('.panels img')].every((i) => i.naturalWidth > 100)")
    visit.page.screenshot(path=tmp_path / "open.png", full_page=True)
    command = "python results/reproduce.py semsegpaddle_glore/quickstart_s0_20261121_0123456"
    assert detail.locator(".command code").inner_text() == command
    detail.get_by_role("button", name="Copy").click()
    visit.wait("document.querySelector('.command button').textContent !== 'Copy'")
    copied = visit.page.evaluate("getSelection().toString() || navigator.clipboard.readText()")
    assert copied == command


@needs_chromium
def test_a_row_with_seeds_has_mean_and_deviation_on_val_and_test(browser, page):
    visit = Visit(browser, page)
    cells = visit.page.locator("tr.row td").all_inner_texts()
    assert "60.50 ± 0.71 (60.50)" in cells[2]
    assert "2 seeds (0, 1)" in cells[2]
    assert cells[3] == "55.50 ± 0.71"
    assert cells[4].splitlines()[0] == "val 74.24 paper"
    assert cells[4].splitlines()[1] == "not comparable: measured as 'input x0.5, ss, whole image' there"


@needs_chromium
def test_everything_works_from_the_keyboard(browser, page):
    visit = Visit(browser, page)

    def focused():
        return visit.page.evaluate("document.activeElement.textContent")

    visit.page.select_option("#filter-state", "missing")
    visit.page.keyboard.press("/")
    visit.page.keyboard.press("ArrowDown")
    first = focused()
    assert first == visit.models()[0]
    visit.page.keyboard.press("ArrowDown")
    assert focused() == visit.models()[1]
    visit.page.keyboard.press("Enter")
    assert visit.page.locator(".opener[aria-expanded=true]").count() == 1
    assert visit.page.locator("tr.detail").count() == 1
    visit.page.keyboard.press("Escape")
    assert visit.page.locator("tr.detail").count() == 0
    visit.page.keyboard.press("ArrowUp")
    visit.page.keyboard.press("ArrowUp")
    assert visit.page.evaluate("document.activeElement.id") == "filter-text"
    for _ in range(4):  # project, data, show, then the curves or the head of the table
        visit.page.keyboard.press("Tab")
    assert visit.page.evaluate("document.activeElement.tagName") in ("SUMMARY", "BUTTON")
    visit.page.select_option("#filter-state", "")
    visit.page.locator(".folder", has_text="Not run yet").press("Enter")
    assert len(visit.models()) > 30


def boxes(visit, selector):
    return [locator.bounding_box() for locator in visit.page.locator(selector).all() if locator.is_visible()]


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["390", "1400"])
def test_it_fits_and_opens_on_photographs_in_both_colours(browser, page, tmp_path, size, scheme):
    visit = Visit(browser, page, size, scheme)
    visit.page.screenshot(path=tmp_path / "first_screen.png")
    (first,) = boxes(visit, "tr.row")
    assert first["y"] + 40 < size["height"]  # the measured row begins on the first screen
    visit.page.locator(".opener").first.click()
    visit.chart("tr.detail .chart")
    visit.page.screenshot(path=tmp_path / "opened.png", full_page=True)
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    paper, ink = (
        visit.page.evaluate(f"getComputedStyle(document.body).{name}.match(/[0-9]+/g).map(Number)")
        for name in ("backgroundColor", "color")
    )
    assert (np.mean(paper) > 200 > 100 > np.mean(ink)) == (scheme == "light")
    assert (np.mean(paper) < 60 < 200 < np.mean(ink)) == (scheme == "dark")
    assert visit.errors == []


@needs_chromium
@pytest.mark.parametrize(("before", "after"), [(DESKTOP, PHONE), (PHONE, DESKTOP)], ids=["narrower", "wider"])
def test_the_legend_never_lies_over_the_curves(browser, page, tmp_path, before, after):
    visit = Visit(browser, page, before)
    visit.page.locator(".opener").first.click()
    visit.chart("tr.detail .chart")
    visit.page.set_viewport_size(after)
    overlap = """(() => {
      const box = (name) => document.querySelector(`tr.detail ${name}`).getBoundingClientRect();
      return box(".chart .main-svg").bottom - box(".legend").top;
    })()"""
    overlaps = []
    for _ in range(10):  # Plotly redraws a little after the width has changed
        visit.page.wait_for_timeout(100)
        overlaps.append(visit.page.evaluate(overlap))
    assert max(overlaps) <= 1
    visit.page.screenshot(path=tmp_path / "resized.png", full_page=True)
    (legend,) = boxes(visit, "tr.detail .legend")
    (chart,) = boxes(visit, "tr.detail .chart")
    assert max(box["x"] + box["width"] for box in (legend, chart)) <= after["width"]
    names = visit.page.locator("tr.detail .legend button").all_inner_texts()
    assert names == ["seed 1", "seed 0", "test, seed 1", "test, seed 0", "paper, val 74.24 (not comparable)"]
    visit.page.locator("tr.detail .legend button").first.click()
    assert visit.page.evaluate("document.querySelector('tr.detail .chart').data[0].visible") is False
    assert visit.errors == []


@needs_chromium
def test_a_browser_that_cannot_unpack_the_charts_says_so_and_keeps_the_table(browser, page, tmp_path):
    old = tmp_path / "old.html"
    old.write_text(page.read_text().replace('"use strict";', '"use strict"; delete window.DecompressionStream;', 1))
    visit = Visit(browser, old)
    visit.wait("document.getElementById('overview-chart').textContent.includes('results/curves')")
    assert visit.models() == ["STDC2-Seg50"]
    assert visit.errors == []


@needs_chromium
def test_what_a_run_writes_stays_text(browser, page):
    visit = Visit(browser, page)
    visit.page.fill("#filter-text", "evil")
    visit.page.locator(".opener").first.click()
    visit.chart("tr.detail .chart")
    assert visit.models() == [EVIL]
    assert visit.page.locator("tr.detail .classes td").first.inner_text() in (EVIL, *CLASSES)
    assert EVIL in visit.page.locator("tr.detail").inner_text()
    assert visit.page.locator("img").count() == 0
    assert visit.errors == []


def test_the_committed_library_is_kept_when_another_zlib_would_pack_it_otherwise(tmp_path):
    first = build_page([], tmp_path)
    packed = re.search(r'id="plotly" data-sha256="\w+">([A-Za-z0-9+/=]+)<', first)[1]
    other = base64.b64encode(gzip.compress(gzip.decompress(base64.b64decode(packed)), 1, mtime=0)).decode()
    assert other != packed
    assert build_page([], tmp_path, first.replace(packed, other)) == first.replace(packed, other)
    assert build_page([], tmp_path, first.replace(packed, packed[:-8] + "AAAAAAA=")) == first


def test_long_curves_are_thinned_but_keep_their_best_and_last(tree):
    scores = tuple(np.round(np.linspace(10, 60, 1000), 4))
    scores = (*scores[:501], 77.5, *scores[502:])
    write_run(tree / "results/runs/stdc_seg", scores=scores)
    main([], tree)
    text = (tree / "results/site/index.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])
    (run,) = next(row["runs"] for row in data["rows"] if row["runs"])
    assert len(run["steps"]) <= MOST_POINTS + 2
    assert run["miou"][run["steps"].index(50_200)] == 77.5
    assert run["steps"][-1] == 100_000


@pytest.mark.slow
def test_a_thousand_runs(browser, tree):
    """Tables, curves and page of 1000 runs; how long it takes is measured and not judged, the machine may be busy."""
    rng = np.random.default_rng(0)
    projects = ("stdc_seg", "semsegpaddle_glore", "awesome_pytorch_seg", "encnet_single_gpu")
    classes = [f"class {number}" for number in range(20)]
    for number in range(1000):
        scores = np.sort(rng.uniform(5, 70, 40)).round(4)
        project = projects[number % 4]
        write_run(tree / "results/runs" / project, project, f"config_{number // 4:03d}", scores=scores, classes=classes)
    started = time.perf_counter()
    assert main([], tree) == 0
    seconds = time.perf_counter() - started
    page = tree / "results/site/index.html"
    assert len(list((tree / "results/curves").glob("*/*.png"))) == 1000
    assert page.stat().st_size < 5_000_000
    assert main(["--check"], tree) == 0
    print(f"\n1000 runs: {seconds:.1f} s, page {page.stat().st_size / 1e6:.2f} MB")
    if CHROMIUM is None:
        pytest.skip("the files are sound; no chromium on this machine to open the page")
    visit = Visit(browser, page)
    visit.wait("performance.getEntriesByName('first-row').length > 0")
    first_row_ms = visit.page.evaluate("performance.getEntriesByName('first-row')[0].startTime")
    visit.wait("document.getElementById('count').textContent.startsWith('10')")
    print(f"first row on the screen after {first_row_ms:.0f} ms")
    visit.page.select_option("#filter-state", "toy")
    assert len(visit.models()) == 1000
    visit.page.fill("#filter-text", "config_007")
    assert len(visit.models()) == 4
