"""Which module imports which: arrows, circles, floors, and sizes.

An arrow is a module that imports another one, at its top, inside a function or for its types alike. A floor is a
level of imports: what imports nothing else of its kind is on the first, everything else one above the highest that it
imports, and what imports each other in a circle is on one floor.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from statistics import median

from tests.structure.modules import Module, Tree

Graph = Mapping[str, Set[str]]


@dataclass(frozen=True)
class Sizes:
    """Hold lines of modules: their median, what one module in ten reaches, and the largest with its name."""

    median: int
    p90: int
    largest: int
    name: str

    @classmethod
    def of(cls, modules: list[Module]) -> Sizes:
        ordered = sorted(modules, key=lambda module: module.lines)
        lines = [module.lines for module in ordered]
        return cls(int(median(lines)), lines[int(0.9 * len(lines))], lines[-1], ordered[-1].name)


@dataclass(frozen=True)
class House:
    """Hold the imports of a checkout. `arrows` are between modules, without the `__init__` files.

    A room is petl, spaces, and what lies directly in search: its folders, and the modules beside them. Where search
    has no folders it is one room.
    """

    tree: Tree
    arrows: Graph

    @classmethod
    def of(cls, tree: Tree) -> House:
        files = {module.name for module in tree.files()}
        return cls(tree, {name: {*tree.imports(tree.modules[name])} & files - {name} for name in sorted(files)})

    @property
    def rooms(self) -> Graph:
        """Return the rooms, and which of them each one imports."""
        return self._between([self.room(module) for module in self.arrows])

    def inside(self, package: str) -> Graph:
        """Return what lies directly in a package, a folder as one, and what each imports of the others."""
        depth = package.count(".") + 2
        names = {".".join(name.split(".")[:depth]) for name in self.arrows if name.startswith(f"{package}.")}
        return self._between(sorted(names))

    @property
    def packages(self) -> list[str]:
        """Return every package that has modules, by name."""
        return sorted({name.rpartition(".")[0] for name in self.arrows} | {"petl", "spaces", "search"})

    def room(self, module: str) -> str:
        """Return the room of a module."""
        package, _, rest = module.partition(".")
        folders = any(name.startswith("search.") and name.count(".") > 1 for name in self.arrows)
        return f"search.{rest.partition('.')[0]}" if package == "search" and folders else package

    def _between(self, units: list[str]) -> Graph:
        """Return the arrows between `units`, each a module or all that lies under a package."""

        def unit(module: str) -> str:
            return next((unit for unit in units if f"{module}.".startswith(f"{unit}.")), "")

        graph: dict[str, set[str]] = {name: set() for name in units}
        for module, imported in self.arrows.items():
            if own := unit(module):
                graph[own] |= {unit(other) for other in imported} - {own, ""}
        return graph


def circles(graph: Graph) -> list[list[str]]:
    """Return the groups that import each other, each sorted."""
    reach = {name: _reachable(graph, name) for name in graph}
    groups = {tuple(sorted(other for other in reach[name] if name in reach[other])) for name in graph}
    return sorted([*group] for group in groups if len(group) > 1)


def floors(graph: Graph) -> dict[str, int]:
    """Return the floor of each, from 1."""
    reach = {name: _reachable(graph, name) | {name} for name in graph}
    found: dict[str, int] = {}
    for name in sorted(graph, key=lambda name: len(reach[name])):  # whatever it imports reaches less, but in a circle
        alike = {other for other in reach[name] if name in reach[other]}
        below = {imported for other in alike for imported in graph[other]} - alike
        found[name] = 1 + max((found[other] for other in below), default=0)
    return found


def _reachable(graph: Graph, start: str) -> set[str]:
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        for name in graph[waiting.pop()] - reached:
            reached.add(name)
            waiting.append(name)
    return reached
