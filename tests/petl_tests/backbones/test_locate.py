"""Where a model's name leads: a hub id stays one unless a model lies in a folder of that name."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import CONFIGS

from petl.backbones import loading, model
from petl.backbones.locate import BackboneError, locate


def test_a_folder_without_a_model_is_not_in_the_way_of_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "facebook" / "bart-base"
    folder.mkdir(parents=True)
    assert locate("facebook/bart-base") == "facebook/bart-base"
    with pytest.raises(BackboneError, match=r"holds no config\.json"):
        locate("./facebook/bart-base")
    (folder / "config.json").write_text("{}")
    assert locate("facebook/bart-base") == str(folder)


@pytest.mark.parametrize("read", [model.describe, loading.load, loading.load_tokenizer])
def test_what_has_a_revision_is_the_hubs(read: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bart").mkdir()
    (tmp_path / "bart" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)

    def fetch(place: str, revision: str, weights: bool) -> tuple[Path, str]:
        raise BackboneError(f"fetched {place} {revision}")

    monkeypatch.setattr(model, "fetch", fetch)
    monkeypatch.setattr(loading, "fetch", fetch)
    with pytest.raises(BackboneError, match=r"^fetched bart 5e10ab34cd$"):
        read("bart", revision="5e10ab34cd")  # type: ignore[operator]


@pytest.mark.parametrize("family", ["bert", "roberta", "bart", "t5", "mbart", "gpt2", "llama", "qwen2"])
def test_a_folder_without_tokenizer_files_is_refused(family: str, tmp_path: Path) -> None:
    """Its configuration alone names a class, whose vocabulary would be its special tokens."""
    CONFIGS[family]().save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="no tokenizer in"):
        loading.load_tokenizer(str(tmp_path))
