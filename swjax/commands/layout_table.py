"""Layouts as tables: one design token by token, or several designs beside one another."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from rich.table import Table
from rich.text import Text

from swjax.commands.layout_view import (
    Part,
    PartNumbers,
    name_part,
    name_seen,
    number_parts,
    short_range,
    steps_in_time,
    time_order,
)
from swjax.streaming import DESIGNS, SpecialTokens, StreamLayout, Variant

Run = Int[np.ndarray, "run"]

TARGET_STYLE = "dark_orange"
MOST_TOKENS_OF_A_RUN = 8


@dataclass(frozen=True)
class TokenLine:
    """One token, or a run of neighbours that are alike.

    Attributes:
        time: places in time, such as "3" or "8-11".
        group: source or target.
        step: number of the frame that has arrived last.
        part: what it is, such as "frame 1" or "words 3-5".
        token: text of the tokens; empty for frames and images.
        ids: temporal, height and width position ids.
        sees: what the query sees; of a run, its last.
        predicts: text of the tokens that the queries are trained to predict; empty without loss.
    """

    time: str
    group: str
    step: str
    part: str
    token: str
    ids: tuple[str, str, str]
    sees: str
    predicts: str


def choose_runs(
    layout: StreamLayout, variant: Variant, special: SpecialTokens, *, collapse: bool, most: int | None = None
) -> list[Run | None]:
    """Cut a chat into the runs of tokens that a table gives a line each, in the order of time.

    Args:
        layout: of one chat, without padding.
        variant: its position design.
        special: ids of the tokens that give the chat its structure.
        collapse: put the tokens of a frame, and of the text of a step, into one run; otherwise each is its own.
        most: runs to keep, half from either end; None for all.

    Returns:
        Indices in the chat, ascending; None stands where runs are left out.
    """
    slots = np.argsort(layout.chat_index)
    numbers = number_parts(layout, special)
    part, number = numbers.part[slots], numbers.number[slots]
    whole = np.where((part == Part.TEXT) | (part == Part.WORD), 0, number)
    keys = np.stack([part, whole, layout.step[slots]])
    changes = (np.diff(keys, axis=1) != 0).any(axis=0) if collapse else np.ones(max(len(slots) - 1, 0), bool)
    runs = np.split(np.arange(len(slots)), np.flatnonzero(changes) + 1)
    when = np.argsort(time_order(layout, DESIGNS[variant]))[slots]
    runs.sort(key=lambda run: when[run[0]])
    if most is None or len(runs) <= most:
        return [*runs]
    return [*runs[: most - most // 2], None, *runs[len(runs) - most // 2 :]]


def token_lines(
    layout: StreamLayout,
    variant: Variant,
    special: SpecialTokens,
    runs: Sequence[Run | None],
    text_of: Callable[[int], str],
) -> list[TokenLine | None]:
    """A line for each run of `choose_runs`, which may come from another design of the same chat.

    Args:
        layout: of one chat, without padding.
        variant: its position design.
        special: ids of the tokens that give the chat its structure.
        runs: indices in the chat; None stays None.
        text_of: text of a token's id.
    """
    order = time_order(layout, DESIGNS[variant])
    step, time = np.empty_like(order), np.argsort(order)
    step[order] = steps_in_time(layout, DESIGNS[variant])
    numbers, slot_of = number_parts(layout, special), np.argsort(layout.chat_index)
    return [None if run is None else _line(layout, numbers, slot_of[run], time, step, special, text_of) for run in runs]


def design_table(lines: Sequence[TokenLine | None], title: str) -> Table:
    """The table of one design."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim")
    for name in ("time", "group", "step", "part", "token"):
        table.add_column(name, no_wrap=name != "token")
    for name in ("t", "h", "w"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("sees")
    table.add_column("predicts")
    for line in lines:
        if line is None:
            table.add_row("...")
            continue
        cells = (line.time, line.group, line.step, line.part, line.token, *line.ids, line.sees, line.predicts)
        table.add_row(*map(Text, cells), style=_style(line))
    return table


def ids_table(lines: Mapping[Variant, Sequence[TokenLine | None]]) -> Table:
    """Position ids of several designs beside one another; their lines are of the same runs."""
    columns = {str(variant): [_ids(line) for line in some] for variant, some in lines.items()}
    return _side_by_side("position ids (t h w, or one where they agree)", next(iter(lines.values())), columns)


def seen_table(lines: Mapping[Variant, Sequence[TokenLine | None]]) -> Table:
    """What each query sees in several designs, whose lines are of the same runs; designs that agree share a column."""
    alike: dict[tuple[str, ...], list[Variant]] = {}
    for variant, some in lines.items():
        alike.setdefault(tuple("" if line is None else line.sees for line in some), []).append(variant)
    columns = {", ".join(variants): seen for seen, variants in alike.items()}
    return _side_by_side("what each query sees", next(iter(lines.values())), columns)


def _side_by_side(title: str, lines: Sequence[TokenLine | None], columns: Mapping[str, Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim")
    table.add_column("part", no_wrap=True)
    table.add_column("token")
    for name in columns:
        table.add_column(name)
    for line, *cells in zip(lines, *columns.values(), strict=True):
        if line is None:
            table.add_row("...")
        else:
            table.add_row(*map(Text, (line.part, line.token, *cells)), style=_style(line))
    return table


def _ids(line: TokenLine | None) -> str:
    if line is None:
        return ""
    return line.ids[0] if len(set(line.ids)) == 1 else " ".join(line.ids)


def _style(line: TokenLine) -> str | None:
    return TARGET_STYLE if line.group == "target" else None


def _line(
    layout: StreamLayout,
    numbers: PartNumbers,
    slots: Run,
    time: Int[np.ndarray, "L"],
    step: Int[np.ndarray, "L"],
    special: SpecialTokens,
    text_of: Callable[[int], str],
) -> TokenLine:
    part, last = Part(numbers.part[slots[0]]), slots[-1]
    labels = layout.labels[slots]
    temporal, height, width = (short_range(ids) for ids in layout.position_ids[:, slots])
    return TokenLine(
        time=short_range(time[slots]),
        group="target" if layout.is_target[slots[0]] else "source",
        step=short_range(step[slots]),
        part=name_part(numbers, part, np.unique(numbers.number[slots])),
        token="" if part in (Part.FRAME, Part.IMAGE) else _text(layout.token_ids[slots], special, text_of),
        ids=(temporal, height, width),
        sees=name_seen(numbers, slice(int(layout.spans.start[last]), int(layout.spans.stop[last]))),
        predicts=_text(labels[labels >= 0], special, text_of),
    )


def _text(ids: Int[np.ndarray, "N"], special: SpecialTokens, text_of: Callable[[int], str]) -> str:
    names = {
        special.im_start: "<|im_start|>",
        special.im_end: "<|im_end|>",
        special.vision_start: "<|vision_start|>",
        special.vision_end: "<|vision_end|>",
        special.assistant: "assistant",
        special.newline: "\\n",
    }
    texts = [names.get(int(token)) or text_of(int(token)).strip() for token in ids[:MOST_TOKENS_OF_A_RUN]]
    return " ".join(texts) + (" ..." if len(ids) > MOST_TOKENS_OF_A_RUN else "")
