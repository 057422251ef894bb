"""Tables of results on a terminal."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from flwr_ctma.experiments.comparison import RuleSummary
from flwr_ctma.experiments.match import Match, MatchResult
from flwr_ctma.experiments.scores import worst, worst_case_interval
from flwr_ctma.report.scores import attacks_of, format_score, is_share

__all__ = ["comparison_table", "ledger_table", "score_table"]

_COLUMNS = 6


def comparison_table(summaries: Sequence[RuleSummary]) -> Table:
    """Show accuracy by rule and round, in per cent."""
    common = set[int].intersection(*(set(one.curve.rounds) for one in summaries))
    last = max(common, default=0)
    step = max(-(-last // _COLUMNS), 1)
    rounds = [number for number in range(step, last, step) if number in common]
    has_backdoor = any(one.backdoor is not None for one in summaries)
    table = Table(box=SIMPLE_HEAD)
    table.add_column("after round", no_wrap=True)
    for number in rounds:
        table.add_column(str(number), justify="right")
    table.add_column(str(last), justify="right", style="bold", no_wrap=True)
    table.add_column("kept", justify="right", no_wrap=True)
    if has_backdoor:
        table.add_column("backdoor", justify="right", no_wrap=True)
    for one in summaries:
        means = dict(zip(one.curve.rounds, one.curve.mean, strict=True))
        cells = [_percent(means[number]) for number in rounds]
        cells += [one.final_text, _count(one.malicious_kept)]
        cells += [_percent(one.backdoor or 0.0)] if has_backdoor else []
        table.add_row(Text(one.aggregator), *cells)
    return table


def score_table(
    f: int,
    n: int,
    by_rule: Mapping[str, Mapping[str, float | None]],
    results: Mapping[Match, MatchResult] | None = None,
) -> Table:
    """Show scores of rules by attack, each worst case in red, the best rule first.

    With results of several seeds, a 95 % bootstrap interval follows the worst case.
    """
    title = Text(f"{f} of {n} clients malicious", style="italic")
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("rule", no_wrap=True)
    attacks, share = attacks_of(by_rule), is_share(by_rule)
    for attack in [*attacks, "worst"]:
        table.add_column(Text(attack), justify="right", overflow="fold")
    intervals = {rule: worst_case_interval(results or {}, rule, f) for rule in by_rule}
    if any(intervals.values()):
        table.add_column("95 % interval", justify="right")
    for rule, by_attack in by_rule.items():
        low, interval = worst(by_attack), intervals[rule]
        cells = [
            Text(
                format_score(value, share),
                style="bold red" if value is not None and value == low else "",
            )
            for value in (by_attack[attack] for attack in attacks)
        ]
        cells.append(Text(format_score(low, share), style="bold"))
        if interval:
            ends = (format_score(end, share) for end in (interval.low, interval.high))
            cells.append(Text("–".join(ends)))
        table.add_row(Text(rule), *cells)
    return table


def ledger_table(
    f: int, n: int, results: Mapping[Match, MatchResult], attacks: Sequence[str]
) -> Table | None:
    """Show by attack and rule how well the ledger tells attackers from honest nodes.

    A cell holds the area under the ROC curve, then the numbers of malicious and of
    honest suspects after the last round; all are means over seeds. None if no rule
    keeps a ledger.
    """
    cells: dict[tuple[str, str], list[MatchResult]] = {}
    for match, result in results.items():
        if match.num_malicious == f and result.false_suspects is not None:
            cells.setdefault((match.attack, match.aggregator), []).append(result)
    if not cells:
        return None
    title = f"Suspicion, {f} of {n} malicious: AUC, true + false suspects"
    table = Table(
        title=Text(title, style="italic"), title_justify="left", box=SIMPLE_HEAD
    )
    table.add_column("attack", no_wrap=True)
    rules = list(dict.fromkeys(rule for _, rule in cells))
    for rule in rules:
        table.add_column(Text(rule), justify="right")
    for attack in attacks:
        row = [cells.get((attack, rule), []) for rule in rules]
        table.add_row(Text(attack), *map(_ledger_cell, row))
    return table


def _ledger_cell(results: Sequence[MatchResult]) -> str:
    """Return a cell of the ledger's table.

    Examples
    --------
    >>> one = MatchResult(0.9, 1.0, auc=1.0, true_suspects=5, false_suspects=0)
    >>> _ledger_cell([one])
    '1.00 5+0'
    """
    if not results:
        return "–"
    aucs = [one.auc for one in results if one.auc is not None]
    true = fmean(one.true_suspects or 0 for one in results)
    false = fmean(one.false_suspects or 0 for one in results)
    return f"{fmean(aucs):.2f} {true:.3g}+{false:.3g}" if aucs else f"{false:.3g} false"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
