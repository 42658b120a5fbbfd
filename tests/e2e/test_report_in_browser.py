"""Reports in a real browser: nothing is cut off on a phone or a wide screen, light or dark, and nothing complains."""

import pytest

from sparse_mlp_ds.cli import main as cli
from sparse_mlp_ds.report.write import write
from tests.helpers import browser, finished_run
from tests.unit.test_report import HOSTILE

pytestmark = [pytest.mark.skipif(bool(browser.WHY_NOT), reason=browser.WHY_NOT), pytest.mark.timeout(600)]

LONG = "a_name_of_a_single_word_that_is_much_longer_than_a_phone_is_wide_and_has_no_place_to_break_" * 2


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Pages of a run, of one with hostile and one with long names and many classes, and of a comparison."""
    folder = tmp_path_factory.mktemp("pages")
    cli.main(["shards", "make", "digits", str(folder / "digits")])
    runs = [finished_run.write(folder / "plain", classes=10, val=str(folder / "digits/val"))]
    runs += [finished_run.write(folder / "hostile", text=HOSTILE, classes=12)]
    runs.append(finished_run.write(folder / "long", records=2000, text=LONG, classes=120))
    made = {run.name: folder / f"{run.name}.html" for run in runs} | {"all": folder / "all.html"}
    for run in runs:
        write([run], made[run.name])
    write(runs * 4, made["all"])
    return made


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("name", ["plain", "hostile", "long", "all"])
def test_nothing_is_cut_off(pages, name, width):
    found = browser.measure(pages[name], width)
    assert found["width"] == width and found["page"] <= width
    assert found["cut"] == []
    assert found["broken"] == 0 and (found["images"] > 20 or name in ("long", "all", "hostile"))


def test_the_page_is_dark_where_the_system_is(pages):
    light, dark = (browser.measure(pages["plain"], 400, dark)["background"] for dark in (False, True))
    assert light == "rgb(255, 255, 255)" and dark != light


@pytest.mark.parametrize("name", ["plain", "hostile", "all"])
def test_the_console_stays_empty(pages, name):
    assert browser.complaints(pages[name]) == []


def test_a_script_in_the_page_would_not_run(pages, tmp_path):
    """The policy holds even if a text were not escaped; and the console's complaints are seen."""
    page = tmp_path / "page.html"
    page.write_text(pages["plain"].read_text().replace("</body>", "<script>document.title = 'ran'</script></body>"))
    (complaint,) = browser.complaints(page)
    assert "Content Security Policy" in complaint


def test_what_is_cut_off_is_found(pages, tmp_path):
    """The measurement itself: a table too wide for the page, and a label outside its chart."""
    page = tmp_path / "page.html"
    wide = "<div style='width:500px'>x</div><svg viewBox='0 0 10 10' width=20><text x=90>label</text></svg>"
    page.write_text(pages["plain"].read_text().replace("</h1>", f"</h1>{wide}", 1))
    assert len(browser.measure(page, 400)["cut"]) == 2
