"""CITATION.cff has every paper that the code and the docs name."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent


def test_every_paper_that_is_named_is_cited() -> None:
    files = [f for folder in ("training", "evaluation", "pipelines", "docs") for f in (ROOT / folder).rglob("*")]
    texts = [f.read_text(encoding="utf-8") for f in files if f.suffix in (".py", ".md", ".yaml")]
    named = {number for text in texts for number in re.findall(r"arXiv[:\s]\s*(\d{4}\.\d{4,5})", text)}
    cited = [r["identifiers"][0]["value"] for r in yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]]
    assert len(named) > 20 and len(cited) == len(set(cited))
    assert {f"arXiv:{number}" for number in named} == set(cited)
