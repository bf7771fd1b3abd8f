"""Writes the page of errors, `guides/errors.md`, and the list of messages beside it, from the source.

    python -m tests.errors_page            # writes both; a test fails where they are not as the source says

What may go wrong is told once, in docstrings: of each exception class, exit code, gate and reason of a dead letter. The
text up to `Remedy:` is the cause, what follows is what to do. Messages are read from the places that make an exception,
with the names of what is filled in; nothing of the source is run.
"""

from __future__ import annotations

import ast
import itertools
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("encoders", "index_builder", "pipelines")
PAGE, MESSAGES = ROOT / "guides" / "errors.md", ROOT / "guides" / "messages.md"
SENTENCES = ("pipelines/config/command_line.py", "pipelines/config/validation.py")
"""Modules that make their sentences before they raise one ConfigError with all of them."""
SECTIONS = r"\n\s*(?:Attributes|Args|Raises):\n"


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a docstring tells: the cause, and the remedy behind it ("" where it names none)."""

    cause: str
    remedy: str


@dataclass(kw_only=True)
class Raised:
    """An exception class: where it stands, what it is made of, what its docstring tells, and its messages."""

    name: str
    room: str
    bases: tuple[str, ...]
    told: Told
    messages: set[str] = field(default_factory=set)


OTHER_COMMANDS: tuple[tuple[str, ...], ...] = (
    ("`build_index`", "as the night, 3, 4 and 5 too", "", ""),
    (
        "`train_encoder`",
        "trained and saved",
        "training or saving; run again, it goes on from the last checkpoint",
        "the config, the pairs or the catalog cannot be used",
    ),
    (
        "`evaluate`",
        "measured",
        "encoding, ranking, labelling or writing the report",
        "a system, a file or a measure cannot be used",
    ),
    (
        "`search`",
        "answered",
        "searching: a file is damaged, or cannot be read any more",
        "the query, the filter or the address cannot be used",
    ),
    (
        "`versions`",
        "done",
        "comparing or changing versions; `show --verify` found damage",
        "no such version, tag or address",
    ),
    (
        "`export`",
        "every row is there",
        "the engine or the index; the engine answers as before",
        "the engine, the name or the version cannot be used",
    ),
    (
        "`export_onnx`",
        "written",
        "making or comparing graphs; an earlier export stays",
        "no such encoder, or the folder holds something else",
    ),
    ("`serve`", "ended by a signal", "starting the application", "the config, an index or the port cannot be used"),
    ("`demo_catalog`", "drawn", "drawing; run it again", "the folder cannot be written"),
)
"""What the exit codes of commands other than the night say: 0, 1 and 2."""


def told_by(docstring: str) -> Told:
    """Splits a docstring into cause and remedy, each in one line, without the sections of Google's style."""
    cause, _, remedy = docstring.partition("Remedy:")
    cause, remedy = (" ".join(re.split(SECTIONS, text)[0].split()) for text in (cause, remedy))
    return Told(cause=cause, remedy=remedy)


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the rooms, by its path in the project."""
    paths = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


@cache
def kinds() -> list[Raised]:
    """The exception classes of the rooms with their messages, those that people can meet: one whose name begins with an
    underscore is told as what it is made of.
    """
    found: dict[tuple[str, str], Raised] = {}
    known, before = {"Exception", "ValueError"}, -1
    while before != len(found):  # a class may stand before, or in another module than, what it is made of
        before = len(found)
        for module, tree in modules().items():
            for node in (each for each in tree.body if isinstance(each, ast.ClassDef)):
                bases = tuple(_last_name(base) for base in node.bases)
                if known.intersection(bases):
                    told, room = told_by(ast.get_docstring(node) or ""), module.split("/")[0]
                    found.setdefault((room, node.name), Raised(name=node.name, room=room, bases=bases, told=told))
                    known.add(node.name)
    by_name: dict[str, list[Raised]] = defaultdict(list)
    for raised in found.values():
        by_name[raised.name].append(raised)
    for module, tree in modules().items():
        _note_messages(module, tree, by_name)
    for raised in found.values():
        raised.messages.discard("")
        if raised.name.startswith("_"):
            for base in (each for name in raised.bases for each in by_name[name]):
                base.messages |= raised.messages
    shown = [raised for raised in found.values() if not raised.name.startswith("_")]
    return sorted(shown, key=lambda raised: (raised.room, raised.name))


def _note_messages(module: str, tree: ast.Module, by_name: dict[str, list[Raised]]) -> None:
    """Adds the messages that a module makes to their kinds."""
    room, (config_error,) = module.split("/")[0], by_name["ConfigError"]
    helpers: dict[str, list[tuple[Raised, list[str], ast.Call]]] = defaultdict(list)
    for function in (each for each in tree.body if isinstance(each, ast.FunctionDef)):
        parameters = [each.arg for each in (*function.args.posonlyargs, *function.args.args)]
        for call, raised in _made_in(function, room, by_name):
            words = {each.id for argument in call.args for each in ast.walk(argument) if isinstance(each, ast.Name)}
            if words.intersection(parameters) and function.name.startswith("_"):
                helpers[function.name].append((raised, parameters, call))
    called = {name: calls for name in helpers if (calls := [node for node in ast.walk(tree)
              if isinstance(node, ast.Call) and _last_name(node.func) == name])}  # fmt: skip
    told_by_callers = {id(call) for name in called for _, _, call in helpers[name]}
    for call, raised in _made_in(tree, room, by_name):
        if id(call) not in told_by_callers:
            raised.messages.add(_message(call))
    for name, calls in called.items():
        for raised, parameters, made in helpers[name]:
            given = (dict(zip(parameters, call.args, strict=False)) for call in calls)
            raised.messages |= {_message(made, each) for each in given}
    for node in ast.walk(tree):
        # A section of the config refuses a value by ValueError, of which the command line makes one of its sentences.
        if isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
            calls = [each for each in ast.walk(node) if isinstance(each, ast.Call)]
            config_error.messages |= {_message(each) for each in calls if _last_name(each.func) == "ValueError"}
        elif isinstance(node, ast.JoinedStr) and module in SENTENCES:
            text = _pattern(node)
            config_error.messages |= {text} if re.search("expected|unknown|found", text) else set()


def _made_in(tree: ast.AST, room: str, by_name: dict[str, list[Raised]]) -> Iterator[tuple[ast.Call, Raised]]:
    """The calls below a node that make an exception, with its class: that of the room where two have one name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (makes := by_name.get(_last_name(node.func))):
            yield node, next((each for each in makes if each.room == room), makes[0])


