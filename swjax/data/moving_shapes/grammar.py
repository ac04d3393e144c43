"""The language of Moving Shapes: captions from events, and events back from captions.

The grammar, in which every word and every full stop is one token of the tokenizer that is shipped beside it:

    caption  = opening { " " sentence }
    opening  = "The video shows a" COLOUR SHAPE "entering from the" SIDE "."
    sentence = "It turns" DIRECTION "."
             | "It hits a" COLOUR SHAPE "."
             | "It becomes" COLOUR "."
             | "It leaves at the" SIDE "."
             | "It moves" DIRECTION "." | "It keeps moving" DIRECTION "."

A caption is **grammatical** if it derives from `caption`, to the letter; what it claims is another matter. It is
**consistent** if, besides, its sentences can be true together (`is_consistent`). How good the claims are is
`event_accuracy`. Sentences of the last line are **fillers**: they are events of kind `move`, which parse like the
others, but they are not scored, so that a model cannot gain by filling its time with them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal, get_args

Kind = Literal["enter", "turn", "hit", "recolour", "leave", "move"]

KINDS: tuple[Kind, ...] = get_args(Kind)
SCORED_KINDS: frozenset[Kind] = frozenset(("enter", "turn", "hit", "recolour", "leave"))
COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
SHAPES = ("circle", "square", "triangle")
DIRECTIONS = ("left", "right", "up", "down")
SIDES = ("left", "right", "top", "bottom")

OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
SIDE_OF_DIRECTION = {"left": "left", "right": "right", "up": "top", "down": "bottom"}
DIRECTION_OF_SIDE = {side: direction for direction, side in SIDE_OF_DIRECTION.items()}

_SLOTS: dict[Kind, tuple[str, ...]] = {
    "enter": ("colour", "shape", "side"),
    "turn": ("direction",),
    "hit": ("colour", "shape"),
    "recolour": ("colour",),
    "leave": ("side",),
    "move": ("direction",),
}
_VALUES = {"colour": COLOURS, "shape": SHAPES, "direction": DIRECTIONS, "side": SIDES}
_TEMPLATES: tuple[tuple[Kind, str], ...] = (
    ("enter", "The video shows a {colour} {shape} entering from the {side}."),
    ("turn", "It turns {direction}."),
    ("hit", "It hits a {colour} {shape}."),
    ("recolour", "It becomes {colour}."),
    ("leave", "It leaves at the {side}."),
    ("move", "It moves {direction}."),
    ("move", "It keeps moving {direction}."),
)
_FIRST_FILLER, _NEXT_FILLER = (template for kind, template in _TEMPLATES if kind == "move")
_TEMPLATE_OF = {kind: template for kind, template in _TEMPLATES if kind != "move"}


def _pattern(template: str) -> re.Pattern[str]:
    choices = {slot: f"(?P<{slot}>{'|'.join(values)})" for slot, values in _VALUES.items()}
    return re.compile(template.replace(".", r"\.").format(**choices))


_PATTERNS = tuple((kind, _pattern(template)) for kind, template in _TEMPLATES)


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that a sentence can say, with all that it says.

    Attributes:
      kind: `enter`, `turn`, `hit`, `recolour`, `leave`, or the filler `move`.
      colour: of the shape that enters, of the shape that is hit, or the new colour.
      shape: of the shape that enters, or of the one that is hit.
      direction: the new direction (`turn`) or the present one (`move`).
      side: where the shape enters or leaves.

    Slots that the kind does not have are None. A missing, needless or unknown value is a ValueError.
    """

    kind: Kind
    colour: str | None = None
    shape: str | None = None
    direction: str | None = None
    side: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in _SLOTS:
            raise ValueError(f"unknown kind of event {self.kind!r}; the kinds are {', '.join(KINDS)}")
        for slot, values in _VALUES.items():
            value = getattr(self, slot)
            if slot not in _SLOTS[self.kind]:
                if value is not None:
                    raise ValueError(f"an event of kind {self.kind!r} has no {slot}, but it is given as {value!r}")
            elif value not in values:
                raise ValueError(f"{slot} of a {self.kind!r} event is {value!r}; expected one of {', '.join(values)}")

    def slots(self) -> dict[str, str]:
        """The values of the slots that this kind of event has, by name."""
        return {slot: getattr(self, slot) for slot in _SLOTS[self.kind]}


@dataclasses.dataclass(frozen=True)
class ParsedCaption:
    """What `parse_caption` found.

    Attributes:
      events: the events of the well-formed sentences, in order, fillers included.
      grammatical: whether the whole text derives from the grammar.
      consistent: whether it is grammatical and its sentences can be true together.
      unparsed: the pieces of text that are no sentence of the grammar, in order.
    """

    events: tuple[Event, ...]
    grammatical: bool
    consistent: bool
    unparsed: tuple[str, ...]


