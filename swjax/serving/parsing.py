"""Clients' text messages, read and checked: what is wrong is refused with its field and the mend."""

import json
from collections.abc import Callable
from typing import get_args

from swjax.inference.settings import Mode, WhenBehind
from swjax.serving.limits import CONTROL_MESSAGE_BYTES, Limits
from swjax.serving.protocol import Ask, ClientMessage, Close, Finish, Last, Open, ProtocolError
from swjax.streaming import Variant


def parse(text: str, limits: Limits) -> ClientMessage:
    """Read a client's text message.

    Raises:
        ProtocolError: it is none, or has a field that nobody knows or a value out of range.
    """
    if len(text) > CONTROL_MESSAGE_BYTES:
        raise ProtocolError("too_big", f"a text message may have {CONTROL_MESSAGE_BYTES} characters, got {len(text)}")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("bad_message", f"a text message must be a JSON object ({error})") from error
    if not isinstance(found, dict):
        raise ProtocolError("bad_message", 'a text message must be a JSON object, such as {"type": "open"}')
    kind = found.pop("type", None)
    checks = _open_checks(limits) if kind == "open" else _ask_checks(limits) if kind == "ask" else {}
    unknown = [name for name in found if name not in checks]
    if kind not in ("open", "ask", "last", "finish", "close"):
        raise ProtocolError("bad_message", f'"type" must be open, ask, last, finish or close, got {_shown(kind)}')
    if unknown:
        known = f"; its fields are {', '.join(checks)}" if checks else " and has none"
        raise ProtocolError("bad_message", f'"{kind}" has no field {_shown(unknown[0])}{known}')
    if not checks:
        return Last() if kind == "last" else Finish() if kind == "finish" else Close()
    values = {name: value for name, value in found.items() if value is not None}
    for name, value in values.items():
        if (mend := checks[name](value)) is not None:
            raise ProtocolError("bad_message", f'"{name}" must be {mend}, got {_shown(value)}')
    if kind == "open":
        return Open(**values)
    if "question" not in values:
        raise ProtocolError("bad_message", '"ask" must have a "question"')
    return Ask(**values)


_Check = Callable[[object], str | None]


def _open_checks(limits: Limits) -> dict[str, _Check]:
    """What each field of `open` may be; a check answers with the mend."""
    return {
        "question": _text(limits.max_question_characters),
        "variant": _one_of(tuple(Variant)),
        "mode": _one_of(tuple(Mode)),
        "wait_k": _whole(1, limits.max_wait_k),
        "gap": _whole(0, 1_000_000),
        "max_tail": _whole(1, limits.max_tail),
        "when_behind": _one_of(get_args(WhenBehind)),
        "watches_on": _yes_or_no,
        "temperature": _number(0, 100),
        "top_k": _whole(0, 2**31 - 1),
        "top_p": _number(1e-6, 1),
        "repetition_penalty": _number(0.01, 100),
        "seed": _whole(0, 2**32 - 1),
    }


def _ask_checks(limits: Limits) -> dict[str, _Check]:
    return {"question": _text(limits.max_question_characters), "interrupt": _yes_or_no}


def _yes_or_no(value: object) -> str | None:
    return None if isinstance(value, bool) else "true or false"


def _text(longest: int) -> _Check:
    def check(value: object) -> str | None:
        if not isinstance(value, str) or not value.strip() or len(value) > longest:
            return f"a text of 1 to {longest} characters"
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return f"a text that UTF-8 can encode, and character {error.start} is half of a surrogate pair"
        return None

    return check


def _one_of(names: tuple[str, ...]) -> _Check:
    return lambda value: None if isinstance(value, str) and value in names else f"one of {', '.join(names)}"


def _whole(low: int, high: int) -> _Check:
    def check(value: object) -> str | None:
        ok = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        return None if ok else f"a whole number from {low} to {high}"

    return check


def _number(low: float, high: float) -> _Check:
    def check(value: object) -> str | None:
        # By comparison alone: NaN is in no range, and an integer may be beyond what a float holds.
        ok = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
        return None if ok else f"a number from {low:g} to {high:g}"

    return check


def _shown(value: object) -> str:
    """A value as an error shows it: short."""
    try:
        text = json.dumps(value)
    except RecursionError:
        text = "what is nested too deeply"
    return text if len(text) <= 60 else f"{text[:57]}..."
