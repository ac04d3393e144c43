"""Layouts as figures: for each design position ids against time and, below them, who sees whom."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from swjax.atomic import replacing
from swjax.commands.layout_view import Pair, Part, number_parts, pairs_seen, steps_in_time, time_order
from swjax.commands.say import UsageError
from swjax.storage import AnyPath, make_folder
from swjax.streaming import DESIGNS, SpecialTokens, StreamLayout, Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg")
MOST_TOKENS = 600
"""Tokens up to which a mask of a few inches can be read."""
BREAK = 0.16
"""Height at which a gap too wide to draw is drawn, as a share of the ids in use."""

SOURCE, TARGET = "#0072b2", "#d55e00"
SOURCE_SHADES, TARGET_SHADES = ("#7cc3ea", "#004a75"), ("#f7ab63", "#8f3b00")
"""Colours of the first and the last step, told apart by people with any kind of colour vision."""
PAIR_COLOURS = {
    Pair.UNSEEN: "#ffffff",
    Pair.SOURCE_SEES_SOURCE: "#9ecae9",
    Pair.TARGET_SEES_SOURCE: "#f8c08f",
    Pair.TARGET_SEES_TARGET: TARGET,
    Pair.SOURCE_SEES_TARGET: "#5b2a86",
    Pair.PADDING: "#bdbdbd",
}


def draw_layouts(layouts: Mapping[Variant, StreamLayout], special: SpecialTokens, *, columns: int = 3) -> "Figure":
    """Draw one chat as several designs lay it out, each with its position ids over its mask, in the order of time.

    Args:
        layouts: of the same chat, without padding.
        special: ids of the tokens that give the chat its structure.
        columns: designs in a row.

    Raises:
        UsageError: if matplotlib is not installed, or the chat is too long to be seen.
    """
    figure = _figure(max(map(len, layouts.values())))
    columns = min(columns, len(layouts))
    rows = -(-len(layouts) // columns)
    figure.set_size_inches(max(3.5 * columns, 4.5), 4.9 * rows + 0.6)
    outer = figure.add_gridspec(rows, columns, wspace=0.05, hspace=0.06)
    heights = {variant: _heights(layout.position_ids) for variant, layout in layouts.items()}
    top = max(float(height.max()) for height, _ in heights.values())
    for place, (variant, layout) in enumerate(layouts.items()):
        inner = outer[place].subgridspec(3, 1, height_ratios=[1.9, 0.16, 2.5], hspace=0.02)
        above, strip, below = (figure.add_subplot(inner[row]) for row in range(3))
        _draw_ids(above, layout, variant, special, heights[variant], top)
        _draw_strip(strip, layout, variant, special)
        order = time_order(layout, DESIGNS[variant])
        _draw_pairs(below, layout, order, "order of time")
        for axes in (above, strip):
            axes.set_xlim(below.get_xlim())
        if place % columns:
            below.set_ylabel("")
            above.set_ylabel("")
    _add_legend(figure, layouts.values(), columns, points=True)
    return figure


def draw_slots(layouts: Mapping[str, StreamLayout], *, columns: int = 3) -> "Figure":
    """Draw who sees whom in the order of storage, where what a query sees is one span.

    Args:
        layouts: chats or packed rows, by what is written above each.
        columns: masks in a row.

    Raises:
        UsageError: as `draw_layouts`.
    """
    figure = _figure(max(map(len, layouts.values())))
    columns = min(columns, len(layouts))
    rows = -(-len(layouts) // columns)
    figure.set_size_inches(max(3.5 * columns, 4.5), 3.6 * rows + 0.5)
    for place, (title, layout) in enumerate(layouts.items()):
        axes = figure.add_subplot(rows, columns, place + 1)
        _draw_pairs(axes, layout, np.arange(len(layout)), "slot")
        axes.set_title(title, fontsize=10, loc="left")
    _add_legend(figure, layouts.values(), columns, points=False)
    return figure


def save_figure(figure: "Figure", files: Sequence[AnyPath]) -> None:
    """Write a figure as PNG or SVG files; the same figure gives the same bytes.

    Raises:
        UsageError: if a file's name ends otherwise, or it cannot be written.
    """
    import matplotlib

    check_endings(files)
    for file in files:
        svg = file.suffix == ".svg"
        metadata: dict[str, str | None] = {"Date": None, "Creator": None} if svg else {"Software": None}
        try:
            make_folder(file.parent)
            with matplotlib.rc_context({"svg.hashsalt": "swjax"}), replacing(file) as partial:
                figure.savefig(partial, format=file.suffix[1:], metadata=metadata)
        except OSError as error:
            raise UsageError(f"{file} cannot be written: {error.strerror or error}") from error


def check_endings(files: Sequence[AnyPath]) -> None:
    """Refuse file names that say no format which a figure can have.

    Raises:
        UsageError: if one does.
    """
    for file in files:
        if file.suffix not in FORMATS:
            raise UsageError(f"a figure is written to a file that ends in {' or '.join(FORMATS)}, not to {file}")


def _figure(tokens: int) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            "a figure needs matplotlib, which is not installed; install swjax with its extra 'plots': "
            "pip install 'swjax[plots]'"
        ) from error
    if tokens > MOST_TOKENS:
        raise UsageError(
            f"the chat has {tokens:,} tokens, and a figure shows at most {MOST_TOKENS:,}; "
            "take fewer frames or a smaller grid"
        )
    pixels_an_inch = max(140, 2 * tokens // 3)  # two for each cell of a mask three inches wide
    return Figure(layout="constrained", dpi=pixels_an_inch)


def _heights(ids: Int[np.ndarray, "3 L"]) -> tuple[Float[np.ndarray, "3 L"], tuple[int, int] | None]:
    """Heights at which ids are drawn, and the last id before and the first after a gap that is drawn shorter."""
    used = np.unique(ids)
    widths = np.diff(used)
    heights = ids.astype(float)
    if not len(widths) or widths.max() <= len(used):
        return heights, None
    low, high = int(used[widths.argmax()]), int(used[widths.argmax() + 1])
    heights[ids >= high] -= high - low - round(BREAK * len(used) + 1)
    return heights, (low, high)


def _draw_ids(
    axes: "Axes",
    layout: StreamLayout,
    variant: Variant,
    special: SpecialTokens,
    heights: tuple[Float[np.ndarray, "3 L"], tuple[int, int] | None],
    top: float,
) -> None:
    from matplotlib.ticker import MaxNLocator

    order = time_order(layout, DESIGNS[variant])
    height, gap = heights[0][:, order], heights[1]
    colours = _step_colours(layout, variant)
    part = number_parts(layout, special).part[order]
    visual = np.flatnonzero((part == Part.FRAME) | (part == Part.IMAGE))
    time = np.arange(len(order))
    size = float(np.clip(700 / len(order), 3, 15))
    for row, marker in ((1, "_"), (2, "|")):
        axes.scatter(time[visual], height[row, visual], size * 2.2, colours[visual], marker=marker, linewidths=1)
    axes.scatter(time, height[0], size, colours, linewidths=0, zorder=3)
    axes.set_ylim(-0.04 * top - 0.5, 1.04 * top + 0.5)
    if gap is None:
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    else:
        low, high = gap
        above, last = height[layout.position_ids[:, order] >= high].min(), layout.position_ids.max()
        marks = {0.0: 0, low: low, above: high, height.max(): int(last)}
        axes.set_yticks(list(marks), [f"{mark:,}" for mark in marks.values()])
        axes.axhspan(low + 0.5, above - 0.5, facecolor="none", edgecolor="#c8c8c8", hatch="////", linewidth=0)
        words = f"ids {low + 1:,} to {high - 1:,} are unused"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.text(len(order) - 1, (low + above) / 2, words, fontsize=7.5, ha="right", va="center", bbox=box)
    axes.set_title(
        f"$\\bf{{{variant.replace('_', chr(92) + '_')}}}$\n{DESIGNS[variant].summary}", fontsize=9.5, loc="left"
    )
    axes.set_ylabel("position id", fontsize=9)
    axes.tick_params(labelsize=8, bottom=False, labelbottom=False)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def _draw_strip(axes: "Axes", layout: StreamLayout, variant: Variant, special: SpecialTokens) -> None:
    """The tokens in a row, with the numbers of the frames."""
    order = time_order(layout, DESIGNS[variant])
    axes.imshow(_step_colours(layout, variant)[None], aspect="auto", interpolation="nearest")
    numbers = number_parts(layout, special)
    part, number = numbers.part[order], numbers.number[order]
    for frame in np.unique(number[part == Part.FRAME]):
        places = np.flatnonzero((part == Part.FRAME) & (number == frame))
        if len(places) * 40 > len(order):
            colour = "white" if frame > number[part == Part.FRAME].max() / 3 else "black"
            axes.text(places.mean(), 0, str(frame), fontsize=7, ha="center", va="center", color=colour)
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)


def _draw_pairs(axes: "Axes", layout: StreamLayout, order: Int[np.ndarray, "L"], unit: str) -> None:
    from matplotlib.colors import ListedColormap
    from matplotlib.ticker import MaxNLocator

    axes.imshow(
        pairs_seen(layout, order),
        cmap=ListedColormap(list(PAIR_COLOURS.values())),
        vmin=-0.5,
        vmax=len(PAIR_COLOURS) - 0.5,
        aspect="auto",
        interpolation="nearest",
    )
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel(f"key ({unit})", fontsize=9)
    axes.set_ylabel(f"query ({unit})", fontsize=9)
    axes.tick_params(labelsize=8)


def _step_colours(layout: StreamLayout, variant: Variant) -> Float[np.ndarray, "L 3"]:
    """RGB of each token in the order of time: the hue is the group's, the shade the step's."""
    from matplotlib.colors import to_rgb

    step = steps_in_time(layout, DESIGNS[variant])
    is_target = layout.is_target[time_order(layout, DESIGNS[variant])]
    first, last = (
        np.where(is_target[:, None], to_rgb(target), to_rgb(source))
        for target, source in zip(TARGET_SHADES, SOURCE_SHADES, strict=True)
    )
    share = (step / max(int(step.max()), 1))[:, None]
    return first * (1 - share) + last * share


def _add_legend(figure: "Figure", layouts: Iterable[StreamLayout], columns: int, *, points: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    found = np.unique(np.concatenate([np.unique(pairs_seen(layout)) for layout in layouts]))
    handles: list[Any] = []
    if points:
        names = {"o": "temporal id", "_": "row id", "|": "column id"}
        handles = [
            Line2D([], [], color="#404040", marker=marker, linestyle="none", markersize=6, label=name)
            for marker, name in names.items()
        ]
        groups = (("source, darker by frame", SOURCE), ("target, darker by frame", TARGET))
        handles += [Line2D([], [], color=colour, marker="s", linestyle="none", label=name) for name, colour in groups]
    for pair in Pair:
        if pair in found and pair is not Pair.UNSEEN:
            name = pair.name.lower().replace("_", " ")
            handles.append(Patch(facecolor=PAIR_COLOURS[pair], edgecolor="#808080", linewidth=0.5, label=name))
    ncols = (2, 3, 5)[min(columns, 3) - 1]
    figure.legend(handles=handles, loc="outside lower center", ncols=ncols, frameon=False, fontsize=8.5)
