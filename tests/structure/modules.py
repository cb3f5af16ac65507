"""The modules of a checkout, and what the names in them stand for."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

PACKAGES: Final = ("petl", "spaces", "search")
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


@dataclass(frozen=True)
class Unit:
    """Name what a module defines at its top level, or the module itself, where `name` is empty."""

    module: str
    name: str = ""


@dataclass(frozen=True, eq=False)
class Module:
    """Hold a parsed file."""

    name: str
    path: Path
    tree: ast.Module
    lines: int

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    @cached_property
    def definitions(self) -> dict[str, Definition]:
        """Return functions, classes and constants at the top level, by name."""
        found: dict[str, Definition] = {}
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)]
                found.update(dict.fromkeys(names, node))
        return found

    @cached_property
    def imports(self) -> list[tuple[str, str, str]]:
        """Return the module, the name in it and the local name of each import; "" is the name of a whole module."""
        found: list[tuple[str, str, str]] = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found += [(alias.name, "", alias.asname or "") for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                found += [(self._source(node), alias.name, alias.asname or alias.name) for alias in node.names]
        return found

    @cached_property
    def imported(self) -> dict[str, tuple[str, str]]:
        """Return the module and name behind each local name that is imported, wherever in the file."""
        whole = {
            source.partition(".")[0]: (source.partition(".")[0], "") for source, _, local in self.imports if not local
        }
        return whole | {local: (source, name) for source, name, local in self.imports if local}

    @cached_property
    def exports(self) -> dict[str, str]:
        """Return, for an `__init__`, the module that its `__getattr__` loads a name from, read from its tables."""
        tables = [node for node in ast.walk(self.tree) if isinstance(node, ast.Dict)] if self.is_package else []
        rows = [row for table in tables for row in zip(table.keys, table.values, strict=True)]
        texts = [[cell.value for cell in row if isinstance(cell, ast.Constant)] for row in rows]
        return {str(row[0]): str(row[1]) for row in texts if len(row) == 2}

    def _source(self, node: ast.ImportFrom) -> str:
        """Return the full name of the module that is imported from."""
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        parts = parts[: len(parts) - node.level + self.is_package]
        return ".".join([*parts, *([node.module] if node.module else [])])


class Tree:
    """Hold all modules of the product in a checkout, by name; an `__init__` has the name of its package."""

    def __init__(self, root: Path) -> None:
        files = sorted(file for package in PACKAGES for file in (root / package).rglob("*.py"))
        if not files:
            raise ValueError(f"a checkout has the folders {', '.join(PACKAGES)}; there are none under {root}")
        self.modules: Mapping[str, Module] = {module.name: module for module in (_read(file, root) for file in files)}

    def files(self, package: str = "") -> list[Module]:
        """Return the modules under a package, or all of them, without the `__init__` files."""
        under = f"{package}." if package else ""
        return [module for module in self.modules.values() if not module.is_package and module.name.startswith(under)]

    def resolve(self, module: str, name: str) -> Unit | None:
        """Return what `module.name` is, through imports and lazy exports; None for what is not of this tree."""
        passed: set[tuple[str, str]] = set()
        while name and (module, name) not in passed:
            passed.add((module, name))
            home = self.modules.get(module)
            if home is None:
                return None
            if name in home.definitions:
                return Unit(module, name)
            if name in home.imported:
                module, name = home.imported[name]
            elif f"{module}.{name}" in self.modules:
                module, name = f"{module}.{name}", ""
            elif name in home.exports:
                lazy = home.exports[name]
                module = lazy if lazy in self.modules else f"{module}.{lazy.lstrip('.')}"
            else:
                return None
            if f"{module}.{name}" in self.modules and name not in self.modules[module].definitions:
                module, name = f"{module}.{name}", ""
        return Unit(module) if module in self.modules else None

    def imports(self, module: Module) -> Iterator[str]:
        """Yield the modules that a module imports, at its top, inside functions or for its types, once an import.

        What an `__init__` hands on counts for the module that defines it. Raises LookupError for an import of
        something that this tree does not have.
        """
        for source, name, _ in module.imports:
            if source.partition(".")[0] not in PACKAGES:
                continue
            home = self.modules.get(source)
            if home is not None and not home.is_package:
                yield source
            elif unit := self.resolve(source, name) if name else home and Unit(source):
                yield unit.module
            else:
                raise LookupError(f"{module.name} imports {name} from {source}, where nothing of that name is found")


def _read(file: Path, root: Path) -> Module:
    """Return a file parsed, with the imports of its stub, by which `lazy_loader` knows what a package hands on."""
    parts = file.relative_to(root).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    text, stub = file.read_text(), file.with_suffix(".pyi")
    tree = ast.parse(text)
    if stub.exists():
        tree.body += [node for node in ast.parse(stub.read_text()).body if isinstance(node, ast.ImportFrom)]
    return Module(name, file, tree, len(text.splitlines()))
