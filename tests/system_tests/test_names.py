"""A whole study whose name is of other scripts: from its file to its adapter, over a kill and a resume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import studies
import yaml
from survival import Victim, finished

from petl.adapters.storage import load_model

NAME = "отзывы-评论-مراجعات"


def command(*words: str, **environment: str) -> str:
    """What a command prints, in a terminal that says nothing of its encoding."""
    done = subprocess.run(
        [sys.executable, "-m", "search.cli", *words],
        env={**os.environ, "LC_ALL": "C", **environment},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@pytest.mark.full("two searches")
def test_a_study_of_another_script_from_its_file_to_its_adapter(home: Path) -> None:
    content = studies.study(
        home / "inputs",
        study=NAME,
        references=["majority"],
        budget={"trials": 4, "epochs": 2},
        resources={"concurrent": 1},
    )
    path = home / f"{NAME}.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    victim = Victim(["run", str(path)], home / "log.txt")
    victim.wait_for(lambda: len(finished(home, NAME)) > 1)
    victim.kill()
    kept = finished(home, NAME)
    command("resume", NAME)
    assert kept.items() <= finished(home, NAME).items()
    assert NAME in command("ls")
    assert NAME in command("show", NAME)
    rows = json.loads(command("front", NAME, "--format", "json", "--plot", str(home / f"{NAME}.png")))
    assert (home / f"{NAME}.png").stat().st_size
    assert json.loads(command("show", NAME, str(rows[-1]["trial"]), "--format", "json"))["trial"] == rows[-1]["trial"]
    command("export", NAME, str(rows[-1]["trial"]), str(home / f"{NAME}-adapter"))
    assert load_model(home / f"{NAME}-adapter").predict(["great lovely word1"])
