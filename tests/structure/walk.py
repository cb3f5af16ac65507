"""The walk through the code from a study file to a published front, and how often it enters each module.

It is the walk of a reader who begins at `search.run` and wants to know all that happens. A stop is a function or a
class at the top level of a module, read as a whole, once, where it is first named: called, handed to somebody who calls
it (a callback, a thread, Ray), or looked up in a table of functions. After reading it, the reader goes to what it
names, in the order in which Python evaluates it, and from there on in the same way (depth first). Constants, and
enumerations, which are lists of them, are no stops, but what they name is followed. What is left out: errors that are
raised or caught, annotations, and what is named as a type only (`isinstance`).

A stay is a run of stops in one module. The walk *enters* a module once a stay: a module that is read in one go is
entered once, and one that hands the reader to others and gets him back, again and again, is entered each time.

A method is read with its class. That makes a class one stop however long it is; sizes of modules are their own measure
(`tests.structure.graph`). What is reached by neither a name nor a table (a user's space, as text) is not on the walk.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from tests.structure.modules import Tree, Unit

_ONLY_TYPES: Final = ("isinstance", "issubclass", "cast")
_FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Stay:
    """Hold a run of stops in one module, and the definition that names the first of them; None at the start."""

    module: str
    names: list[str]
    by: Unit | None


def walk(tree: Tree, start: Unit) -> dict[Unit, Unit | None]:
    """Return the stops from `start`, in order, each with the definition that names it first.

    Raises LookupError where nothing of the start's name is defined.
    """
    first = tree.resolve(start.module, start.name)
    if first is None or not first.name:
        raise LookupError(f"the walk begins at a function; {start.module} has no {start.name!r}")
    stops: dict[Unit, Unit | None] = {}
    seen: set[Unit] = set()
    waiting: list[tuple[Unit, Unit | None]] = [(first, None)]
    while waiting:
        unit, by = waiting.pop()
        if unit in seen or _is_error(tree, unit):
            continue
        seen.add(unit)
        definition = tree.modules[unit.module].definitions[unit.name]
        if isinstance(definition, _FUNCTION | ast.ClassDef) and not _is_enumeration(definition):
            stops[unit] = by
        named = _Names(tree, unit.module).of(definition, frozenset())
        waiting += reversed([(other, unit) for other in named])
    return stops


def stays(stops: Mapping[Unit, Unit | None]) -> list[Stay]:
    """Return the stays, in order."""
    runs = [[*run] for _, run in groupby(stops, key=lambda stop: stop.module)]
    return [Stay(run[0].module, [stop.name for stop in run], stops[run[0]]) for run in runs]


def entries(stops: Mapping[Unit, Unit | None]) -> Counter[str]:
    """Count how many times the walk enters each module."""
    return Counter(stay.module for stay in stays(stops))


def _is_enumeration(definition: ast.AST) -> bool:
    """Return whether a class is a list of constants."""
    return isinstance(definition, ast.ClassDef) and any(ast.unparse(base).endswith("Enum") for base in definition.bases)


def _is_error(tree: Tree, unit: Unit) -> bool:
    """Return whether a class is an exception or a warning, by the names of its bases."""
    definition = tree.modules[unit.module].definitions[unit.name]
    if not isinstance(definition, ast.ClassDef):
        return False
    for base in definition.bases:
        if ast.unparse(base).endswith(("Error", "Exception", "Warning")):
            return True
        parent = next(_Names(tree, unit.module).of(base, frozenset()), None)
        if parent and _is_error(tree, parent):
            return True
    return False


class _Names:
    """Find what code of one module names of this tree, in the order of evaluation."""

    def __init__(self, tree: Tree, module: str) -> None:
        self._tree, self._module = tree, module

    def of(self, node: ast.AST | None, hidden: frozenset[str]) -> Iterator[Unit]:
        """Yield the definitions that a node names; `hidden` are names that are variables there."""
        match node:
            case None | ast.Raise():
                return
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                outer = [*node.decorator_list, *node.args.defaults, *node.args.kw_defaults]
                yield from self._all(outer, hidden)
                yield from self._all(node.body, hidden | _variables(node))
            case ast.Lambda():
                yield from self.of(node.body, hidden | _variables(node))
            case ast.ClassDef():
                yield from self._all([*node.decorator_list, *node.bases, *node.body], hidden)
            case ast.AnnAssign():
                yield from self.of(node.value, hidden)
            case ast.ExceptHandler():
                yield from self._all(node.body, hidden)
            case ast.Call(func=ast.Name(id=name)) if name in _ONLY_TYPES:
                yield from self.of(node.args[-1 if name == "cast" else 0], hidden)
            case ast.Call():  # the arguments are evaluated before the call
                if isinstance(node.func, ast.Attribute):
                    yield from self.of(node.func.value, hidden)
                yield from self._all([*node.args, *(keyword.value for keyword in node.keywords)], hidden)
                if unit := self._named(node.func, hidden):
                    yield unit
                elif not isinstance(node.func, ast.Name | ast.Attribute):
                    yield from self.of(node.func, hidden)
            case ast.Name() | ast.Attribute():
                if unit := self._named(node, hidden):
                    yield unit
                elif isinstance(node, ast.Attribute):
                    yield from self.of(node.value, hidden)
            case _:
                yield from self._all(ast.iter_child_nodes(node), hidden)

    def _all(self, nodes: Iterable[ast.AST | None], hidden: frozenset[str]) -> Iterator[Unit]:
        for node in nodes:
            yield from self.of(node, hidden)

    def _named(self, node: ast.expr, hidden: frozenset[str]) -> Unit | None:
        """Return the definition behind `name` or `module.name`, if it is one of this tree."""
        attributes: list[str] = []
        while isinstance(node, ast.Attribute):
            attributes.insert(0, node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or node.id in hidden:
            return None
        unit = self._tree.resolve(self._module, node.id)
        while unit and not unit.name and attributes:
            unit = self._tree.resolve(unit.module, attributes.pop(0))
        return unit if unit and unit.name else None


def _variables(node: _FUNCTION | ast.Lambda) -> frozenset[str]:
    """Return the parameters of a function and all that it assigns or defines."""
    arguments = node.args
    parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    stored = {leaf.id for leaf in ast.walk(node) if isinstance(leaf, ast.Name) and isinstance(leaf.ctx, ast.Store)}
    defined = {inner.name for inner in ast.walk(node) if isinstance(inner, _FUNCTION) and inner is not node}
    return frozenset({parameter.arg for parameter in parameters if parameter} | stored | defined)
