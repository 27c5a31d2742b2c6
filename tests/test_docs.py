"""The pages that a user reads: every Python block runs, every link leads somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
if not all(page.exists() for page in PAGES) or len(PAGES) < 2:
    pytest.skip("the pages are not beside the tests", allow_module_level=True)

ALL_PAGES = [*PAGES, ROOT / "benchmarks" / "README.md", ROOT / "examples" / "README.md"]
FENCE = re.compile(r"^```(?P<language>[^\n]*)\n(?P<body>.*?)^```$", re.M | re.S)


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def blocks(page):
    """(line of its first line, language, text) of each fenced block."""
    text = page.read_text()
    return [(text.count("\n", 0, m.start("body")) + 1, m["language"].strip(), m["body"]) for m in FENCE.finditer(text)]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_blocks_run_from_top_to_bottom(page, tmp_path, monkeypatch, capsys):
    """A page's blocks share their names, as if pasted one after another into one session."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for line, language, body in blocks(page):
        if language == "python":
            exec(compile("\n" * (line - 1) + body, str(page), "exec"), names)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_every_block_says_what_it_is(page):
    """So that a block of Python without its mark is not passed over."""
    assert {language for _, language, _ in blocks(page)} <= {"python", "bash", "text", "c"}
    assert page.read_text().count("```") == 2 * len(blocks(page))


def test_the_pages_have_code():
    for page in ("README.md", "docs/tutorial.md", "docs/recurrent.md", "docs/attention.md"):
        assert any(language == "python" for _, language, _ in blocks(ROOT / page)), page


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    prose = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{name_of(page)} links to {target}"


def anchors(page):
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_links_into_a_page_find_their_heading(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if not target.startswith(("http://", "https://")):
            assert anchor in anchors(page.parent / target if target else page), f"{name_of(page)} links to {target}#{anchor}"


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_no_page_installs_the_other_project(page):
    """The plain name belongs to another project on PyPI."""
    assert not re.search(r"pip install (-\S+ )*fastseq\b(?!-)", page.read_text())


def test_the_example_in_the_readme_is_short():
    """Twenty lines that a reader pastes."""
    first = next(body for _, language, body in blocks(ROOT / "README.md") if language == "python")
    assert len([line for line in first.splitlines() if line.strip()]) <= 20


def test_the_table_of_the_lectures_is_whole():
    """51 rows, each with something in every column, and with files that exist."""
    page = ROOT / "docs" / "lectures.md"
    rows = re.findall(r"^\| (\d+) (\|.*\|)$", page.read_text(), re.M)
    assert [int(n) for n, _ in rows] == list(range(1, 52))
    for n, row in rows:
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert len(cells) == 6, n
        assert all(cells), n
        for name in re.findall(r"python examples/([\w/]+\.py)", row):
            assert (ROOT / "examples" / name).exists(), name
        for name in re.findall(r"(?<![\w/])(tests/[\w/]+\.py|examples/[\w/]+\.py)", row):
            assert (ROOT / name).exists(), name
