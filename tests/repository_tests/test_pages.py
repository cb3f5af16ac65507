"""Every page of the repository: its commands are parsed, its files loaded, its examples checked, its links followed."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import re
import shlex
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest
import typer
import yaml
from pydantic import BaseModel
from typer.testing import CliRunner

from petl.configuration import Training
from petl.design import LINEARS, PLACES
from petl.head import LINEAR_HEAD
from petl.presets import EVERYWHERE, PRESETS, parse
from petl.tasks import KINDS, TASKS, Decoding, Task
from search.cli import app
from search.config.loading import load_config
from search.config.sections import DesignConfig
from search.config.study import StudyConfig
from search.optimizer.rungs import RULES
from search.results.replays import rule_options
from search.trials.objectives import COUNTS
from spaces.shipped import ShippedSpace
from spaces.space import SPACES

ROOT: Final = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
MAKEFILE: Final = (ROOT / "Makefile").read_text()
COMMANDS: Final[Any] = typer.main.get_command(app)
SECTIONS: Final = StudyConfig.model_fields
BASE: Final = {
    "study": "base", "backbone": {"model": "roberta-base"}, "task": {"name": "tweets"},
    "budget": {"price_per_device_hour": 2},
}  # fmt: skip

# What a reader brings or makes, and what is on other machines.
THEIRS: Final = {
    "study.yaml", "reviews.csv", "reviews.json", "answers.jsonl", "front.png", "my-adapter", "for-peft", "demo.json",
}  # fmt: skip
PROGRAMS: Final = {
    "source", "export", "pip", "docker", "kubectl", "ray", "curl", "sbatch", "chmod", "infra/mlflow/server.sh",
}  # fmt: skip
# Of programs that are not ours: sbatch, docker, kubectl.
OPTIONS: Final = {"--signal", "--requeue", "--gpus-per-node", "--help"}
PLACEHOLDERS: Final = {"TRIAL": "12", "...": None}
CODE: Final = (".py", ".yaml", ".toml", ".sh", ".sbatch", ".md", ".txt")


@dataclass(frozen=True)
class Piece:
    """A fenced block or a piece of inline code, and where it stands."""

    page: Path
    line: int
    text: str
    language: str | None = None  # None where it is inline

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """All pages, those of ignored folders left out."""
    found = [path for path in ROOT.rglob("*.md") if not _ignored(path.relative_to(ROOT))]
    return sorted(found)


def _ignored(path: Path) -> bool:
    return any(part.startswith(".") or part in ("build", "dist", "petl-search") for part in path.parts)


def pieces(page: Path) -> Iterator[Piece]:
    lines = page.read_text().split("\n")
    block: list[str] | None = None
    language, begin, prose = "", 0, []
    for number, line in enumerate(lines, 1):
        if line.startswith("```"):
            if block is None:
                block, language, begin = [], line[3:].strip(), number
            else:
                yield Piece(page, begin, "\n".join(block), language)
                block = None
            prose.append("")
        elif block is not None:
            block.append(line)
            prose.append("")
        else:
            prose.append(line)
    assert block is None, f"{page}: the block of line {begin} is not closed"
    text = "\n".join(prose)
    for match in re.finditer(r"(?<!`)`([^`]+)`(?!`)", text):
        yield Piece(page, text[: match.start()].count("\n") + 1, " ".join(match[1].split()))


PAGES: Final = pages()
PIECES: Final = [piece for page in PAGES for piece in pieces(page)]
INLINE: Final = [piece for piece in PIECES if piece.language is None and "fixtures" not in piece.page.parts]
SHELL: Final = [piece for piece in PIECES if piece.language == ""]
YAML: Final = [piece for piece in PIECES if piece.language == "yaml"]
PYTHON: Final = [piece for piece in PIECES if piece.language == "python"]


def test_all_pages_are_read() -> None:
    names = {str(page.relative_to(ROOT)) for page in PAGES}
    packages = {"petl/README.md", "spaces/README.md", "search/README.md", "search/config/README.md", "infra/README.md"}
    assert {"README.md", "tests/benchmarks/README.md", "tests/chaos/README.md", *packages} <= names
    assert {piece.language for piece in PIECES} == {None, "", "yaml", "python"}  # whatever else is not checked below


def test_the_first_page_is_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 200
    assert max(map(len, lines)) <= 120
    assert sum(len(line.split()) for line in lines) <= 2_500


# --- links and files ---


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", _prose(page)):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        file = page if not path else (page.parent / path).resolve()
        assert file.exists(), f"{page}: {target}"
        assert not anchor or anchor in _anchors(file), f"{page}: {target}"


def test_every_page_is_linked() -> None:
    """From the first page, in some steps."""
    reached, new = set(), {ROOT / "README.md"}
    while new:
        page = new.pop()
        reached.add(page)
        targets = re.findall(r"\]\(([^)#\s]+\.md)[)#]", _prose(page))
        new |= {(page.parent / target).resolve() for target in targets if "://" not in target} - reached
    assert reached == {page.resolve() for page in PAGES}


def _prose(page: Path) -> str:
    return re.sub(r"(?ms)^```.*?^```$", "", page.read_text())


def _anchors(page: Path) -> set[str]:
    """What GitHub makes of headings."""
    headings = re.findall(r"(?m)^#+ (.+)$", _prose(page))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def faults(found: list[Piece], check: Callable[[Piece], None]) -> list[str]:
    """What is wrong with some pieces: all of it at once."""
    result = []
    for piece in found:
        try:
            check(piece)
        except Exception as error:
            reason = getattr(error, "message", "") or str(error) or repr(error)
            result.append(f"{piece}: {reason.splitlines()[0]} in {piece.text!r}")
    return result


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_inline_code(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks like a command, an option, a file, a module, a section or a variable of ours is one."""
    assert not faults([piece for piece in INLINE if piece.page == page], lambda piece: check_inline(piece, monkeypatch))


