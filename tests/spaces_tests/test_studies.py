"""Every study file that is shipped: it is read as a user's would be, and its designs fit its backbone."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import optuna
import pytest
import texts
import tiny
from transformers import BartConfig, BertConfig, PretrainedConfig

from petl import tasks
from petl.backbones.count import count
from petl.backbones.model import Backbone, describe
from petl.paper.percentages import check, from_config
from petl.paper.results import PERCENTAGES, results
from petl.presets import parse
from search.config.loading import load_config
from search.config.study import StudyConfig
from search.study.inputs import MissingInputError, require_inputs
from search.study.plan import _listed, _searched, rehearse
from search.study.resolve import resolve, settled

ROOT = Path(__file__).parents[2] / "spaces" / "studies"
STUDIES = sorted(ROOT.rglob("*.yaml"))
PAPER = [path for path in STUDIES if path.parent == ROOT / "paper"]
PUBLISHED = {
    "facebook/bart-large": "bart-large",
    "facebook/mbart-large-cc25": "mbart-large",
    "roberta-base": "roberta-base",
}
SMALL: dict[str, PretrainedConfig] = {  # by the last word of the model's address, or of its package
    "tiny-bart-en-ro": BartConfig(
        vocab_size=8_000, d_model=256, encoder_layers=3, decoder_layers=3, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=1024, decoder_ffn_dim=1024, max_position_embeddings=512,
    ),
    "model": BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536),
}  # fmt: skip


@cache
def backbone(model: str) -> Backbone:
    """What a study's model is by its size, without the hub."""
    if model in PUBLISHED:
        return from_config(PUBLISHED[model])
    with TemporaryDirectory() as folder:
        SMALL[Path(model).name].save_pretrained(folder)
        return describe(str(Path(folder) / "config.json"))


def read(path: Path) -> StudyConfig:
    config = load_config(path)
    return config if config.budget.steps is None else config.with_epochs(1.0)


def test_studies_are_found() -> None:
    assert ROOT / "demo.yaml" in STUDIES
    assert PAPER


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_study(path: Path) -> None:
    """A space is sampled, a list planned whole; everything counts."""
    config = read(path)
    assert config.study == path.stem
    model = backbone(config.backbone.model)
    if config.designs:
        _, enqueued = _listed(config, model)
        assert len(enqueued) == config.trials
        for item in enqueued:
            counts = count(item.configuration.design, model, labels=3)
            assert 0 < counts.stored <= counts.base, item.name
    else:
        space, _ = _searched(config, model)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for _ in range(20):
            assert count(space(study.ask(), model).design, model, labels=3).base
    for reference in config.reference_configurations().values():
        assert reference is None or count(reference.design, model, labels=3).base


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_rows_of_the_paper_are_those_that_it_prints(path: Path) -> None:
    config = read(path)
    assert config.paper is not None
    table, task = config.paper.table, config.paper.task
    printed = set(results(table, task))
    assert set(config.designs) == printed
    assert path.stem.startswith(f"{table.replace(' ', '') if table.startswith('f') else f'table{table}'}-{task}")
    if path.stem.endswith("-small"):
        return
    rows = {row.method: row for row in PERCENTAGES if table in row.tables}
    if table != "figure 4":
        assert printed - {"full fine-tuning"} <= set(rows)
    model = backbone(config.backbone.model)
    for name in set(config.designs) & set(rows):
        assert count(parse(config.designs[name].design), model).paper == check(rows[name]).parameters, name


@pytest.mark.parametrize("path", [path for path in PAPER if path.stem.endswith("-small")], ids=lambda path: path.stem)
def test_small_studies_are_the_full_ones_at_a_smaller_width(path: Path) -> None:
    """The same rows, whose shares of their sites' widths are the full ones' but for rounding."""
    small, full = read(path), read(path.with_name(path.name.replace("-small", "")))
    assert small.paper == full.paper
    assert list(small.designs) == list(full.designs)
    narrower = 2 if "table2" in path.stem else 4
    for name, row in small.designs.items():
        given, wanted = parse(row.design).modifications, parse(full.designs[name].design).modifications
        assert [m.form for m in given] == [m.form for m in wanted]
        for one, other in zip(given, wanted, strict=True):
            assert one.size == (max(1, (other.size + narrower // 2) // narrower) if other.size else 0), name
            assert (one.scale, one.init, one.insertion, one.site) == (
                other.scale, other.init, other.insertion, other.site,
            )  # fmt: skip


GENERATING = [path for path in STUDIES if "tiny-bart-en-ro" in path.read_text()]


def test_a_study_without_its_model_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a folder that has nothing beside it, as a clone has; model and rows are said at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PETL_DATA", raising=False)
    assert len(GENERATING) == 10
    for path in GENERATING:
        with pytest.raises(MissingInputError) as missing:
            require_inputs(load_config(path))
        _, model, rows = str(missing.value).splitlines()
        assert re.search(
            r"tiny-bart-en-ro.* --set backbone\.model=facebook/bart-base .* --set backbone.model=FOLDER", model
        )
        assert re.search(r"of the hub.* --set task\.data_dir=FOLDER .* the columns (document, summary|en, ro),", rows)
        require_inputs(load_config(path, ["backbone.model=facebook/bart-base"]))
    for path in set(STUDIES) - set(GENERATING):
        require_inputs(load_config(path))


@pytest.fixture(scope="module")
def small_bart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BART with positions for the texts of all studies, and 64 rows of XSum and WMT16 in words that it knows."""
    folder = tmp_path_factory.mktemp("small")
    model = tiny.model("bart", generates=True)
    model.config.max_position_embeddings = 512
    type(model)(model.config).save_pretrained(folder / "model")
    texts.tokenizer().save_pretrained(folder / "model")
    for name in ("xsum", "wmt16_en_ro"):
        columns = tasks.resolve({"name": name}).columns
        for seed, split in enumerate(("train", "validation", "test")):
            file = texts.write_rows(folder / "data" / name / f"{split}.jsonl", 64, seed)
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            named = [{theirs: row[ours] for ours, theirs in columns.items()} for row in rows]
            file.write_text("".join(json.dumps(row) + "\n" for row in named))
    return folder


@pytest.mark.parametrize("path", GENERATING, ids=lambda path: path.stem)
def test_the_first_step_of_a_study(path: Path, small_bart: Path) -> None:
    """With a model and rows of one's own, as the message has it."""
    rows = small_bart / "data" / tasks.resolve(load_config(path).task).name
    config = load_config(path, [f"backbone.model={small_bart}/model", f"task.data_dir={rows}"])
    require_inputs(config)
    resolved = resolve(config)
    assert resolved.rows["train"] == 64
    rehearse(settled(config, resolved), resolved)
