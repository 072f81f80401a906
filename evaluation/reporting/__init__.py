"""The kit that the pages of all programs are made of.

`html` (what pages consist of), `chart` (how charts are drawn), `gallery` (retrieved examples), `comparison` (scores of several
models side by side), `classification` (what every classification shows), `number_format`, `render` with `style.css` (the whole
page) and `markdown` (the same as Markdown).
It imports no task: tasks import it, for their blocks of the page that compares models (`evaluation.report`).
"""
