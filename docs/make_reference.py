"""Write docs/reference.md from docstrings and comments, and the examples into docs/extend.md.

python docs/make_reference.py           # write both
python docs/make_reference.py --check   # exit 1 if either is not up to date
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

from typer.main import get_command

import anyres
from anyres.cli import app
from anyres.flow import Cost, Estimate, Metric, SizeResult
from anyres.models import list_models, variant
from anyres.recipe import Recipe
from anyres.runs.opened import ModelSpec, TrainedModel
from anyres.runs.report import Evaluation
from anyres.runs.train import TrainingRun
from anyres.settings import REQUIRED, Setting, allowed, as_yaml, fields_of, group_in
from anyres.tasks import Answer

RESULTS = (TrainingRun, Evaluation, SizeResult, Estimate, Metric, Cost, TrainedModel, ModelSpec, Answer)
DOCS = Path(__file__).parent
EXAMPLE = re.compile(r"<!-- example: (\S+) -->\n.*?<!-- end -->", re.S)
WIDTH = 100  # of a signature


def reference() -> str:
    """The whole page."""
    parts = [
        "# Reference",
        "Made from docstrings and comments by `docs/make_reference.py`; a test compares. Four parts: "
        "[Python](#python), [results](#results), [recipe keys](#recipe-keys), [command line](#command-line).",
        "## Python",
        "`import anyres` imports neither torch nor anything else that is slow; each name is loaded when it is used. "
        "Every mistake of the user raises `anyres.UserError` with one line.",
        *(text for name in anyres.__all__ for text in python_entry(name, getattr(anyres, name), "anyres.")),
        "## Results",
        "What these functions return. All are frozen dataclasses or named tuples.",
        *(text for each in RESULTS for text in python_entry(each.__name__, each, "")),
        "## Recipe keys",
        "A recipe is YAML with these keys; on the command line `key=value`, as `optim.lr=3e-4`. In brackets: what a "
        "value may be, and the default. `anyres show RECIPE` prints every value of a recipe.",
        *groups(Recipe, ""),
        "### Model options",
        "Keys below `model` beside `model.name`, by family. Defaults are those of the first model named.",
        *model_options(),
        "## Command line",
        "`--offline` before the verb fetches nothing: only weights and images in the cache are used. `--version` "
        "prints the version.",
        *verbs(),
    ]
    return "\n\n".join(parts) + "\n"


def python_entry(name: str, value: Any, package: str) -> Iterator[str]:
    """One public name: signature, docstring, and of a class its fields, properties and methods."""
    yield f"### {name}"
    if not (inspect.isclass(value) and issubclass(value, Exception)):
        yield fenced(f"{package}{name}", value)
    yield prose(inspect.getdoc(value) or "")
    lines = list(members(value)) if inspect.isclass(value) else []
    if lines:
        yield "\n".join(lines)


def members(cls: type) -> Iterator[str]:
    """What a class has, a line each, as far as something is said of it."""
    if dataclasses.is_dataclass(cls):
        yield from (f"- `{key.name}`: {key.meaning}" for key in fields_of(cls) if key.meaning)
    for name, each in vars(cls).items():
        if isinstance(each, property) and not name.startswith("_"):
            yield f"- `{name}`: {flat(each.__doc__)}"
        elif inspect.isfunction(each) and not name.startswith("_"):
            yield f"- `{name}{signature(each)}`: {flat(inspect.getdoc(each))}"


def fenced(name: str, value: Any) -> str:
    """A signature as a block of code, one parameter a line where it is long."""
    text = f"{name}{signature(value)}"
    if len(text) > WIDTH:
        found = inspect.signature(value)
        shown: list[str] = []
        for parameter in found.parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY and "*" not in shown and not any(s[0] == "*" for s in shown):
                shown.append("*")
            shown.append(plain(str(parameter)))
        end = plain(f" -> {inspect.formatannotation(found.return_annotation)}") if returns(value) else ""
        text = f"{name}(\n" + "".join(f"    {each},\n" for each in shown) + f"){end}"
    return f"<!-- not run: a signature -->\n```python\n{text}\n```"


def returns(value: Any) -> bool:
    """Whether the annotation of what is returned says something."""
    annotation = inspect.signature(value).return_annotation
    return annotation not in (inspect.Signature.empty, None, "None", "'None'")


def signature(value: Any) -> str:
    """``(a: int, b: str = "x") -> float``, without ``self``."""
    found = inspect.signature(value)
    kept = [p for p in found.parameters.values() if p.name != "self"]
    shown = found.replace(parameters=kept)
    if not returns(value):
        shown = shown.replace(return_annotation=inspect.Signature.empty)
    return plain(str(shown))


def plain(text: str) -> str:
    """An annotation as it was written, without quotes and modules."""
    text = re.sub(r"ForwardRef\('([^']*)'\)", r"\1", text)
    text = re.sub(r"(?<=: |> )\"([^\"]*)\"", r"\1", text)
    text = re.sub(r"(?<=: |> )'([^']*)'", r"\1", text)
    text = re.sub(r"\b(?:anyres|pathlib|torch|collections|typing|PIL)\.(?:[a-z_]+\.)*(?=[A-Z])", "", text)
    return re.sub(r"<class '([\w.]+)'>", lambda m: m[1].split(".")[-1], text)


def prose(text: str) -> str:
    """A docstring as Markdown: its paragraphs, with single backquotes."""
    return re.sub(r"``(.+?)``", r"`\1`", text.strip())


def flat(text: str | None) -> str:
    """A docstring on one line."""
    return " ".join(prose(text or "").split())


def groups(cls: type, prefix: str) -> Iterator[str]:
    """A list of the keys of a configuration, then those of the configurations in it, each under a heading."""
    lines, below = [], []
    for key in fields_of(cls):
        config, more = group_in(key.kind)
        name = f"{prefix}{key.name}"
        if config is None or key.meaning:
            lines.append(line(name, key, is_config=config is not None))
        if config is not None:
            below.append((name + more, config))
    if prefix:
        yield f"### {prefix.rstrip('.')}"
        yield prose(inspect.getdoc(cls) or "")
    yield "\n".join(lines)
    for name, config in below:
        yield from groups(config, f"{name}.")


def line(name: str, key: Setting, *, is_config: bool = False) -> str:
    """``- `optim.lr` (number, 0.001): peak learning rate``."""
    shown = "" if is_config or key.default is REQUIRED else f", {as_yaml(key.default)}"
    kind = "keys below" if is_config else allowed(key.kind)
    comment = f": {key.meaning}" if key.meaning else ""
    return f"- `{name}` ({kind}{shown}){comment}"


def model_options() -> Iterator[str]:
    """The options of each family."""
    seen: set[type] = set()
    for name in list_models():
        config = variant(name).config
        if type(config) in seen:
            continue
        seen.add(type(config))
        yield f"#### {variant(name).family}, as {name}"
        own = (
            key._replace(default=getattr(config, key.name))
            for key in fields_of(type(config))
            if key.name not in ("num_classes", "in_chans")
        )
        yield "\n".join(line(f"model.{key.name}", key) for key in own)


def verbs() -> Iterator[str]:
    """Every verb: how it is called, what it does, its options."""
    for name, command in sorted(get_command(app).commands.items()):  # type: ignore[attr-defined]
        below = getattr(command, "commands", {})
        for more, one in sorted(below.items()) if below else [("", command)]:
            called = f"anyres {name} {more}".strip()
            places = [str(p.metavar or p.name.upper()) for p in arguments(one)]
            yield f"### {called}"
            yield f"`{' '.join((called, *places))} [OPTIONS]`"
            yield paragraphs(one.help or "")
            kinds = get_type_hints(one.callback)
            own = [p for p in one.params if p.param_type_name == "option" and p.name in kinds]
            if options := [option(p, kinds[p.name]) for p in own]:
                yield "\n".join(options)


def arguments(command: Any) -> list[Any]:
    """The positional arguments of a command."""
    return [p for p in command.params if p.param_type_name == "argument"]


def paragraphs(text: str) -> str:
    """A verb's help, one line for each paragraph."""
    return "\n\n".join(" ".join(part.split()) for part in inspect.cleandoc(text).split("\n\n"))


