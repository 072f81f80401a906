"""The site builds without a warning, needs nothing from elsewhere to be read, and every link and anchor leads somewhere."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ASSETS = {"script": "src", "img": "src", "link": "href", "iframe": "src"}
"""What a browser loads with a page, by itself."""


class Page(HTMLParser):
    """A page's anchors, and the addresses of what a browser loads with it."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.loads: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if name := values.get("id"):
            self.anchors.add(name)
        if (address := values.get(ASSETS.get(tag, ""))) and values.get("rel") != "canonical":
            self.loads.append(address)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    outside = {(page.name, address) for page in pages for address in Page(page).loads if re.match(r"(\w+:)?//", address)}
    assert pages and not outside
    assert not [css for css in site.rglob("*.css") if re.search(r"url\([\"']?(https?:)?//", css.read_text(encoding="utf-8"))]


def test_the_api_has_every_name_of_the_package(site: Path) -> None:
    import raylign

    assert {f"raylign.{name}" for name in raylign.__all__} <= Page(site / "api.html").anchors


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md"])
def test_links_beside_the_site_lead_somewhere(site: Path, file: str) -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / file).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"\w+:", link)]
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        assert (ROOT / path).exists(), link
        if anchor:
            assert anchor in Page(site / Path(path).relative_to("docs").with_suffix(".html")).anchors, link
