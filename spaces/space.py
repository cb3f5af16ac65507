"""A space by its name: `unified`, or `package.module:function` of the user's own."""

from __future__ import annotations

import importlib
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from optuna.exceptions import TrialPruned
from optuna.trial import FixedTrial

from petl.configuration import Configuration, Training
from petl.design import Design, DesignError, plain
from petl.errors import UserError
from spaces import adapter, lora, prefix, unified
from spaces.dimensions import BrokenSpaceError, PointError, SpaceError, locate, suggest
from spaces.shipped import LEARNING_RATE, ShippedSpace

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial

    from petl.backbones.model import Backbone


class Space(Protocol):
    """A search space, bound to its options."""

    def __call__(self, trial: BaseTrial, backbone: Backbone, /) -> Configuration:
        """Return the configuration at the trial's point."""
        ...


SPACES: Final[Mapping[str, ShippedSpace]] = {
    "unified": unified.unified,
    "lora": lora.lora,
    "adapter": adapter.adapter,
    "prefix": prefix.prefix,
}


@dataclass(frozen=True)
class Point:
    """One point of a space: its coordinates, what each could have been, what they mean, and the outcome.

    `coordinates` and `distributions` are Optuna's; `params` shows sizes instead of their indices.
    """

    coordinates: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    params: Mapping[str, Any]
    configuration: Configuration


def resolve(
    name: str, options: Mapping[str, Any] | None = None, training: Training | None = None, seed: int = 0
) -> Space:
    """Return the space of this name with its options, the study's training and the study's one training seed.

    A user's function, `package.module:function`, may lie in the current folder. It gets `training` if its signature
    names it.
    Raises SpaceError for what cannot be imported, is no function, or does not take an option.
    """
    options = dict(options or {})
    shipped = SPACES.get(name)
    function = shipped or _imported(name)
    names, any_keyword = _keywords(shipped.dimensions if shipped else function)
    unknown = sorted(set(options) - names)
    if unknown and not any_keyword:
        taken = ", ".join(sorted(names - {"training"})) or "none"
        raise SpaceError(f"space {name} takes the options {taken}; received {', '.join(unknown)}")
    if shipped or "training" in names or any_keyword:
        options["training"] = training or Training()
    return BoundSpace(name, function, options, seed)


@dataclass(frozen=True)
class BoundSpace:
    """A space with its options: see `resolve`."""

    name: str
    function: Callable[..., Any]
    options: Mapping[str, Any]
    seed: int

    def __call__(self, trial: BaseTrial, backbone: Backbone, /) -> Configuration:
        configuration = self.function(trial, backbone, **self.options)
        if not isinstance(configuration, Configuration):
            raise BrokenSpaceError(f"space {self.name} returns a petl Configuration; it returned {configuration!r}")
        # A space of the user's own need not spell designs canonically for a twin to be recognised.
        return replace(configuration, design=configuration.design.canonical(backbone.layout), seed=self.seed)


def attempt(space: Space, trial: BaseTrial, backbone: Backbone) -> Point:
    """Return the point of a space that the trial suggests.

    Raises PointError where there is none: the space prunes the trial, as Optuna's users do, or the design is none.
    Raises BrokenSpaceError, naming the point, for whatever else a user's function raises.
    """
    try:
        return point(trial, space(trial, backbone))
    except (TrialPruned, DesignError, SpaceError) as error:
        why = str(error) or "the space pruned the trial"
        raise PointError(why, dict(trial.params), dict(trial.distributions)) from error
    except BrokenSpaceError as error:
        raise BrokenSpaceError(f"{error}, at {dict(trial.params)}") from error
    except UserError:
        raise
    except Exception as error:
        raise BrokenSpaceError(
            f"the space is broken at {dict(trial.params)}: {type(error).__name__}: {error}. A space may raise "
            "optuna.TrialPruned or SpaceError for points that it does not have; a categorical has the same choices "
            "at every point"
        ) from error


def decode(space: Space, coordinates: Mapping[str, Any], backbone: Backbone) -> Point:
    """Return the point of a space at these coordinates.

    Raises SpaceError where the space has no such coordinates, and BrokenSpaceError where it fails there.
    """
    trial = FixedTrial(dict(coordinates))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a user's space may warn of what it likes
        warnings.filterwarnings("error", message=r"(?s)The value .* is out of")  # optuna has no more for that
        try:
            configuration = space(trial, backbone)
        except (ValueError, Warning, TrialPruned) as error:
            raise SpaceError(f"the space does not hold {dict(coordinates)}: {error}") from error
        except UserError:
            raise
        except Exception as error:
            raise BrokenSpaceError(
                f"the space is broken at {dict(coordinates)}: {type(error).__name__}: {error}"
            ) from error
    return point(trial, configuration)


def point(trial: BaseTrial, configuration: Configuration) -> Point:
    """Return what a trial suggested while the space was called, and what came of it."""
    return Point(
        coordinates=dict(trial.params),
        distributions=dict(trial.distributions),
        params={name: _shown(value) for name, value in {**trial.params, **trial.user_attrs}.items()},
        configuration=configuration,
    )


def _shown(value: Any) -> float | int | str:
    value = plain(value)
    return value if isinstance(value, float | int | str) else str(value)


def encode(
    name: str,
    design: Design,
    learning_rate: float,
    backbone: Backbone,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Return the coordinates of a design in a space of ours, or None where it does not contain the design.

    A user's own space gives None: only its function knows what it holds. Raises SpaceError for
    limits that leave nothing.
    """
    if name not in SPACES:
        return None
    shipped = SPACES[name]
    dimensions = shipped.dimensions(backbone, **(options or {}))
    values = shipped.read(design, backbone.depth) | {LEARNING_RATE: learning_rate}
    coordinates = locate(dimensions, values)
    if coordinates is None:
        return None
    trial = FixedTrial(coordinates)
    values = suggest(trial, dimensions)
    built = shipped.build(values, backbone.depth)
    return coordinates if built.canonical(backbone.layout) == design.canonical(backbone.layout) else None


def _imported(name: str) -> Callable[..., Any]:
    module, separator, attribute = name.partition(":")
    if not (separator and module and attribute):
        raise SpaceError(f"a space is one of {', '.join(SPACES)}, or package.module:function; received {name!r}")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # the last: a queue.py there must not take the place of Python's
    try:
        function = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever a module of the user's own raises while it is imported
        raise SpaceError(f"space {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(function):
        raise SpaceError(f"space {name!r} is a function (trial, backbone) -> Configuration; it is {function!r}")
    return function  # type: ignore[no-any-return]


def _keywords(function: Callable[..., Any]) -> tuple[set[str], bool]:
    """Return the options that a function takes after trial and backbone, and whether it takes any keyword."""
    parameters = list(inspect.signature(function).parameters.values())
    named = {
        parameter.name
        for parameter in parameters
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    }
    first_two = {parameter.name for parameter in parameters[:2] if parameter.kind is not parameter.KEYWORD_ONLY}
    return named - first_two, any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
