"""YAML 1.2 of study files and of --set: `no` and the commit 5e10ab34cd are words, 1e-3 is a number.

The name of a study is text, whatever it looks like: 2024, 1e3, true.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.tag import Tag

from petl.errors import UserError
from search.storage import address


class ConfigError(UserError):
    """A study file with faults: all of them, one a line."""


NAMES: Final = ("study", "warm_start")  # keys of a study file whose values are names of studies, or lists of them
_TEXT: Final = Tag(suffix="tag:yaml.org,2002:str")
_ABSENT: Final = "tag:yaml.org,2002:null"


class _Constructor(SafeConstructor):
    """Plain values alone. A date is a text: YAML 1.2 has no others."""

    def construct_document(self, node: Any) -> Any:
        """Return the value of a document, with its names of studies as they are written."""
        for key, value in node.value if isinstance(node, MappingNode) else ():
            if key.value in NAMES:
                for name in value.value if isinstance(value, SequenceNode) else (value,):
                    if isinstance(name, ScalarNode) and name.tag != _ABSENT:
                        name.ctag = _TEXT
        return super().construct_document(node)


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)
_DUPLICATE: Final = "found duplicate key "


def read(path: str | Path) -> str:
    """Return the text of a study file. Raises ConfigError where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the study file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no YAML: byte {error.start + 1} is not UTF-8") from None


def parse(text: str, name: str) -> Any:
    """Return the value of a YAML text. Raises ConfigError, which calls the text `name` and says line and column."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    try:
        return yaml.load(text)
    except YAMLError as error:
        raise ConfigError(address.redacted(f"{name} is no YAML: {_fault(error)}")) from None
    except RecursionError:
        raise ConfigError(f"{name} is no YAML that is read here: it is nested too deep") from None


def _fault(error: YAMLError) -> str:
    """Return where the text breaks which rule."""
    if isinstance(error, DuplicateKeyError):  # whose own text goes on with both values
        key = str(error.problem).removeprefix(_DUPLICATE).partition(" with value ")[0]
        return f"{_place(error.problem_mark)}: each key is given once; received {key} again"
    if isinstance(error, ReaderError):
        return f"character {error.position + 1}: {error.reason}"
    if isinstance(error, MarkedYAMLError):
        begun = f" {error.context} ({_place(error.context_mark)})" if error.context and error.context_mark else ""
        return f"{_place(error.problem_mark or error.context_mark)}: {error.problem}{begun}"
    return " ".join(str(error).split())


def _place(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark else "at its end"