def _message(call: ast.Call, given: Mapping[str, ast.expr] = MappingProxyType({})) -> str:
    return " ".join(filter(None, (_pattern(each, given) for each in call.args)))


def _last_name(node: ast.expr) -> str:
    """The name of what is called or inherited; that of the class where one of its methods makes it."""
    if isinstance(node, ast.Attribute):
        return _last_name(node.value) if node.attr == "because" else node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _pattern(node: ast.expr, given: Mapping[str, ast.expr] = MappingProxyType({})) -> str:
    """A text as people see it, with `<name>` for what is filled in; "" for what is no text of the source.

    Args:
        given: What stands for the parameters of the function that makes the text.
    """
    if isinstance(node, ast.Name) and node.id in given:
        return _pattern(given[node.id])
    if isinstance(node, ast.Constant) and not isinstance(node.value, (bytes, bool)):
        return " ".join(str(node.value).split("\n"))
    if isinstance(node, ast.JoinedStr):
        return "".join(_pattern(each, given) for each in node.values)
    if isinstance(node, ast.FormattedValue):
        value = given.get(node.value.id, node.value) if isinstance(node.value, ast.Name) else node.value
        return (_pattern(value) if value is not node.value else "") or _filled_in(value)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _pattern(node.left, given) + (_pattern(node.right, given) or _filled_in(node.right))
    if isinstance(node, ast.IfExp):
        text = " | ".join(filter(None, (_pattern(node.body, given), _pattern(node.orelse, given))))
        return text if "<" in text or not text else f"{' ' * text.startswith(' ')}<{text.strip()}>"
    if isinstance(node, (ast.List, ast.Tuple)):
        return " ".join(filter(None, (_pattern(each, given) for each in node.elts)))
    return ""


def _filled_in(node: ast.expr) -> str:
    """`<name>` by the last word of an expression that says what it is."""
    names = [each.id if isinstance(each, ast.Name) else each.attr for each in ast.walk(node)
             if isinstance(each, (ast.Name, ast.Attribute))]  # fmt: skip
    said = [name.strip("_") for name in names if name not in ("join", "len", "list", "sorted", "str", "repr", "map")]
    return f"<{said[0]}>" if said else "<...>"


def server_answers() -> list[tuple[str, str, str]]:
    """Status, code and messages of what the server refuses."""
    found: dict[tuple[int, str], set[str]] = defaultdict(set)
    trees = [tree for module, tree in modules().items() if module.startswith("pipelines/server/")]
    for node in itertools.chain.from_iterable(map(ast.walk, trees)):
        is_answer = isinstance(node, ast.Call) and _last_name(node.func) in ("RequestError", "_error", "refuse")
        if is_answer and len(node.args) == 3 and isinstance(node.args[0], ast.Constant):
            status, code, message = node.args
            found[status.value, _pattern(code)].add(_pattern(message) or "<where>: <what was expected>")
    return [
        (str(status), f"`{code}`", "; ".join(f"`{message}`" for message in sorted(texts)))
        for (status, code), texts in sorted(found.items())
    ]