def write_sentence(event: Event, previous: Event | None) -> str:
    """The sentence that says `event` after the sentence that said `previous` (None for the first one)."""
    if event.kind == "move":
        template = _NEXT_FILLER if previous is not None and previous.kind == "move" else _FIRST_FILLER
        return template.format(**event.slots())
    return _TEMPLATE_OF[event.kind].format(**event.slots())


def parse_caption(text: str) -> ParsedCaption:
    """Read `text`: the events of its well-formed sentences, and whether all of it is one caption of the grammar.

    A sentence ends at a full stop. Spaces around a sentence are forgiven when its event is read, but not in
    `grammatical`, which is exact: an end without a full stop, two spaces, or a second opening are all ungrammatical.
    """
    sentences = [piece.strip() for piece in re.findall(r"[^.]*\.|[^.]+$", text)]
    parsed = [(sentence, _parse_sentence(sentence)) for sentence in sentences]
    events = tuple(event for _, event in parsed if event is not None)
    unparsed = tuple(sentence for sentence, event in parsed if event is None and sentence)
    well_formed = all(event is not None for _, event in parsed)
    grammatical = well_formed and _opens_once(events) and text == " ".join(sentences)
    return ParsedCaption(events, grammatical, grammatical and is_consistent(events), unparsed)


def is_consistent(events: Sequence[Event]) -> bool:
    """Whether events can follow one another: who came from the left moves right and leaves ahead, and the like.

    A shape that enters heads away from its side, a turn is a quarter turn, a hit reverses the heading, a filler says
    the heading, a new colour is new, a shape leaves at the side that it heads for, and nothing happens afterwards.
    """
    if not _opens_once(events):
        return False
    heading, colour = "", ""
    for index, event in enumerate(events):
        allowed = {
            "enter": True,
            "turn": event.direction not in (heading, OPPOSITE.get(heading)),
            "hit": True,
            "recolour": event.colour != colour,
            "leave": event.side == SIDE_OF_DIRECTION.get(heading) and index == len(events) - 1,
            "move": event.direction == heading,
        }
        if not allowed[event.kind]:
            return False
        heading = heading_after(event, heading)
        colour = event.colour or "" if event.kind in ("enter", "recolour") else colour
    return True


def heading_after(event: Event, heading: str) -> str:
    """The direction of the moving shape once `event` has happened, given its direction before (ignored by `enter`)."""
    if event.kind == "enter":
        return OPPOSITE[DIRECTION_OF_SIDE[event.side or ""]]
    if event.kind == "hit":
        return OPPOSITE[heading]
    return event.direction or heading


def scored_events(events: Sequence[Event]) -> tuple[Event, ...]:
    """`events` without the fillers."""
    return tuple(event for event in events if event.kind in SCORED_KINDS)


def event_accuracy(predicted: Sequence[Event], true: Sequence[Event]) -> float:
    """How much of what happened was said, in order, and nothing else: from 0 to 1.

    The length of the longest common subsequence of the scored events, divided by the larger of the two numbers of
    scored events. Two events are the same only if kind and every slot are; times play no part; fillers are left out
    on both sides. So an event that is missed, invented, repeated, out of order, or wrong in one slot costs alike.
    Two empty sequences have accuracy 1.
    """
    said, happened = scored_events(predicted), scored_events(true)
    if not said and not happened:
        return 1.0
    best = [0] * (len(happened) + 1)
    for event in said:
        row = [0]
        for index, other in enumerate(happened):
            row.append(best[index] + 1 if event == other else max(best[index + 1], row[index]))
        best = row
    return best[-1] / max(len(said), len(happened))


def split_tokens(text: str) -> list[str]:
    """The words (each with the space before it) and full stops of a caption: the shipped tokenizer's tokens."""
    return re.findall(r" ?[A-Za-z]+|\.", text)


def vocabulary() -> tuple[str, ...]:
    """Every token that a caption can hold, in alphabetical order: words as `split_tokens` gives them, and "."."""
    tokens: set[str] = set()
    for index, (_, template) in enumerate(_TEMPLATES):
        words = split_tokens(re.sub(r" \{\w+\}", "", template))
        tokens.update(words if index == 0 else [" " + words[0], *words[1:]])
    tokens.update(f" {value}" for values in _VALUES.values() for value in values)
    return tuple(sorted(tokens))


def _parse_sentence(sentence: str) -> Event | None:
    for kind, pattern in _PATTERNS:
        if match := pattern.fullmatch(sentence):
            return Event(kind, **match.groupdict())
    return None


def _opens_once(events: Sequence[Event]) -> bool:
    return [event.kind == "enter" for event in events] == [True] + [False] * (len(events) - 1)
