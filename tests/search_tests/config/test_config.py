"""Study files: read as written, every fault in one go."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from studies import study

from petl import tasks
from search.config.loading import load_config, load_stored
from search.config.text import ConfigError
from search.optimizer.rungs import Halving

ROOT = Path(__file__).parents[3]
STUDIES = sorted((ROOT / "spaces" / "studies").rglob("*.yaml"))


def test_shipped_studies_are_found() -> None:
    assert ROOT / "spaces" / "studies" / "demo.yaml" in STUDIES


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_shipped_study_is_valid(path: Path) -> None:
    assert load_config(path).study == path.stem


def test_demo_is_what_the_readme_says() -> None:
    demo = load_config(ROOT / "spaces" / "studies" / "demo.yaml")
    assert demo.budget.trials >= 24
    assert demo.resources.concurrent >= 2
    assert demo.space["name"] == "unified"
    assert list(demo.references) == ["majority", "probe", "head_only", "full"]


def test_every_fault_is_listed_at_once_with_rule_and_value(tmp_path: Path) -> None:
    broken = {
        "study": "no spaces",
        "backbone": {"model": "", "precision": "fp8"},
        "task": {"name": "nowhere"},
        "space": {"name": "unified", "max_sice": 4},
        "objectives": {"score": "acuracy"},
        "constraints": {"accuracy": 5},
        "references": ["best"],
        "enqueue": ["lora:rnk=8"],
        "training": {"learning_rate": -1},
        "sampler": {"name": "grid"},
        "scheduler": {"name": "asha", "eta": 1},
        "budget": {"trials": 0, "epochs": -3},
        "resources": {"gpus_per_trial": 2},
        "trackin": {},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(broken))
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "study.yaml")
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("study.yaml has 16 fault(s):")
    for where, received in (
        ("study:", "'no spaces'"),
        ("backbone.model:", "''"),
        ("backbone.precision:", "'fp8'"),
        ("task:", "tweets"),
        ("space:", "max_sice"),
        ("objectives.score:", "'acuracy'"),
        ("constraints:", "'accuracy'"),
        ("references:", "'best'"),
        ("enqueue:", "rnk"),
        ("training:", "-1"),
        ("sampler.name:", "'grid'"),
        ("scheduler:", "1"),
        ("budget.trials:", "0"),
        ("budget.epochs:", "-3"),
        ("resources:", "gpus_per_trial 2 for workers_per_trial 1"),
        ("trackin:", "no such key"),
    ):
        assert any(line.strip().startswith(where) and received in line for line in lines[1:]), where


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"budget": {"trails": 3}}, "budget.trails: no such key, perhaps trials; received 3"),
        ({"constrain": {}}, "constrain: no such key, perhaps constraints; received {}"),
        ({"designs": {"one": {"design": "bitfit", "sheets": 1}}}, "designs.one.sheets: no such key, perhaps seeds; "),
        ({"backbone": {"model": "a/b", "size": 1}}, "backbone.size: no such key; there are model, precision; "),
    ],
)
def test_a_key_that_does_not_exist_is_answered_with_those_that_do(
    tmp_path: Path, sections: dict[str, Any], line: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({**study(tmp_path), **sections})
    assert line in str(caught.value)


def test_set_overrides_nested_values_and_checks_them(tmp_path: Path) -> None:
    config = load_config(study(tmp_path), ["budget.trials=48", "space.max_size=4", "constraints={stored_percent: 2}"])
    assert config.budget.trials == 48
    assert config.space["max_size"] == 4
    assert config.constraints == {"stored_percent": 2}
    with pytest.raises(ConfigError, match=r"budget.trials: .*received 'many'"):
        load_config(study(tmp_path), ["budget.trials=many"])
    with pytest.raises(ConfigError, match="key=value"):
        load_config(study(tmp_path), ["budget.trials"])
    with pytest.raises(ConfigError, match="study is a value, not a section"):
        load_config(study(tmp_path), ["study.name=x"])


def test_a_section_may_be_what_matters_of_it(tmp_path: Path) -> None:
    short = load_config({**study(tmp_path), "sampler": "tpe", "scheduler": "none", "replicates": 3, "warm_start": "b"})
    assert short.sampler.name == "tpe"
    assert short.scheduler.name == "none"
    assert short.replicates.per_trial == 3
    assert short.warm_start == ("b",)
    with pytest.raises(ConfigError, match="a scheduler is one of none"):
        load_config({**study(tmp_path), "scheduler": "hyperband"})
    with pytest.raises(ConfigError, match=r"replicates: .*received True"):
        load_config({**study(tmp_path), "replicates": True})


def test_money_needs_a_price(tmp_path: Path) -> None:
    for settings, message in (
        (["budget.money=3"], "money needs a price_per_device_hour; received money 3 alone"),
        (["budget.money=-3", "budget.price_per_device_hour=2"], r"budget.money: .*greater than 0"),
        (["budget.money=3", "budget.price_per_device_hour=0"], r"budget.price_per_device_hour: .*greater than 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(study(tmp_path), settings)


def test_zero_stage_is_one_of_four(tmp_path: Path) -> None:
    assert load_config(study(tmp_path), ["resources.zero_stage=3"]).resources.zero_stage == 3
    with pytest.raises(ConfigError, match=r"resources.zero_stage: .*received 4"):
        load_config(study(tmp_path), ["resources.zero_stage=4"])


def test_offload_fits_the_zero_stage(tmp_path: Path) -> None:
    both = ["resources.zero_stage=3", "resources.offload=[optimizer, parameters]"]
    assert load_config(study(tmp_path), both).resources.offload == ("optimizer", "parameters")
    with pytest.raises(ConfigError, match=r"parameters, at ZeRO stage 3; received 'parameters' at stage 2"):
        load_config(study(tmp_path), ["resources.zero_stage=2", "resources.offload=[parameters]"])


def test_numbers_as_people_write_them(tmp_path: Path) -> None:
    text = yaml.safe_dump(study(tmp_path)) + "seed: 3\n"
    text = text.replace("training:\n", "training:\n  learning_rate: 1e-3\n  weight_decay: 1.5E-2\n")
    (tmp_path / "study.yaml").write_text(text)
    config = load_config(tmp_path / "study.yaml", ["space.learning_rate=[1e-4, 1e-2]"])
    assert (config.fixed_training.learning_rate, config.fixed_training.weight_decay) == (1e-3, 1.5e-2)
    assert config.space["learning_rate"] == [1e-4, 1e-2]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.train_rows=many", r"task.train_rows: .*valid integer.*'many'"),
        ("task.train_rows=1500.5", r"task.train_rows: .*1500.5"),
        ("task.minimum=0.6", r"task.minimum: .*0.6"),
        ("task.columns=[text, label]", r"task.columns: "),
        ("training.batch_size=16.5", r"training: batch_size: .*16.5"),
        ("training.learning_rate=fast", r"training: learning_rate: .*'fast'"),
        ("training.epochs=3", "epochs are set under budget.epochs"),
        ("budget.epochs=.inf", r"budget.epochs: .*inf"),
        ("space.name=5", "space.name is a name .*5"),
        ("enqueue=[pfeifer]", "a design is one of full, .* received 'pfeifer'"),
        ("references={full: {lr: 1}}", "training has no lr"),
    ],
)
def test_values_of_another_type_are_faults_not_tracebacks(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(study(tmp_path), [override])


def test_references_take_settings_of_their_own(tmp_path: Path) -> None:
    config = load_config(study(tmp_path, references={"majority": {}, "full": {"learning_rate": 2e-5}}))
    configurations = config.reference_configurations()
    assert configurations["majority"] is None
    full = configurations["full"]
    assert full is not None
    assert (full.training.learning_rate, full.training.epochs, full.training.batch_size) == (2e-5, 2, 16)
    with pytest.raises(ConfigError, match="majority is not trained"):
        load_config(study(tmp_path, references={"majority": {"learning_rate": 1}}))


def test_space_of_the_users_own_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_space.py").write_text("def mine(trial, backbone, width=3): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_config(study(tmp_path, space={"name": "my_space:mine", "width": 5})).space["width"] == 5
    with pytest.raises(ConfigError, match="takes the options width; received depth"):
        load_config(study(tmp_path, space={"name": "my_space:mine", "depth": 5}))
    with pytest.raises(ConfigError, match="cannot be imported"):
        load_config(study(tmp_path, space={"name": "my_space:yours"}))


def test_relative_paths_are_of_the_folder_where_the_study_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study(tmp_path)
    monkeypatch.chdir(tmp_path)
    content = study(tmp_path, backbone={"model": "backbone"}, tracking={"uri": "sqlite:///mine.db"})
    config = load_config({**content, "task": {"name": "words", "paths": "rows.csv"}})
    assert config.backbone.model == str(tmp_path / "backbone")
    assert config.task["paths"] == {"train": str(tmp_path / "rows.csv")}
    assert config.tracking.uri == f"sqlite:///{tmp_path / 'mine.db'}"
    for kept in ("roberta-base", "package:some-model/files"):
        assert load_config({**content, "backbone": {"model": kept}}).backbone.model == kept


def test_files_that_are_no_study(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match="mapping of sections"):
        load_config(tmp_path / "list.yaml")
    (tmp_path / "torn.yaml").write_text("study: [a\n")
    with pytest.raises(ConfigError, match="is no YAML"):
        load_config(tmp_path / "torn.yaml")
    (tmp_path / "code.yaml").write_text("study: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ConfigError, match="is no YAML"):
        load_config(tmp_path / "code.yaml")


LIST = {"lora 2": "lora:rank=2", "bias": {"design": "bitfit", "training": {"learning_rate": 5e-3}, "seeds": [7]}}


def listed(folder: Path, **sections: Any) -> dict[str, Any]:
    """A study file's content with a list of designs instead of a space."""
    content = study(folder, **{"designs": LIST, "budget": {"epochs": 2}, **sections})
    return {key: value for key, value in content.items() if key in sections or key not in ("space", "references")}


