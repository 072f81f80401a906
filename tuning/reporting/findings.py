"""What the trials' own figures say is wrong: how many trials say it, and the best trial's findings in words."""

from collections import defaultdict

from evaluation.reporting import html, number_format
from training.report_findings import what_to_try
from tuning.reporting.sweep_data import Sweep
from tuning.trials import ended

_NAMED = 5  # trials of a row


def findings(sweep: Sweep) -> html.Section | None:
    """None where no trial that ended has one."""
    if "findings" not in sweep.trials:  # of an earlier version
        return None
    trials = defaultdict[str, list[str]](list)
    for trial, kinds in zip(sweep.trials["trial"], sweep.trials["findings"].fillna(""), strict=True):
        for kind in filter(None, kinds.split(", ")):
            trials[kind].append(trial)
    if not trials:
        return None
    rows = []
    for kind, names in sorted(trials.items(), key=lambda entry: -len(entry[1])):
        more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
        rows.append([kind, ", ".join(names[:_NAMED]) + more, f"{len(names):,}"])
    best = _best(sweep)
    outcome = None if best is None else ended(sweep.folder / "trials" / best)
    told = what_to_try(outcome.findings, f"The best, {best}: what to try next") if outcome else ""
    of = number_format.count(int((sweep.trials["status"] != "running").sum()), "trial")
    about = html.paragraph("What each trial's own figures say of it, of {} that ended; a trial may have several.", of)
    return html.section("findings", "Findings", about, told, html.table("Findings", ("finding", "trials", "number"), rows, 2))


def _best(sweep: Sweep) -> str | None:
    """The leader's first final run, else the best trial of the search."""
    if sweep.verdict.leader is not None:
        return str(sweep.results.loc[sweep.results["cell"] == sweep.verdict.leader, "trial"].iloc[0])
    scored = sweep.search[(sweep.search["status"] == "finished") & sweep.search["score"].notna()]
    return None if scored.empty else str(scored.sort_values("score", ascending=sweep.mode == "min")["trial"].iloc[0])