def check_inline(piece: Piece, monkeypatch: pytest.MonkeyPatch) -> None:
    text = piece.text
    if re.match(r"(petl-search|make|python) ", text):
        check_commands(text, monkeypatch)
    elif text.startswith("--"):
        check_option(text)
    elif match := re.match(r"(\w+): [\[{]", text):
        if match[1] in SECTIONS and "..." not in text:
            check_fragment(yaml.safe_load(text), piece, monkeypatch)
    elif re.fullmatch(r"(petl|spaces|search)(\.\w+)+(\(.*\))?", text):
        pkgutil.resolve_name(text.partition("(")[0])
    elif match := re.fullmatch(r"(\w+)\.(\w+)(=\S+)?", text):
        a_file = f".{match[2]}" in CODE or match[1] == "study"
        assert a_file or match[1] not in SECTIONS or match[2] in _fields_of(match[1]), f"there is no field {text}"
    if match := re.fullmatch(r"\$?\{?((?:PETL|RAY|MLFLOW)_[A-Z_]+)\}?", text):
        assert match[1] in _sources(), f"nothing reads {match[1]}"
    if match := re.fullmatch(r"(?:[A-Z_]+=)?([\w./-]+)", text):
        check_path(match[1], piece)


def check_path(text: str, piece: Piece) -> None:
    """A path of the repository exists, from its root or from the folder of the page."""
    tops = {path.name for path in ROOT.iterdir() if path.is_dir()}
    named = text.partition("/")[0] in tops and "/" in text
    if not named and not text.endswith((*CODE, "/")):
        return
    if text in THEIRS or text.startswith(("./petl-search", "my-", "/")):
        return
    assert (ROOT / text).exists() or (piece.page.parent / text).exists(), f"{piece}: there is no {text}"


def check_option(text: str) -> None:
    """An option of a command or of a script."""
    words = shlex.split(text)
    name = words[0].partition("=")[0]
    known = {option for command in COMMANDS.commands.values() for each in command.params for option in each.opts}
    scripts = "".join(path.read_text() for path in (ROOT / "tests").glob("*/*.py"))
    assert name in known | OPTIONS or f'"{name}"' in scripts, f"nothing takes {name}"
    load_config(BASE, [value for option, value in pairwise(words) if option == "--set"])


