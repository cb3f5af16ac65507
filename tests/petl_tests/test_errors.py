"""One base for the errors of users, and one wording for what pydantic finds."""

from __future__ import annotations

import ast
import builtins
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from petl.errors import UserError, UserNotice, faults
from search.jobs.client import LeftJob
from search.study.places import InterruptedStudy, UndeliveredStudy

ROOT = Path(__file__).parents[2]


def classes() -> dict[str, set[str]]:
    """Return the names of the bases of every class of ours."""
    files = [path for package in ("petl", "spaces", "search") for path in (ROOT / package).rglob("*.py")]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
    return {node.name: {ast.unparse(base) for base in node.bases} for node in nodes}


def test_every_error_is_a_users() -> None:
    bases = classes()

    def above(name: str) -> set[str]:
        return {name}.union(*(above(base) for base in bases.get(name, ())))

    def raised(name: str) -> bool:
        return any(issubclass(getattr(builtins, base, object), BaseException) for base in above(name))

    errors = {name for name in bases if raised(name)} - {"UserError", "UserNotice"}
    assert len(errors) > 25
    assert {name for name in errors if not {"UserError", "UserNotice"} & above(name)} == set()


def test_exit_codes() -> None:
    """2 as of a wrong command line, 130 as shells have it for SIGINT, 75 as sendmail has it for "try again later"."""
    codes = {kind: kind.exit_code for kind in (UserError, InterruptedStudy, LeftJob, UndeliveredStudy)}
    assert codes == {UserError: 2, InterruptedStudy: 130, LeftJob: 130, UndeliveredStudy: 75}
    assert issubclass(UserNotice, UserWarning)


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid")

    layers: int
    name: str = ""
    path: str = ""

    @field_validator("name", "path")
    @classmethod
    def _refuse(cls, value: str) -> str:
        raise ValueError(f"is short; received {value!r}" if len(value) < 4 else "task.path.train is relative")


def test_faults_have_their_place_the_rule_and_the_value() -> None:
    with pytest.raises(ValidationError) as caught:
        Model.model_validate({"name": "abc", "path": "pass=word", "more": 1})
    assert faults(caught.value, "task", redact=lambda text: text.replace("word", "...")) == [
        "task.layers: is required; received nothing",
        "task.name: is short; received 'abc'",
        "task.path.train is relative; received 'pass=...'",
        "task.more: no such key; received 1",
    ]
