"""What the code's imports and calls say of its structure; nothing is imported or run.

python -m tests.structure                  modules, arrows, circles, floors and sizes of this checkout
python -m tests.structure PATH             the same of another checkout
python -m tests.structure walk [PATH]      how often the walk from a study file to its front enters each module
python -m tests.structure walk --stays     that walk itself
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from tests.structure.graph import House, Sizes, circles, floors
from tests.structure.modules import Tree, Unit
from tests.structure.walk import entries, stays, walk

_START = Unit("search", "run")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.structure", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("arguments", nargs="*", metavar="walk | PATH", help="as above")
    parser.add_argument("--stays", action="store_true", help="print the walk, a line a stay")
    given = parser.parse_args()
    shows_walk = given.arguments[:1] == ["walk"]
    paths = given.arguments[shows_walk:]
    tree = Tree(Path(paths[0]) if paths else Path(__file__).parents[2])
    if not shows_walk:
        print_graph(House.of(tree))
    elif given.stays:
        for stay in stays(walk(tree, _START)):
            print(f"{stay.module}: {' '.join(stay.names)}{f'  <- {stay.by.module}.{stay.by.name}' if stay.by else ''}")
    else:
        print_walk(walk(tree, _START))


def print_graph(house: House) -> None:
    rooms = house.rooms
    height = floors(rooms)
    print(f"{'':28}{'modules':>8}{'arrows':>8}{'circles':>8}{'median':>8}{'p90':>6}{'largest':>8}")
    for package in ("", "petl", "spaces", "search"):
        names = {module.name for module in house.tree.files(package)}
        inner = {name: house.arrows[name] & names for name in names}
        sizes = Sizes.of(house.tree.files(package))
        arrows = sum(map(len, inner.values()))
        numbers = f"{len(names):8}{arrows:8}{len(circles(inner)):8}{sizes.median:8}{sizes.p90:6}{sizes.largest:8}"
        print(f"{package or 'all':28}{numbers}  {sizes.name}")
    print(f"\n{len(rooms)} rooms on {max(height.values())} floors, {len(circles(rooms))} circles")
    for floor in range(max(height.values()), 0, -1):
        print(f"  {floor}  {', '.join(sorted(name for name, level in height.items() if level == floor))}")
    print("\ninside of each package, a folder in it as one: things, floors, circles")
    for package in house.packages:
        inside = house.inside(package)
        print(f"  {package:26}{len(inside):6}{max(floors(inside).values()):8}{len(circles(inside)):8}")
    for circle in circles(house.arrows):
        print(f"circle: {' '.join(circle)}")


def print_walk(stops: Mapping[Unit, Unit | None]) -> None:
    counts = entries(stops)
    print(
        f"from {_START.module}.{_START.name}: {len(stops)} functions and classes read in {sum(counts.values())} stays"
    )
    print(f"in {len(counts)} modules; times each is entered, from the most:")
    for module, count in counts.most_common():
        print(f"{count:5}  {module}")


if __name__ == "__main__":
    main()
