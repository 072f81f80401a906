"""What a run's page and a sweep's say of the findings (diagnosis.py)."""

from collections.abc import Iterable, Mapping

from markupsafe import Markup

from evaluation.reporting import html


def what_to_try(findings: Iterable[Mapping[str, str]], title: str = "What to try next") -> Markup:
    """A block with each finding's evidence and advice; nothing where there is none. `findings`: as in `result.json`."""
    items = [
        html.tag("li", html.fill("<b>{}</b>: {}. {}.", finding["kind"].capitalize(), finding["evidence"], finding["advice"]))
        for finding in findings
    ]
    return html.div("advice", html.tag("h2", title), html.tag("ul", *items)) if items else Markup("")