def told_values(module: str, owner: str = "") -> dict[str, Told]:
    """What the constants of a module, or of one of its classes, stand for, by their values."""
    bodies = {node.name: node.body for node in modules()[module].body if isinstance(node, ast.ClassDef)}
    found = {}
    for value, text in itertools.pairwise(bodies[owner] if owner else modules()[module].body):
        if isinstance(value, ast.Assign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[str(ast.literal_eval(value.value))] = told_by(str(text.value.value))
    return found


def gates() -> dict[str, Told]:
    """The gates of the config, as the docstring of their section tells them."""
    tree = modules()["pipelines/config/job.py"]
    section = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "GatesConfig")
    text = (ast.get_docstring(section) or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^    (\w+):(.*(?:\n {8}.*)*)", text, re.MULTILINE)
    return {f"`gates.{name}`": told for name, entry in entries if (told := told_by(entry)).remedy}


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _told_table(heads: tuple[str, ...], told: dict[str, Told]) -> str:
    return _table(heads, [(name, each.cause, each.remedy) for name, each in told.items()])


def page() -> str:
    """`guides/errors.md`."""
    rooms = "\n\n".join(
        f"### {room}\n\n"
        + _told_table(
            ("kind", "cause", "remedy"), {f"`{each.name}`": each.told for each in kinds() if each.room == room}
        )
        for room in ROOMS
    )
    codes = told_values("pipelines/config/exit_codes.py")
    codes = {{"130": "130, 143"}.get(code, code): told for code, told in codes.items()}
    reasons = told_values("pipelines/catalog/dead_letters.py", "Reason")
    return f"""\
<!-- Written by `python -m tests.errors_page` from the docstrings of the source; change them there. -->
# Errors

A message says what was expected, what was found, where, and what to do. Look for words of yours in
[all messages](messages.md): they stand under the name of their kind, and the kinds stand below with cause and
remedy. The name is also what Python code catches. A traceback instead of one line `error: ...` is a fault of
Shelfmark: please report it.

## Exit codes

Only 1, 130 and 143 are worth another try by a scheduler; 2 and 3 want a person.

{_told_table(("exit code", "cause", "remedy"), codes)}

These are the night's. The other commands keep to the same numbers, 2 as long as nothing was begun and 1 from then on:

{_table(("command", "0", "1: it failed in", "2: refused before"), [*OTHER_COMMANDS])}

## Kinds of errors

Before any work each of them ends a command with exit code 2; once work has begun, with 1 (the two of a lease: 4).

{rooms}

## Gates

A version beyond one of these limits is written and kept, and not published (exit code 3). The message says what was
found, and which value would let the version pass.

{_told_table(("gate", "what it holds back", "remedy"), gates())}

## Dead letters

What a row or picture that could not be used leaves behind. `rejected`: it is not in the index; `degraded`: it is,
without the part. The summary of a run counts them by reason;

```
python -m pipelines.versions rejected --index shelfmark-demo/index
```

lists them with file, line, id and detail (`--reason NAME`; `--csv` for a spreadsheet).

{_told_table(("reason", "for example", "remedy"), {f"`{reason}`": told for reason, told in reasons.items()})}

## Answers of the server

`{{"error": {{"code", "message"}}}}`, with the status of HTTP. The message says what to send instead.

{_table(("status", "code", "message"), server_answers())}
"""


def messages() -> str:
    """`guides/messages.md`: each kind's messages, as they stand in the source."""
    kinds_with = [raised for raised in kinds() if raised.messages and raised.name != "RequestError"]
    chapters = "\n\n".join(
        f"## {raised.name} ({raised.room})\n\n```text\n" + "\n".join(sorted(raised.messages)) + "\n```"
        for raised in kinds_with
    )
    return f"""\
<!-- Written by `python -m tests.errors_page` from the source. -->
# Every message

By kind; what each kind means and what to do stands in [errors](errors.md). `<name>` is filled in. A message may be part
of a longer one: `shop.yaml, line 7: index.serving_shards is 0: expected 1 or more`. Those of the server stand with
[its answers](errors.md#answers-of-the-server).

{chapters}
"""


def main() -> int:
    """Writes both pages."""
    PAGE.write_text(page(), encoding="utf-8")
    MESSAGES.write_text(messages(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
