"""Draws docs/images/architecture.svg from the code: who imports whom, and where a configuration goes.

    python docs/architecture.py

reads swjax/ as text, and imports nothing of it. A test holds the picture to the code.
"""

import ast
import functools
from collections import Counter
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).parents[1]
PICTURE = REPOSITORY / "docs" / "images" / "architecture.svg"
EDGE = (
    (0, "run", "swjax.commands.train", "words of the command line"),
    (1, "load_config", "swjax.training.config_file", "file, overrides"),
)
TRAIN = ("swjax.training.run", "train")
OLD_NAMES = {"conversion"}
LINE, ROOM_HEIGHT, ROOM_WIDTH = 17, 30, 92


class Call(NamedTuple):
    """A function that takes a configuration or some of it.

    Attributes:
        depth: how many calls it is away from the command.
        function, module: where it is.
        takes: the arguments, without their `config.`.
    """

    depth: int
    function: str
    module: str
    takes: str


def file_of(module: str) -> Path | None:
    """The file of a module of swjax; None if it is not one."""
    path = REPOSITORY.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()), None)


@functools.cache
def parse(module: str) -> ast.Module:
    """The syntax tree of a module of swjax."""
    file = file_of(module)
    assert file is not None, module
    return ast.parse(file.read_text())


def rooms() -> dict[str, set[str]]:
    """Every package of swjax, and those that its files import."""
    folders = sorted(file.parent for file in (REPOSITORY / "swjax").glob("*/__init__.py"))
    names = {folder.name for folder in folders} - OLD_NAMES
    found = {name: set[str]() for name in sorted(names)}
    for name in found:
        for file in (REPOSITORY / "swjax" / name).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                parts = [module.split(".") for module in modules if module.startswith("swjax.")]
                found[name] |= {part[1] for part in parts if part[1] in names and part[1] != name}
    return found