METAVARS = {Path: "PATH", int: "COUNT", float: "NUMBER"}


def option(found: Any, annotation: Any) -> str:
    """``- `--out PATH`: where it goes``."""
    names = ", ".join(found.opts)
    kinds = {*get_args(annotation), annotation}
    metavar = found.metavar or next((word for kind, word in METAVARS.items() if kind in kinds), "TEXT")
    kind = "" if found.is_flag else f" {metavar}"
    shown = found.default if isinstance(found.default, int | float | str | Path) and not found.is_flag else None
    default = f" (default {shown})" if shown is not None else ""
    return f"- `{names}{kind}`: {' '.join((found.help or '').split())}{default}"


def with_examples(page: str) -> str:
    """A page with each ``<!-- example: FILE -->`` followed by the file."""

    def block(match: re.Match[str]) -> str:
        text = (DOCS.parent / "examples" / match[1]).read_text().strip()
        reason = "<!-- not run: tests/ runs the file itself -->"
        return f"<!-- example: {match[1]} -->\n{reason}\n```python\n{text}\n```\n<!-- end -->"

    return EXAMPLE.sub(block, page)


def pages() -> dict[Path, str]:
    """What each page should be."""
    extend = DOCS / "extend.md"
    return {DOCS / "reference.md": reference(), extend: with_examples(extend.read_text())}


def main() -> None:
    """Write the pages, or with ``--check`` say which are not up to date."""
    old = [path for path, text in pages().items() if not path.is_file() or path.read_text() != text]
    if "--check" in sys.argv:
        sys.exit(f"run python docs/make_reference.py: {', '.join(map(str, old))} changed" if old else 0)
    for path in old:
        path.write_text(pages()[path])
        print(f"written: {path}")


if __name__ == "__main__":
    main()
