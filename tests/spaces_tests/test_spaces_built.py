"""Points of every space can be built, and are counted before training as what is then built.

POINTS of them a family, drawn at random.
"""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
import tiny
from scope import sampled

from petl.attach.attachment import attach
from petl.backbones.count import count
from spaces.space import SPACES, resolve

POINTS = len(sampled("points of a space, a family", range(400), lambda number: number < 160))  # over all spaces


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_random_points_are_built_as_counted(family: str, tmp_path: Path) -> None:
    backbone, model = tiny.backbone(family, tmp_path), tiny.model(family)
    sampler = optuna.samplers.RandomSampler(seed=0)
    designs = set()
    for name in SPACES:
        space, study = resolve(name), optuna.create_study(sampler=sampler)
        for _ in range(POINTS // len(SPACES)):
            design = space(study.ask(), backbone).design
            designs.add(design)
            counts = count(design, backbone, len(tiny.LABELS))
            with attach(model, design) as attachment:
                stored = sum(tensor.numel() for tensor in attachment.state_dict().values())
                trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            assert (counts.stored, counts.trained) == (stored, trained), design
    assert len(designs) > POINTS / 2