def without_detours(imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """The imports but those of a room that another imported one imports, too."""

    def below(name: str) -> set[str]:
        return imports[name].union(*map(below, imports[name]))

    return {name: found - set().union(*map(below, found)) for name, found in imports.items()}


def level(name: str, imports: dict[str, set[str]]) -> int:
    """0 for a room that imports none, else one more than the highest that it imports."""
    return max((level(other, imports) + 1 for other in imports[name]), default=0)


def is_config(node: ast.expr) -> bool:
    """Whether an expression is `config`, or a part of it such as `config.lora.rank`."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name) and node.id == "config"


def walk(module: str, function: str, depth: int = 1) -> Iterator[Call]:
    """The calls that pass a configuration on, as the source has them; those of a function when it is met first."""
    yield from _walk(module, function, depth, set())


def _walk(module: str, function: str, depth: int, seen: set[tuple[str, str]]) -> Iterator[Call]:
    seen.add((module, function))
    tree = parse(module)
    own = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    imported = {
        alias.asname or alias.name: (node.module or "", alias.name)
        for node in [*tree.body, *ast.walk(own[function])]
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    calls = [node for node in ast.walk(own[function]) if isinstance(node, ast.Call)]
    for call in sorted(calls, key=lambda node: (node.lineno, node.col_offset)):
        callee, arguments = call.func, [*call.args, *(keyword.value for keyword in call.keywords)]
        if ast.unparse(callee) == "functools.partial":
            callee, *arguments = arguments
        if not isinstance(callee, ast.Name) or not (takes := list(filter(is_config, arguments))):
            continue
        where = (module, callee.id) if callee.id in own else imported.get(callee.id, ("", ""))
        if not where[0].startswith("swjax.") or where[1][0].isupper():
            continue
        where = _defined(*where)
        if where[0] != "swjax.storage.paths":  # what makes a path of a name
            yield Call(depth, where[1], where[0], _named(takes))
        passes_all = any(isinstance(argument, ast.Name) for argument in takes)
        if passes_all and where not in seen:
            yield from _walk(*where, depth + 1, seen)


def _named(takes: list[ast.expr]) -> str:
    """`config.steps` as steps; many keys of a section by their number."""
    names = [ast.unparse(node).removeprefix("config.") for node in takes]
    sections = Counter(name.partition(".")[0] for name in names if "." in name)
    many = {section for section, count in sections.items() if count > 3}
    shown = [f"{count} keys of {section}" for section, count in sections.items() if section in many]
    return ", ".join([*shown, *(name for name in names if name.partition(".")[0] not in many)])


def _defined(module: str, function: str) -> tuple[str, str]:
    """Where a name that a package hands on is defined."""
    for node in parse(module).body:
        if isinstance(node, ast.ImportFrom) and function in {alias.name for alias in node.names}:
            return _defined(node.module or "", function)
    return module, function


def draw() -> str:
    """The picture."""
    imports = rooms()
    levels: dict[int, list[str]] = {}
    for name in imports:
        levels.setdefault(level(name, imports), []).append(name)
    top, gap, left = 78, 74, 10
    places = {}
    for number, names in levels.items():
        for index, name in enumerate(names):
            shift = (3 - len(names)) * (ROOM_WIDTH + 38) / 2 + 30 * (
                number % 2
            )  # a line of two levels ends beside a room
            places[name] = left + shift + index * (ROOM_WIDTH + 38), top + (max(levels) - number) * gap
    calls = [*(Call(*edge) for edge in EDGE), Call(1, TRAIN[1], TRAIN[0], "config"), *walk(*TRAIN, 2)]
    assert all(
        any(isinstance(node, ast.FunctionDef) and node.name == call.function for node in parse(call.module).body)
        for call in calls
    )
    height = max(top + len(calls) * LINE, top + len(levels) * gap) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="1120" height="{height}" font-family="sans-serif">',
        f'<rect width="1120" height="{height}" fill="#fff"/>',
        '<marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">',
        '<path d="M0 0L8 4L0 8z" fill="#888"/></marker>',
        _text(20, 28, "Who imports whom", size=16, weight="bold"),
        _text(20, 46, "a room imports those that an arrow leads to, directly or by others"),
        _text(430, 28, "Where a configuration goes", size=16, weight="bold"),
        _text(430, 46, "from the command to the step: what is called, what of it it takes, and where it lies"),
    ]
    for name, others in without_detours(imports).items():
        x, y = places[name]
        for other in sorted(others):
            to_x, to_y = places[other]
            ends = (
                f'x1="{x + ROOM_WIDTH / 2:g}" y1="{y + ROOM_HEIGHT:g}" x2="{to_x + ROOM_WIDTH / 2:g}" y2="{to_y - 1:g}"'
            )
            parts.append(f'<line {ends} stroke="#888" marker-end="url(#tip)"/>')
    for name, (x, y) in places.items():
        box = f'x="{x:g}" y="{y:g}" width="{ROOM_WIDTH}" height="{ROOM_HEIGHT}"'
        parts.append(f'<rect {box} rx="5" fill="#eef3fb" stroke="#4a6fa5"/>')
        parts.append(_text(x + ROOM_WIDTH / 2, y + 20, name, size=13, anchor="middle"))
    for number, call in enumerate(calls):
        y = top + number * LINE
        parts.append(_text(430 + 16 * call.depth, y, f"{call.function}({call.takes})", font="monospace"))
        parts.append(
            _text(1100, y, call.module.removeprefix("swjax.").replace(".", "/"), anchor="end", color="#4a6fa5")
        )
    return "\n".join([*parts, "</svg>", ""])


def _text(
    x: float,
    y: float,
    text: str,
    *,
    size: int = 12,
    anchor: str = "start",
    color: str = "#222",
    weight: str = "normal",
    font: str = "sans-serif",
) -> str:
    style = f'font-size="{size}" text-anchor="{anchor}" fill="{color}" font-weight="{weight}" font-family="{font}"'
    return f'<text x="{x:g}" y="{y:g}" {style}>{escape(text)}</text>'


if __name__ == "__main__":
    PICTURE.write_text(draw())