@cache
def _sources() -> str:
    """All that may read a variable."""
    folders = ("petl", "spaces", "search", "infra", "tests")
    libraries = "MLFLOW_TRACKING_URI MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD"
    files = (
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".sh", ".sbatch", ".yaml")
    )
    return libraries + "".join(path.read_text() for path in files)


# --- commands ---


@pytest.mark.parametrize("piece", SHELL, ids=str)
def test_commands(piece: Piece, monkeypatch: pytest.MonkeyPatch) -> None:
    first = piece.text.split(":")[0]
    if first in PRESETS:  # designs, several on a line
        for text in re.split(r"\n|\s{2,}", piece.text):
            parse(text)
    else:
        check_commands(piece.text, monkeypatch)


def check_commands(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = text.replace("\\\n", " ").splitlines()
    checked = 0
    for line in lines:
        for words in _simple_commands(line):
            check_command(words, monkeypatch)
            checked += 1
    assert checked, f"there is no command in {text!r}"


def _simple_commands(line: str) -> Iterator[list[str]]:
    """The words of each command of a line, without its comment and without variables before it."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split, lexer.commenters = True, "#"
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word and set(word) <= set(";&|"):
            while words and re.match(r"[A-Z_]+=", words[0]):
                words = words[1:]
            if words:
                yield words
            words = []
        else:
            words.append(word)


def check_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    program, *arguments = words
    arguments = [known for word in arguments if (known := PLACEHOLDERS.get(word, word)) is not None]
    if program == "petl-search":
        check_petl_search(arguments)
    elif program == "make":
        for argument in arguments:
            name, equals, value = argument.partition("=")
            where = rf"(?m)^{name} \?=|\$\({name}\)" if equals else rf"(?m)^{name}:"
            assert re.search(where, MAKEFILE), f"the Makefile has no {name}"
            if name == "CHAOS":
                check_chaos(value, monkeypatch)
    elif program == "python":
        check_python(arguments)
    else:
        assert program in PROGRAMS or (ROOT / "tests/benchmarks" / program).is_file(), f"what is {program}?"
        if program.endswith(".py"):
            check_python([f"tests/benchmarks/{program}", *arguments])
        elif program == "sbatch" and "study.sbatch" in " ".join(arguments):
            check_petl_search(["run", *arguments[arguments.index("infra/slurm/study.sbatch") + 1 :]])
    for argument in arguments:
        path = argument.rpartition("=")[2]
        if path.startswith(("infra/", "spaces/", "tests/", "petl/", "search/")):
            assert (ROOT / path).exists(), f"there is no {path}"


def check_petl_search(arguments: list[str]) -> None:
    """The command line is one that petl-search takes; what it sets is a field of a study."""
    if arguments[:1] == ["--help"]:
        return
    assert arguments[0] in COMMANDS.commands, f"petl-search has no {arguments[0]}"
    command = COMMANDS.commands[arguments[0]]
    if len(arguments) == 1:  # only named
        return
    context = command.make_context(arguments[0], arguments[1:])
    for override in context.params.get("overrides") or ():
        load_config(BASE, [override])
    if arguments[0] == "replay":
        rule_options(context.params["values"] or ())
    if arguments[0] == "count" and context.params["design"] not in ("DESIGN",):
        parse(context.params["design"])
    if arguments[0] == "run" and str(context.params["study"]).startswith("spaces/"):
        load_config(ROOT / context.params["study"])


def check_python(arguments: list[str]) -> None:
    """The module or script exists, and knows the options."""
    if arguments[0] == "-m":
        assert importlib.util.find_spec(arguments[1]), f"there is no module {arguments[1]}"
        return
    script = ROOT / arguments[0]
    text = script.read_text() + (script.parent / "shares.py").read_text()
    for option in (argument for argument in arguments[1:] if argument.startswith("--")):
        assert f'"{option}"' in text, f"{script.name} has no {option}"


def check_chaos(arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(sys, "argv", ["chaos", *arguments.split()])
    module = importlib.import_module("tests.chaos.__main__")
    if "--help" not in arguments:
        module.arguments()


def test_every_command_has_its_help() -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["--help"]).exit_code == 0
    for name in COMMANDS.commands:
        result = runner.invoke(app, [name, "--help"])
        assert result.exit_code == 0
        assert f"petl-search {name}" in result.output, f"the help of {name} has no example"


def test_every_command_is_on_a_page() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    missing = [name for name in COMMANDS.commands if f"petl-search {name}" not in text and f"`{name}" not in text]
    assert not missing


def test_count_of_every_design_named(tmp_path: Path) -> None:
    """The one command of the pages that costs nothing is run, on a small model."""
    from transformers import RobertaConfig

    RobertaConfig(hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64).save_pretrained(
        tmp_path
    )
    designs = re.findall(r'petl-search count \S+ "?([\w:=,]+)"?', "\n".join(page.read_text() for page in PAGES))
    designs = [design for design in designs if design != "DESIGN"]
    assert designs
    for design in designs:
        result = CliRunner().invoke(app, ["count", str(tmp_path / "config.json"), design, "--format", "json"])
        assert result.exit_code == 0, result.output


# --- study files ---


@pytest.mark.parametrize("piece", YAML, ids=str)
def test_study_files(piece: Piece, monkeypatch: pytest.MonkeyPatch) -> None:
    check_fragment(yaml.safe_load(piece.text), piece, monkeypatch)


def check_fragment(content: Any, piece: Piece, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole study is one that is accepted; sections are, in a study that has no others."""
    monkeypatch.setenv("PETL_PASSWORD", "secret")
    if ":" in str(content.get("space", {}).get("name", "")):
        _define(content["space"]["name"], piece.page, monkeypatch)
    load_config(content if "study" in content else {**BASE, **content})


def _define(name: str, page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the function that a page defines importable under the name that it gives to it."""
    module, _, function = name.partition(":")
    if module == "package.module":
        pytest.skip("a pattern, not a name")
    source = next(piece.text for piece in PYTHON if piece.page == page and f"def {function}(" in piece.text)
    created = ModuleType(module)
    exec(compile(source, str(page), "exec"), created.__dict__)
    monkeypatch.setitem(sys.modules, module, created)


def _fields_of(section: str) -> Mapping[str, Any]:
    """The fields of a section of the study file, with their defaults."""
    kind = {"task": Task, "training": Training, "decoding": Decoding}.get(section)
    if section == "constraints":
        return dict.fromkeys(COUNTS)
    if section == "head":
        return LINEAR_HEAD.to_dict()
    if section == "space":
        return {"name": "unified", **{name: None for row in SPACES.values() for name in _options(row)}}
    if kind is not None:
        return {
            field.name: field.default if field.default is not MISSING else None
            for field in fields(kind)
            if not (kind is Training and field.name == "epochs")
        }
    if section == "design":
        model: type[BaseModel] = DesignConfig
    else:
        model = typing.cast("type[BaseModel]", SECTIONS[section].annotation)
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return {}
    found = {name: field.default for name, field in model.model_fields.items()}
    if section == "scheduler":
        found |= {
            option.name: option.default
            for rule in RULES.values()
            for option in fields(rule)
            if "option" in option.metadata
        }
    if section == "budget":
        found |= {"trials": 24, "epochs": StudyConfig.model_validate(BASE).budget.epochs}
    return found


def tables(page: Path) -> Iterator[tuple[str, list[list[str]]]]:
    """The tables of a page with the headings above them."""
    heading, rows = "", []
    for line in [*page.read_text().splitlines(), ""]:
        if line.startswith("#"):
            heading = line.lstrip("# ").strip()
        if line.startswith("|"):
            rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif rows:
            yield heading, rows
            rows = []


def test_the_reference_has_every_field_with_its_default() -> None:
    page = ROOT / "search/config/README.md"
    found: dict[str, list[list[str]]] = {}
    for heading, (head, _, *rows) in tables(page):
        if head[0] == "section":
            assert [row[0].strip("`") for row in rows] == list(dict.fromkeys(row[0].strip("`") for row in rows))
            assert {row[0].strip("`") for row in rows} == set(SECTIONS)
        elif "field" in head[0]:
            named = re.match(r"`(\w+)` field|field of a (\w+)", head[0])
            name = (named[1] or named[2]) if named else heading.strip("`")
            found[name] = rows
    whole = {name for name in SECTIONS if _fields_of(name)} - {"paper", "constraints", "space"}
    expected = whole | {"design", "decoding"}
    assert set(found) == expected
    for section, rows in found.items():
        defaults = _fields_of(section)
        assert sorted(row[0].strip("`") for row in rows) == sorted(defaults), section
        for name, text, *_ in rows:
            default = defaults[name.strip("`")]
            if (section, name.strip("`")) == ("objectives", "score"):  # by the kind
                assert "`" not in text
            elif re.fullmatch(r"`[^`$]+`", text):
                assert text.strip("`") == str(default), f"{section}.{name}: {text}, where it is {default!r}"
            else:
                assert not default or not isinstance(default, str | int | float), f"{section}.{name} is {default!r}"


def test_the_reference_has_every_kind_and_task() -> None:
    rows = {table[0][0]: table[2:] for _, table in tables(ROOT / "search/config/README.md")}
    assert [row[0].strip("`") for row in rows["name"]] == list(TASKS)
    assert [row[1] for row in rows["name"]] == [task.kind for task in TASKS.values()]
    for name, columns, scores in rows["kind"]:
        kind = KINDS[name.strip("`")]
        assert set(re.findall(r"`(\w+)`", columns)) == {*kind.required, *kind.optional}
        assert tuple(re.findall(r"`(\w+)`", scores)) == kind.scores


def _options(row: ShippedSpace) -> set[str]:
    return set(inspect.signature(row.dimensions).parameters) - {"backbone"}


def test_every_space_with_its_options() -> None:
    found = {table[0][0]: table[2:] for _, table in tables(ROOT / "spaces/README.md")}
    options: dict[str, set[str]] = {}
    for name, _, given in found["`space.name`"]:
        options[name.strip("`")] = set(re.findall(r"`([\w.]+)`", given))
    for name, row in SPACES.items():
        assert options.pop(name) == _options(row)
    assert not options
    keywords: dict[str, Any] = {}
    for row in SPACES.values():
        keywords |= {name: each.default for name, each in inspect.signature(row.dimensions).parameters.items()}
    for name, default, _ in found["option"]:
        value = keywords[name.strip("`")]
        if default.startswith("`"):
            assert yaml.safe_load(default.strip("`")) == (list(value) if isinstance(value, tuple) else value)


def test_every_design_with_its_arguments() -> None:
    """The names are all that there are, and their arguments have the defaults that the page says."""
    named: list[str] = []
    for heading, (head, _, *rows) in tables(ROOT / "petl/README.md"):
        if (heading, head[0]) != ("Designs", "name"):
            continue
        for names, arguments, _ in rows:
            given = dict(re.findall(r"`(\w+)=(\w+)`", arguments))
            for name in re.findall(r"`(\w+)`", names):
                named.append(name)
                parameters = inspect.signature(PRESETS[name]).parameters
                assert list(given) == list(parameters), name
                text = ",".join(f"{key}={value}" for key, value in given.items())
                assert parse(f"{name}:{text}") == parse(name), name
    assert sorted(named) == sorted(PRESETS)
    prose = (ROOT / "petl/README.md").read_text()
    assert all(f"`{name}" in prose for name in EVERYWHERE)


def test_every_place_with_what_it_reads() -> None:
    rows = next(table[2:] for _, table in tables(ROOT / "petl/README.md") if table[0][:2] == ["site", "insertion"])
    found = {
        (site, insertion): (reads, added)
        for name, insertion, reads, added in rows
        for site in (LINEARS if name == "any linear" else [name.strip("`")])
    }
    assert found == {(str(site), str(insertion)): (p.reads, p.added) for (site, insertion), p in PLACES.items()}


@pytest.mark.parametrize("package", ["petl", "search"])
def test_every_room_is_on_the_page_of_its_package(package: str) -> None:
    text = (ROOT / package / "README.md").read_text().partition("## Rooms")[2]
    rooms = {path.parent.name for path in (ROOT / package).glob("*/*.py")}
    assert rooms
    assert {room for room in rooms if f"`{room}/`" not in text} == set()
    exports = set(importlib.import_module(package).__all__)
    page = (ROOT / package / "README.md").read_text()
    assert {name for name in exports if f"`{name}`" not in page} == set()


# --- Python ---


@pytest.mark.parametrize("piece", PYTHON, ids=str)
def test_python(piece: Piece) -> None:
    """It compiles, what it imports is there, and so are the attributes and keywords of what is known of it."""
    Example(str(piece)).check(ast.parse(piece.text, str(piece)))


UNKNOWN: Final = object()


@dataclass(frozen=True)
class Instance:
    """A value of which only the class is known."""

    kind: type


class Example:
    """Follows an example by the annotations of what it calls, without running it."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.names: dict[str, Any] = {}

    def check(self, tree: ast.Module) -> None:
        for statement in tree.body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                exec(compile(ast.Module([statement], []), self.where, "exec"), self.names)
            elif isinstance(statement, ast.FunctionDef):
                for node in ast.walk(statement):
                    if isinstance(node, ast.Call):
                        self.value(node)
            elif isinstance(statement, ast.Assign):
                (target,) = statement.targets
                assert isinstance(target, ast.Name)
                self.names[target.id] = self.value(statement.value)
            else:
                assert isinstance(statement, ast.Expr), f"{self.where}: {ast.dump(statement)}"
                self.value(statement.value)

    def value(self, node: ast.expr) -> Any:
        """What an expression is, as far as annotations say it."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id, UNKNOWN)
        if isinstance(node, ast.Attribute):
            return self.attribute(self.value(node.value), node.attr)
        if isinstance(node, ast.Subscript):
            return self.returned(self.attribute(self.value(node.value), "__getitem__"))
        if isinstance(node, ast.Call):
            called = self.value(node.func)
            for argument in node.args:
                self.value(argument)
            if called is not UNKNOWN and callable(called):
                taken = inspect.signature(called).parameters
                for keyword in (keyword.arg for keyword in node.keywords if keyword.arg):
                    free = any(each.kind is each.VAR_KEYWORD for each in taken.values())
                    assert keyword in taken or free, f"{self.where}: {ast.unparse(node.func)} takes no {keyword}"
            return self.returned(called)
        return UNKNOWN

    def attribute(self, owner: Any, name: str) -> Any:
        if owner is UNKNOWN:
            return UNKNOWN
        if not isinstance(owner, Instance):
            assert hasattr(owner, name), f"{self.where}: {owner!r} has no {name}"
            return getattr(owner, name)
        hints = _hints(owner.kind)
        assert hasattr(owner.kind, name) or name in hints, f"{self.where}: {owner.kind.__name__} has no {name}"
        if name in hints:
            return _instance(hints[name])
        found = inspect.getattr_static(owner.kind, name)
        wrapped = getattr(found, "fget", None) or getattr(found, "func", None)
        return self.returned(wrapped) if wrapped else found

    def returned(self, called: Any) -> Any:
        if called is UNKNOWN:
            return UNKNOWN
        if isinstance(called, type):
            return Instance(called)
        return _instance(_hints(called).get("return"))


def _hints(thing: Any) -> Mapping[str, Any]:
    """Its annotations. Those that only a type checker imports are looked up where all rooms are."""
    names = {name: getattr(module, name) for module in _known() for name in dir(module) if name[0].isupper()}
    try:
        return typing.get_type_hints(thing, localns=names)
    except (NameError, TypeError, AttributeError):
        return {}


def _known() -> list[ModuleType]:
    return [module for name, module in sys.modules.items() if name.split(".")[0] in ("petl", "search")]


def _instance(hint: Any) -> Any:
    alternatives = [each for each in typing.get_args(hint) if each is not type(None)]
    if typing.get_origin(hint) in (typing.Union, getattr(__import__("types"), "UnionType", None)):
        hint = alternatives[0]
    return Instance(hint) if isinstance(hint, type) and hint.__module__.startswith(("petl", "search")) else UNKNOWN


def test_an_example_with_a_wrong_name_is_found() -> None:
    """The checks above find what is misspelt."""
    for text in (
        "from search import load_studies",
        "import petl\npetl.load_models('a')",
        "from search import load_study\nload_study('a').front(most_fals='5%')",
        "from search import load_study\nload_study('a').front().bestest()",
    ):
        with pytest.raises((AssertionError, ImportError, AttributeError)):
            Example("here").check(ast.parse(text))
