"""Documentation: links, paths and flags exist; README and architecture are short."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(params=PAGES, ids=lambda page: page.name)
def page(request):
    return request.param


def test_relative_links_exist(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    files = [link for link in links if "://" not in link]
    missing = [link for link in files if not (page.parent / link).exists()]
    assert not missing


def test_source_files_exist(page):
    paths = set(
        re.findall(
            r"\b((?:etcvla|configs|launch|data_builders|tests)/[\w/]+\.\w+)", page.read_text()
        )
    )
    # Files that the reader is told to write.
    paths -= {"configs/my_robot.py", "configs/yours.py", "etcvla/sims/toy/__init__.py"}
    missing = sorted(path for path in paths if not (ROOT / path).exists())
    assert not missing


def test_modules_exist(page):
    modules = set(re.findall(r"python -m ((?:etcvla|data_builders|tests)[\w.]*)", page.read_text()))
    missing = []
    for module in modules:
        path = ROOT / module.replace(".", "/")
        if not (path.with_suffix(".py").exists() or (path / "__main__.py").exists()):
            missing.append(module)
    assert not missing


def test_scripts_have_the_flags(page):
    """A command's lines end at a line without a backslash."""
    text = re.sub(r"\\\n\s*", " ", page.read_text())
    unknown = []
    for script, arguments in re.findall(r"python (launch/\w+\.py)([^\n`#]*)", text):
        source = (ROOT / script).read_text()
        for flag in re.findall(r"--(\w+)", arguments):
            known = f'"{flag}"' in source or flag == "config" or flag.startswith("max_")
            if not known and f'"{flag.removeprefix("no")}"' not in source:
                unknown.append(f"{script} --{flag}")
    assert not unknown


def test_sizes():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    assert len((ROOT / "docs/architecture.md").read_text().split()) <= 2000
    assert len((ROOT / "docs/glossary.md").read_text().splitlines()) <= 40
    assert (ROOT / "docs/policy.gif").stat().st_size < 2_000_000
