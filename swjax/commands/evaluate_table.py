"""The table of scores that `swjax evaluate` prints."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

COLUMNS = {
    "loss": ("loss (nats a token)", "{:.3f}"),
    "perplexity": ("perplexity", "{:.2f}"),
    "event_accuracy": ("event accuracy", "{:.1%}"),
    "grammatical": ("grammatical", "{:.1%}"),
    "fluency": ("fluency (1 to 5)", "{:.2f}"),
    "cider": ("CIDEr", "{:.1f}"),
    "bleu1": ("BLEU-1", "{:.1f}"),
    "bleu4": ("BLEU-4", "{:.1f}"),
    "meteor": ("METEOR", "{:.1f}"),
    "rouge_l": ("ROUGE-L", "{:.1f}"),
    "repetition": ("repetition", "{:.1%}"),
    "fragments": ("fragments", "{:.1%}"),
    "ended": ("ended by itself", "{:.1%}"),
    "words": ("tokens", "{:.1f}"),
    "first_word_s": ("first token after (s)", "{:.2f}"),
    "word_s": ("mean token after (s)", "{:.2f}"),
    "lag_s": ("average lagging (s)", "{:.2f}"),
}
"""Heading and form of each score; others are shown under their own names."""


def show_scores(out: Console, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a line a score and a column a row of scores.json, of which the first shows its intervals."""
    names = [name for row in rows.values() for name in row.get("intervals", {})]
    table = Table()
    table.add_column("", no_wrap=True)
    for row in rows:
        table.add_column(row, justify="right")
    for name in sorted(dict.fromkeys(names), key=lambda name: list(COLUMNS).index(name) if name in COLUMNS else 99):
        heading, _ = COLUMNS.get(name, (name, ""))
        table.add_row(heading, *(_cell(row, name, is_first=not number) for number, row in enumerate(rows.values())))
    out.print(table)


def _cell(row: Mapping[str, Any], name: str, *, is_first: bool) -> str:
    if name not in row:
        return ""
    _, form = COLUMNS.get(name, ("", "{:.3g}"))
    if not is_first:
        return form.format(row[name])
    low, high = row["intervals"][name]
    return f"{form.format(row[name])}  [dim]{form.format(low)} to {form.format(high)}[/]"