def test_a_list_trains_its_designs_seeds_outermost(tmp_path: Path) -> None:
    designs = {**LIST, "head": "head_only"}
    config = load_config(listed(tmp_path, designs=designs, seeds=[42, 2]))
    assert [(name, configuration.seed) for name, configuration in config.listed] == [
        ("lora 2", 42), ("bias", 7), ("head", 42), ("lora 2", 2), ("head", 2),
    ]  # fmt: skip
    assert config.trials == 5
    assert config.scheduler.name == "none"
    assert (config.references, config.space) == ({}, {})
    trained = dict(config.listed)["bias"].training
    assert (trained.learning_rate, trained.batch_size, trained.epochs) == (5e-3, 16, 2)
    assert [one.seed for _, one in load_config(listed(tmp_path, seed=3)).listed] == [3, 7]
    assert load_config(config.model_dump(mode="json")) == config  # as a resume reads it


def test_every_fault_of_a_list_is_listed_at_once(tmp_path: Path) -> None:
    content = listed(
        tmp_path,
        space={"name": "unified"},
        enqueue=["bitfit"],
        scheduler={"name": "asha"},
        budget={"trials": 3},
        paper={"table": 12, "task": "xsum"},
        seeds=[1, 1],
        objectives={"score": "rouge2"},
        references=["untuned"],
    )
    with pytest.raises(ConfigError) as caught:
        load_config(content)
    lines = [line.strip() for line in str(caught.value).splitlines()]
    for where, said in (
        ("space:", "a space or designs, not both"),
        ("enqueue:", "nothing is enqueued"),
        ("scheduler:", "received 'asha'"),
        ("budget:", "received trials: 3"),
        ("paper:", "prefix, l = 200; prefix, l = 512"),
        ("seeds:", "received [1, 1]"),
        ("objectives:", "text-classification are accuracy, f1, matthews, loss; received score: 'rouge2'"),
        ("references:", "are majority, probe, head_only, full and designs; received 'untuned'"),
    ):
        assert any(line.startswith(where) and said in line for line in lines), where
    assert lines[0].endswith("has 8 fault(s):")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"designs": {"a": "lroa"}}, "designs.a.design: a design is one of"),
        ({"designs": {"a": {"design": "bitfit", "training": {"lr": 1}}}}, "designs: a: training has no lr"),
        ({"designs": {"a": {"design": "bitfit", "seeds": [1, 1]}}}, "designs.a.seeds: each seed is given once"),
        ({"paper": {"table": "12", "task": "mnli"}}, "mnli is in the tables 2; received table 12"),
        ({"paper": {"table": "13", "task": "xsum"}}, "paper.table: one of 2, 3, 12, 4, 5, 6, figure 4; received '13'"),
        ({"paper": {"table": "12", "task": "xsum"}}, "received lora 2; bias"),
        ({"budget": {"epochs": 2, "steps": 20}}, "give epochs or steps, .*received epochs 2, steps 20"),
        (
            {"budget": {"steps": 20}, "designs": {"a": {"design": "bitfit", "training": {"batch_size": 8}}}},
            "every design has the study's batch_size.*received batch_size: 8 for a",
        ),
        ({"designs": {"a": {"design": "bitfit", "training": {"patience": 2}}}}, "patience is 0, or counts"),
    ],
)
def test_faults_of_lists(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(listed(tmp_path, **sections))


def test_what_only_lists_have(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"seeds: only a list of designs .*received \[1, 2\]"):
        load_config(study(tmp_path, seeds=[1, 2]))
    with pytest.raises(ConfigError, match="paper: only a list of designs has rows to compare"):
        load_config(study(tmp_path, paper={"table": "5", "task": "xsum"}))


def test_a_designs_training_keeps_the_rules_together_with_the_studys(tmp_path: Path) -> None:
    designs = {"a": {"design": "bitfit", "training": {"patience": 2}}}
    config = load_config(listed(tmp_path, designs=designs, training={"keep": "accuracy"}))
    assert config.listed[0][1].training.patience == 2


def test_defaults_depend_on_the_kind_of_task(tmp_path: Path) -> None:
    content = {"study": "x", "backbone": {"model": "facebook/bart-large"}, "task": {"name": "xsum"}}
    config = load_config(content)
    assert config.objectives.score == tasks.KINDS["summarization"].scores[0]
    assert list(config.references) == ["untuned", "full"]
    assert config.reference_configurations()["untuned"] is None
    assert list(load_config({**content, "task": {"name": "tweets"}}).references) == [
        "majority", "probe", "head_only", "full",
    ]  # fmt: skip
    for name in ("majority", "probe", "head_only"):
        with pytest.raises(ConfigError, match=f"references for summarization are untuned, full .*'{name}'"):
            load_config({**content, "references": [name]})


def test_a_reference_may_be_any_design(tmp_path: Path) -> None:
    config = load_config(study(tmp_path, references={"lora:rank=8": {"learning_rate": 2e-3}}))
    reference = config.reference_configurations()["lora:rank=8"]
    assert reference is not None
    assert (reference.design.describe(), reference.training.learning_rate) == ("lora query,value 8 x2", 2e-3)


def test_steps_become_epochs_with_the_data(tmp_path: Path) -> None:
    config = load_config(listed(tmp_path, budget={"steps": 20}))
    assert (config.budget.epochs, config.budget.steps) == (None, 20)
    assert config.with_epochs(2.5).listed[0][1].training.epochs == 2.5
    with pytest.raises(ConfigError, match="give epochs or steps"):
        load_config(config.model_dump(mode="json"), ["budget.epochs=3"])
    assert load_config(config.model_dump(mode="json"), ["budget.epochs=3", "budget.steps=null"]).budget.epochs == 3


def test_weights_are_kept_by_a_score_of_the_task(tmp_path: Path) -> None:
    """Else every trial would fail at its second validation."""
    content = study(tmp_path)
    for sections in (
        {"training": {"keep": "rouge2"}},
        {"references": {"full": {"keep": "rouge2"}}},
    ):
        with pytest.raises(ConfigError, match=r"keep is last, or a score of text-classification: .* received 'rouge2'"):
            load_config({**content, **sections})
    assert load_config({**content, "training": {"keep": "f1"}}).training == {"keep": "f1"}


def test_plausible_slips_of_yaml(tmp_path: Path) -> None:
    content = study(tmp_path)
    assert load_config({**content, "references": {"full": None}}).references == {"full": {}}
    with pytest.raises(ConfigError, match="task: Input should be a valid dictionary; received 'sst2'"):
        load_config({**content, "task": "sst2"})
    with pytest.raises(ConfigError, match=r"task\.paths\.train: .* received None"):
        load_config({**content, "task": {"name": "words", "paths": {"train": None}}})


@pytest.mark.parametrize("sampler", ["auto", "front", "random"])
def test_what_learns_nothing_from_unfinished_trials_is_refused_an_option(tmp_path: Path, sampler: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"unfinished is for tpe, nsga2 and gp; received '{sampler}' with 'extrapolated'"
    ):
        load_config(study(tmp_path, sampler={"name": sampler, "unfinished": "extrapolated"}))
    three = {"score": "accuracy", "cost": "stored_parameters", "second_cost": "seconds"}
    load_config(
        study(tmp_path, sampler={"name": "auto", "unfinished": "extrapolated"}, objectives=three)
    )  # gp and tpe then


def test_halving_knows_the_trials_and_has_no_waves_for_a_sampler_that_learns_nothing(tmp_path: Path) -> None:
    given = {"budget": {"trials": 60, "epochs": 9}, "scheduler": {"name": "halving"}}
    rules = [load_config(study(tmp_path, **given, sampler={"name": name})).rule for name in ("random", "tpe")]
    assert all(isinstance(rule, Halving) and rule.quotas == (60, 20, 8) for rule in rules)
    assert [getattr(rule, "waves", 0) for rule in rules] == [1, None]
    asked = load_config(study(tmp_path, **{**given, "scheduler": {"name": "halving", "waves": 3, "min_full": 2}}))
    assert isinstance(asked.rule, Halving)
    assert (asked.rule.waves, asked.rule.quotas) == (3, (60, 20, 7))


def test_a_second_cost_is_another_cost(tmp_path: Path) -> None:
    content = study(tmp_path)
    assert load_config(content).objectives.names == ("accuracy", "stored_parameters")
    config = load_config(content, ["objectives.second_cost=latency_ms"])
    assert config.objectives.names == ("accuracy", "stored_parameters", "latency_ms")
    assert load_config(config.model_dump(mode="json")) == config  # as a resume reads it
    with pytest.raises(ConfigError, match=r"objectives.second_cost: .*stored_parameters, .*received 'f1'"):
        load_config(content, ["objectives.second_cost=f1"])
    with pytest.raises(ConfigError, match=r"objectives.second_cost: .*another one than cost; .*'stored_parameters'"):
        load_config(content, ["objectives.second_cost=stored_parameters"])


def test_the_sampler_front_has_one_cost(tmp_path: Path) -> None:
    content = study(tmp_path, objectives={"second_cost": "latency_ms"}, sampler={"name": "front"})
    with pytest.raises(ConfigError, match=r"sampler: .*counts one cost; .*take random, tpe, nsga2, gp, auto"):
        load_config(content)
    for name in ("random", "tpe", "nsga2", "gp", "auto"):
        assert load_config(content, [f"sampler.name={name}"]).sampler.name == name


def test_a_folder_in_the_way_does_not_make_a_hub_id_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = study(tmp_path, backbone={"model": "facebook/bart-base"})
    began = load_config(content)
    (tmp_path / "facebook" / "bart-base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert load_config(content).backbone.model == "facebook/bart-base"
    (tmp_path / "facebook" / "bart-base" / "config.json").write_text("{}")
    assert load_config(content).backbone.model == str(tmp_path / "facebook" / "bart-base")  # a model, by that name
    assert load_stored(began.to_dict()) == began
    assert load_config({**content, "backbone": {"model": "./mine"}}).backbone.model == str(tmp_path / "mine")


def test_a_space_of_the_users_own_is_looked_for_last_in_the_current_folder(tmp_path: Path) -> None:
    """Else a queue.py or datasets.py beside it would be imported for the library of that name."""
    fresh = "import sys\nassert 'modulefinder' not in sys.modules\nimport modulefinder\n"
    (tmp_path / "my_space.py").write_text(fresh + "def mine(trial, backbone): ...\n")
    (tmp_path / "modulefinder.py").write_text("raise RuntimeError('not this one')\n")
    content = study(tmp_path, space={"name": "my_space:mine"}, budget={"trials": 0})
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    command = "import sys; sys.argv = ['petl-search', 'run', 'study.yaml']; from search.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", command],
        cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "petl-search: study.yaml has 1 fault(s):"
    assert "budget.trials: " in done.stderr


def test_faults_of_sections_and_between_them_are_found_in_one_go(tmp_path: Path) -> None:
    content = study(
        tmp_path,
        seeds=[1, 2],
        objectives={"score": "rouge2"},
        sampler={"name": "tpe", "teaching": "raw"},
        replicates={"per_trial": -1},
        trackin={},
    )
    with pytest.raises(ConfigError) as caught:
        load_config(content)
    assert sorted(line.strip().partition(": ")[0] for line in str(caught.value).splitlines()[1:]) == [
        "objectives", "replicates.per_trial", "sampler.teaching", "seeds", "trackin",
    ]  # fmt: skip


def test_a_rule_waits_for_the_sections_that_it_reads(tmp_path: Path) -> None:
    """Whether `rouge2` is a score of the task is not known while the task has a fault."""
    content = study(tmp_path, task={"name": "nowhere"}, objectives={"score": "rouge2"}, seeds=[1, 2])
    with pytest.raises(ConfigError) as caught:
        load_config(content)
    first, second = (line.strip() for line in str(caught.value).splitlines()[1:])
    assert first.startswith("task: task nowhere: nothing says where its rows are")
    assert second.startswith("seeds: only a list of designs")
