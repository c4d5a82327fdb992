"""The documentation as a site: every page is in it, every link leads somewhere, nothing comes from another host."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
LINK = re.compile(r'(src|href)="?([^"\s>]+)')

pytest.importorskip("zensical", reason="the site's builder is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built where a warning is an error, in a folder of its own."""
    work = tmp_path_factory.mktemp("site")
    shutil.copy(ROOT / "mkdocs.yml", work)
    shutil.copytree(ROOT / "docs", work / "docs")
    build = [Path(sys.executable).with_name("zensical"), "build", "--strict"]
    done = subprocess.run(build, check=False, cwd=work, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return work / "site"


def _pages(entry: object) -> list[str]:
    """The files that a part of the navigation names."""
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    assert isinstance(parts, list | type({}.values()))
    return [page for part in parts for page in _pages(part)]


def test_every_page_is_in_the_navigation() -> None:
    nav = _pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    lab = [page for page in nav if page.startswith("lab/")]
    assert lab == ["lab/README.md"]
    assert sorted(set(nav) - set(lab)) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


def test_every_link_leads_somewhere(site: Path) -> None:
    pages = [page for page in site.rglob("*.html") if page.name != "404.html"]
    assert len(pages) > 20
    dead = []
    for page in pages:
        for _, link in LINK.findall(page.read_text(encoding="utf-8")):
            target = re.split("[#?]", link)[0]
            if target and not re.match("[a-z]+:", link) and not (page.parent / target).resolve().is_file():
                beside = (page.parent / target).resolve().relative_to(site.parent)  # of the repository, outside docs
                if not (ROOT / beside).exists():
                    dead.append(f"{page.relative_to(site)}: {link}")
    assert not dead


def test_nothing_is_fetched_from_another_host(site: Path) -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in site.rglob("*.html"))
    loaded = [link for kind, link in LINK.findall(text) if kind == "src" and re.match("(https?:)?//", link)]
    styles = re.findall(r'<link[^>]*href="?(?:https?:)?//[^>]*', text)
    assert not loaded
    assert not [style for style in styles if "stylesheet" in style or "preconnect" in style]
