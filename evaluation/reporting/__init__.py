"""The kit that the pages of all programs are made of.

`html` (what pages consist of), `chart` (how charts are drawn), `comparison` (scores of several models side by side),
`classification` (what every classification shows), `number_format`, and `render` with `style.css` (the whole page).
It imports no task: tasks import it, for their blocks of the page that compares models (`evaluation.report`).
"""
