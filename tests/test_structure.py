"""The house keeps its shape: no import cycle, a short hallway, short lists of arguments, one place that prints.

Each rule reads the source of every module, so a new one is checked at once. ``KNOWN`` names today's offenders of each
rule; the list only shrinks, for an entry that no longer offends fails too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "anyres"

MODULES_AT_THE_TOP = 6
MOST_ARGUMENTS = 10
MOST_LINES = 500
"""House rule 12 aims at 400; above this a file must be split."""
EMPTY_WORDS = {"utils", "util", "misc", "helpers", "helper", "common", "base", "core", "manager", "legacy"}

KNOWN = {}


@cache
def modules() -> dict[str, Path]:
    """Module -> file."""
    named = {}
    for file in sorted(SOURCE.rglob("*.py")):
        parts = file.relative_to(SOURCE.parent).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return named


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


def running(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below, in functions too, but for what only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield other
                yield from running(other)
        else:
            yield child
            yield from running(child)


def imported(module: str) -> set[str]:
    """The modules of anyres that ``module`` imports, anywhere in its file."""
    package = module if modules()[module].name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in running(tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{start}.{a.name}" if f"{start}.{a.name}" in modules() else start for a in node.names}
    return {name for name in found if name in modules() and name != module}


def cycles(edges: dict[str, set[str]]) -> list[set[str]]:
    """The groups of modules that import each other in a circle (strongly connected components, after Tarjan 1972)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups = []

    def visit(node: str) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for other in sorted(edges[node]):
            if other not in number:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], number[other])
        if low[node] == number[node]:
            group = set(stack[stack.index(node) :])
            del stack[stack.index(node) :]
            groups.append(group)

    for node in edges:
        if node not in number:
            visit(node)
    return [group for group in groups if len(group) > 1]


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """``module:function`` of every function and method, also of those within others."""
    for module in modules():
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{module}:{node.name}", node


def arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many arguments a function takes, but for ``self`` and ``cls``."""
    every = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return len([each for each in every if each.arg not in ("self", "cls")])


def consoles(module: str) -> bool:
    """Whether the module makes a ``rich.console.Console``."""
    calls = (node.func for node in ast.walk(tree(module)) if isinstance(node, ast.Call))
    return any(ast.unparse(call).rsplit(".", 1)[-1] == "Console" for call in calls)


def find_cycles() -> set[str]:
    """Groups of modules that import each other."""
    return {" ".join(sorted(group)) for group in cycles({name: imported(name) for name in modules()})}


def find_arguments() -> set[str]:
    """Functions with too many arguments.

    A command's arguments are its options, which typer reads from the signature, so cli/ is left out; a Triton kernel's
    are its pointers and strides, so what ``triton.jit`` compiles is too.
    """
    return {
        name
        for name, function in functions()
        if arguments(function) > MOST_ARGUMENTS
        and not name.startswith("anyres.cli")
        and not any("triton.jit" in ast.unparse(decorator) for decorator in function.decorator_list)
    }


def find_consoles() -> set[str]:
    """Modules other than ``cli/console.py`` that make a ``rich.console.Console``."""
    return {name for name in modules() if name != "anyres.cli.console" and consoles(name)}


def find_families() -> set[str]:
    """Families (modules of ``models`` with VARIANTS) that import another family."""
    families = {
        name
        for name in modules()
        if name.startswith("anyres.models.")
        and any(isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "VARIANTS" for node in tree(name).body)
    }
    assert len(families) >= 9
    return {name for name in families if imported(name) & families}


def find_words() -> set[str]:
    """Modules named by a word that says nothing."""
    return {name for name in modules() if EMPTY_WORDS & set(name.replace("_", ".").split("."))}


def find_lines() -> set[str]:
    """Files that are too long."""
    return {name for name, file in modules().items() if len(file.read_text("utf-8").splitlines()) > MOST_LINES}


RULES = {
    "arguments": find_arguments,
    "consoles": find_consoles,
    "families": find_families,
    "words": find_words,
    "lines": find_lines,
}


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule: str) -> None:
    offenders, known = RULES[rule](), KNOWN.get(rule, set())
    assert not offenders - known, f"{RULES[rule].__doc__} (new ones)"
    assert not known - offenders, "these offend no more: take them out of KNOWN"


def test_the_hallway_is_short() -> None:
    names = {file.stem for file in SOURCE.glob("*.py")} - {"__init__", "__main__"}
    assert len(names) <= MODULES_AT_THE_TOP, f"give one of {sorted(names)} a room"


def test_cycles_are_found_in_functions_and_not_in_what_only_a_type_checker_reads() -> None:
    text = "if TYPE_CHECKING:\n    import anyres.flow\ndef f():\n    from anyres import config, storage as s\n"
    names = [node for node in running(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(node) for node in names] == ["from anyres import config, storage as s"]
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}]
