"""The spaces: every point is a design that can be built, and every named method is a point."""

from __future__ import annotations

import math
import sys
import types
from collections import Counter
from typing import Any

import optuna
import pytest
import tiny
from optuna.trial import FixedTrial
from transformers import BartConfig, BertConfig, LlamaConfig

from petl.backbones.model import Backbone
from petl.configuration import Configuration, Training
from petl.design import Composition, Design, Form, Init, Insertion, LayerNorm, Modification, Site
from petl.presets import parse
from spaces.dimensions import BrokenSpaceError, SpaceError
from spaces.space import SPACES, decode, encode, point, resolve
from spaces.unified import METHODS

TRAINING = Training(epochs=2.5, batch_size=16)
DENSE = {"parts": None}  # every size has one coordinate


BERT = tiny.described(BertConfig(num_hidden_layers=6, hidden_size=384, intermediate_size=1536, num_attention_heads=12))
LLAMA = tiny.described(LlamaConfig(num_hidden_layers=12, hidden_size=64, intermediate_size=128))
BART = tiny.described(BartConfig(encoder_layers=6, decoder_layers=6, d_model=64))


def random_points(name: str, backbone: Backbone, count: int, **options: Any) -> list[Any]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    space = resolve(name, options, TRAINING, seed=7)
    points = []
    for _ in range(count):
        trial = study.ask()
        points.append(point(trial, space(trial, backbone)))
    return points


def at(
    name: str, backbone: Backbone = BERT, options: dict[str, Any] | None = None, **coordinates: Any
) -> Configuration:
    """The configuration at coordinates given with __ for a dot; the others are at their first value."""
    named = {key.replace("__", "."): value for key, value in coordinates.items()}
    dimensions = SPACES[name].dimensions(backbone, **(options or {}))
    first = {key: dimension.coordinate(dimension.first) for key, dimension in dimensions.items()}
    return decode(resolve(name, options, TRAINING), first | named, backbone).configuration


@pytest.mark.parametrize("backbone", [BERT, BART, LLAMA])
def test_a_thousand_points_of_unified_are_designs(backbone: Backbone) -> None:
    points = random_points("unified", backbone, 1_000, **DENSE)
    assert len({tuple(found.coordinates) for found in points}) == 1  # fixed dimensions
    forms: Counter[str] = Counter()
    for found in points:
        design = found.configuration.design
        assert design == Design.from_dict(design.to_dict()) == design.canonical(backbone.layout)
        assert found.configuration.seed == 7
        for part in design.modifications:
            assert 1 <= len(part.layers_of(backbone.depth)) <= backbone.depth
            forms[part.form] += 1
    # a size is absent at 1 of 10 points, a length at 1 of 8, biases and rescaling at half; 5 standard deviations
    for form, parts, share in (
        (Form.PREFIX, 1, 7 / 8),
        (Form.BOTTLENECK, 2, 9 / 10),
        (Form.LOW_RANK, 4, 9 / 10),
        (Form.MULTI_HEAD, 1, 9 / 10),
        (Form.RESCALE, 3, 1 / 2),
        (Form.BIAS, 1, backbone.has_biases / 2),
    ):
        assert abs(forms[form] / parts / 1_000 - share) <= 5 * math.sqrt(share * (1 - share) / 1_000), form


@pytest.mark.parametrize("parts", [1, 2, 3.5])
@pytest.mark.parametrize("backbone", [BERT, LLAMA])
def test_a_random_point_has_few_parts(backbone: Backbone, parts: float) -> None:
    """As many as asked for on average, each method as often as any other, each size of a method too."""
    points = random_points("unified", backbone, 1_000, parts=parts)
    sizes = {"prefix.length", "multi_head.size", "attention.size", "ffn.size", "low_rank.attention", "low_rank.ffn"}
    names = sizes | {"rescale", "bias"} if backbone.has_biases else sizes | {"rescale"}
    share = parts / len(names)
    present = Counter(name for found in points for name in names if found.params[name])
    for name in names:  # the coordinates for 0 are whole numbers: a few percent beside 5 standard deviations
        assert abs(present[name] / 1_000 - share) <= 5 * math.sqrt(share * (1 - share) / 1_000) + 0.06, name
    found_sizes = Counter(found.params["ffn.size"] for found in points if found.params["ffn.size"])
    assert set(found_sizes) == {1, 2, 4, 8, 16, 32, 64, 128, 256}
    assert max(found_sizes.values()) < 4 * min(found_sizes.values())


def test_parts_are_a_positive_number() -> None:
    for parts in (0, -1, math.inf, "2", True):
        with pytest.raises(SpaceError, match="parts is a positive number, or null"):
            SPACES["unified"].dimensions(BERT, parts=parts)
    dense = SPACES["unified"].dimensions(BERT, parts=None)
    assert SPACES["unified"].dimensions(BERT, parts=100) == dense  # 0 keeps the one coordinate that it has
    assert SPACES["unified"].dimensions(BERT, methods=["ffn"])["ffn.size"] == dense["ffn.size"]


@pytest.mark.parametrize("name", SPACES)
def test_every_point_decodes_to_itself(name: str) -> None:
    space = resolve(name, {}, TRAINING, seed=7)
    for found in random_points(name, BERT, 50):
        assert decode(space, found.coordinates, BERT) == found
        coordinates = encode(name, found.configuration.design, found.configuration.training.learning_rate, BERT)
        assert coordinates is not None
        assert decode(space, coordinates, BERT).configuration == found.configuration


@pytest.mark.parametrize("name", SPACES)
def test_all_absent_is_head_only(name: str) -> None:
    assert at(name).design == parse("head_only")


@pytest.mark.parametrize("name", SPACES)
def test_the_learning_rate_is_searched_and_the_rest_of_training_fixed(name: str) -> None:
    configuration = at(name, learning_rate=3e-3)
    assert configuration.training == Training(epochs=2.5, batch_size=16, learning_rate=3e-3)
    rates = [found.configuration.training.learning_rate for found in random_points(name, BERT, 400)]
    assert 1e-4 <= min(rates) < 1.3e-4
    assert 0.8e-2 < max(rates) <= 1e-2
    assert abs(sum(rate < 1e-3 for rate in rates) / 400 - 0.5) < 0.125  # uniform in the logarithm


@pytest.mark.parametrize(
    "text",
    [
        "lora:rank=8,scale=2",
        "lora:rank=16,where=ffn,scale=4",
        "lora:rank=4,where=both,scale=1",
        "houlsby:size=64",
        "sequential:size=32",
        "parallel:size=128",
        "parallel:size=16,where=attention",
        "parallel:size=16,where=both",
        "scaled_parallel:size=128,scale=4",
        "prefix:length=16",
        "mam:length=16,size=64,scale=4",
        "prefix_lora:length=32,rank=4,scale=2",
        "head_only",
        "pfeiffer:size=64",
        "multihead_parallel:size=8",
        "ia3",
        "ia3 + prefix:length=8 + multihead_parallel:size=1,layers=all",
        "mam:length=1,size=1,scale=2 + lora:rank=1,scale=4",
    ],
)
@pytest.mark.parametrize("backbone", [BERT, BART, LLAMA])
def test_named_methods_are_points_of_unified(text: str, backbone: Backbone) -> None:
    coordinates = encode("unified", parse(text), 5e-4, backbone)
    assert coordinates is not None
    found = decode(resolve("unified", {}, TRAINING), coordinates, backbone)
    assert found.configuration.design == parse(text)
    assert found.configuration.training.learning_rate == 5e-4


@pytest.mark.parametrize("text", ["bitfit", "prefix:length=8 + bitfit", "prompt:length=4 + bitfit"])
def test_biases_and_prompts_are_points_where_they_are_offered(text: str) -> None:
    options = {"methods": ["prefix", "prompt", "bias"]}
    coordinates = encode("unified", parse(text), 5e-4, BERT, options)
    assert coordinates is not None
    assert decode(resolve("unified", options, TRAINING), coordinates, BERT).configuration.design == parse(text)
    assert encode("unified", parse(text), 5e-4, LLAMA) is None


@pytest.mark.parametrize(
    "text", ["houlsby:size=65", "lora:scale=3", "full", "prompt:length=4", "multihead_parallel:size=65"]
)
def test_what_the_space_does_not_hold_has_no_coordinates(text: str) -> None:
    assert encode("unified", parse(text), 5e-4, BERT) is None


def test_near_misses_have_no_coordinates() -> None:
    """Designs of the space's own forms whose other fields differ from its conventions."""
    for part in (
        Modification(form="prefix", site="heads", size=8),  # not gated
        Modification(form="bottleneck", site="ffn", size=8, init="lora"),
        Modification(form="low_rank", site="query", size=8),  # without the value
        Modification(form="low_rank", site="key", size=8),
        Modification(form="prefix", site="heads", size=8, composition="gate", layers="0,2"),
    ):
        assert encode("unified", Design((part,)), 5e-4, BERT) is None
    assert encode("unified", parse("bitfit"), 1.0, BERT) is None  # outside the learning rates
    limited = {"methods": ["prefix"]}
    assert encode("unified", parse("bitfit"), 5e-4, BERT, limited) is None
    assert encode("my.module:space", parse("bitfit"), 5e-4, BERT) is None


def test_layers_of_an_encoded_design_are_its_first_layer() -> None:
    part = Modification(form="prefix", site="heads", size=8, composition="gate", layers="4,5")
    coordinates = encode("unified", Design((part,)), 5e-4, BERT)
    assert coordinates is not None
    assert coordinates["first_layer"] == 4


def test_conventions_of_the_papers_code() -> None:
    both = at("unified", BERT, DENSE, attention__size=3, ffn__size=3, ffn__scale=0).design
    assert set(both.modifications) == {
        Modification(form="bottleneck", site="attention", insertion="sequential", size=4, layer_norm="in", init="bert"),
        Modification(form="bottleneck", site="ffn", insertion="sequential", size=4, init="bert"),
    }
    (scaled,) = at("unified", BERT, DENSE, ffn__size=3, ffn__scale=2, ffn__insertion="parallel").design.modifications
    assert (scaled.scale, scaled.init, scaled.composition) == (4.0, Init.LORA, Composition.SCALE)
    assert (scaled.insertion, scaled.layer_norm) == (Insertion.PARALLEL, LayerNorm.NONE)
    (prefix,) = at("unified", BERT, DENSE, prefix__length=3, first_layer=4).design.modifications
    assert (prefix.composition, prefix.size, prefix.layers) == (Composition.GATE, 4, "top 2")
    ranks = at("unified", BERT, DENSE, low_rank__attention=1, low_rank__ffn=2, low_rank__scale=1).design.modifications
    assert {(part.site, part.size, part.scale) for part in ranks} == {
        (Site.QUERY, 1, 2.0),
        (Site.VALUE, 1, 2.0),
        (Site.FFN_UP, 2, 2.0),
        (Site.FFN_DOWN, 2, 2.0),
    }


@pytest.mark.parametrize(
    ("name", "meaningless"),
    [
        ("unified", {"attention.insertion": "parallel"}),
        ("unified", {"ffn.insertion": "parallel"}),
        ("unified", {"ffn.scale": 2}),
        ("unified", {"low_rank.scale": 1}),
        ("unified", {"first_layer": 3}),
        ("lora", {"scale": 2}),
        ("lora", {"first_layer": 3}),
        ("adapter", {"ffn.layer_norm": "out"}),
        ("adapter", {"attention.insertion": "parallel"}),
        ("adapter", {"ffn.scale": 1}),
        ("adapter", {"init": "bert"}),
        ("adapter", {"init": "lora"}),
        ("prefix", {"first_layer": 5}),
    ],
)
def test_coordinates_that_mean_nothing_leave_the_key(name: str, meaningless: dict[str, Any]) -> None:
    assert at(name, **meaningless).key == at(name).key


def test_first_layer_does_not_limit_the_biases() -> None:
    assert at("unified", BERT, DENSE, bias=1, first_layer=3).key == at("unified", BERT, DENSE, bias=1).key
    both = {"bias": 1, "prefix__length": 1}
    assert at("unified", BERT, DENSE, **both, first_layer=3).key != at("unified", BERT, DENSE, **both).key


def test_lora_has_a_rank_for_every_linear() -> None:
    ranks = {f"{site}__size": index for index, site in enumerate(BERT.linears)}
    design = at("lora", scale=1, first_layer=1, **ranks).design
    assert {part.site: part.size for part in design.modifications} == {
        Site.KEY: 1,
        Site.VALUE: 2,
        Site.ATTENTION_OUT: 4,
        Site.FFN_UP: 8,
        Site.FFN_DOWN: 16,
    }
    assert {(part.scale, part.layers) for part in design.modifications} == {(2.0, "top 5")}


def test_adapter_searches_norm_and_start() -> None:
    (part,) = at("adapter", ffn__size=5, ffn__layer_norm="out", ffn__scale=1, init="lora").design.modifications
    assert (part.size, part.layer_norm, part.scale, part.init) == (16, LayerNorm.OUT, 2.0, Init.LORA)


def test_params_show_sizes_and_coordinates_indices() -> None:
    found = decode(
        resolve("prefix", {"lengths": [10, 30], "first_layers": [3, 4]}, TRAINING),
        {"length": 2, "first_layer": 1, "learning_rate": 1e-3},
        BERT,
    )
    assert found.params == {"length": 30, "first_layer": 4, "learning_rate": 1e-3}
    assert found.coordinates == {"length": 2, "first_layer": 1, "learning_rate": 1e-3}


@pytest.mark.parametrize("methods", [[method] for method in METHODS] + [["ffn", "bias"]])
def test_methods_that_are_off_have_no_dimensions(methods: list[str]) -> None:
    names = set(SPACES["unified"].dimensions(BERT, methods=methods))
    own = {name for name in names if any(name == m or name.startswith((f"{m}.", m.split(".")[0])) for m in methods)}
    layered = {"first_layer"} if set(methods) - {"bias", "prompt"} else set()
    assert names == own | layered | {"learning_rate"}
    assert own


def test_limits_of_sizes() -> None:
    rows = SPACES["unified"].dimensions(BERT, sizes=[64, 8], lengths=[16, 4, 200], max_size=64, scales=[4], parts=None)
    assert rows["ffn.size"].values == (0, 8, 64)
    assert rows["prefix.length"].values == (0, 4, 16)
    assert rows["ffn.scale"].values == (4.0,)
    assert rows["first_layer"].values == (0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["prefx"]}, r"methods lists some of prefix, .* received 'prefx'"),
        ({"methods": []}, "received none"),
        ({"methods": "ffn"}, "methods is a list; received 'ffn'"),
        ({"sizes": [8, -1]}, "integers of at least 0; received -1"),
        ({"sizes": [8, 2.5]}, "integers of at least 0; received 2.5"),
        ({"sizes": [0]}, r"at least one size above 0; received \[0\]"),
        ({"sizes": [128], "max_size": 64}, r"above 0 up to max_size 64; received \[128\]"),
        ({"max_size": 0}, "max_size is at least 1; received 0"),
        ({"scales": [0.0]}, r"positive numbers; received \[0.0\]"),
        ({"first_layers": [6]}, r"layers from 0 to 5; received \[6\]"),
        ({"first_layers": []}, r"layers from 0 to 5; received \[\]"),
        ({"learning_rate": [1e-3]}, r"\[low, high\] with 0 < low <= high; received \[0.001\]"),
        ({"learning_rate": [1e-2, 1e-3]}, "low <= high"),
    ],
)
def test_limits_that_leave_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        SPACES["unified"].dimensions(BERT, **options)


@pytest.mark.parametrize("name", SPACES)
def test_unknown_options_are_refused_with_the_list(name: str) -> None:
    with pytest.raises(SpaceError, match=rf"space {name} takes the options .*learning_rate.*; received size"):
        resolve(name, {"size": [4]})


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("own_spaces")
    monkeypatch.setitem(sys.modules, "own_spaces", module)
    return module


def test_a_space_of_the_users_own(own: types.ModuleType) -> None:
    def space(trial: Any, backbone: Any, *, training: Training, most: int = 4) -> Configuration:
        length = trial.suggest_int("length", 1, most)
        layers = f"top {backbone.depth}"
        part = Modification(form="prefix", site="heads", size=length, composition="gate", layers=layers)
        return Configuration(Design((part,)), training)

    own.space = space  # type: ignore[attr-defined]
    bound = resolve("own_spaces:space", {"most": 9}, TRAINING, seed=3)
    found = decode(bound, {"length": 9}, BERT)
    # "top 6" of 6 layers is spelt "all", so that twins are recognised
    assert found.configuration == Configuration(parse("prefix:length=9"), TRAINING, 3)
    with pytest.raises(SpaceError, match="takes the options most; received least"):
        resolve("own_spaces:space", {"least": 1}, TRAINING)


def test_a_space_that_does_not_take_training_gets_none(own: types.ModuleType) -> None:
    own.space = lambda trial, backbone: Configuration(Design())  # type: ignore[attr-defined]
    assert resolve("own_spaces:space", {}, TRAINING)(FixedTrial({}), BERT).training == Training()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unify", "one of unified, lora, adapter, prefix, or package.module:function; received 'unify'"),
        ("own_spaces:", "received 'own_spaces:'"),
        ("no_such_package.spaces:f", "cannot be imported: ModuleNotFoundError"),
        ("own_spaces:absent", "cannot be imported: AttributeError"),
        ("own_spaces:number", "is a function .* it is 3"),
    ],
)
def test_spaces_that_cannot_be_had(own: types.ModuleType, name: str, message: str) -> None:
    own.number = 3  # type: ignore[attr-defined]
    with pytest.raises(SpaceError, match=message):
        resolve(name)


def test_a_space_that_returns_something_else_is_named(own: types.ModuleType) -> None:
    own.space = lambda trial, backbone: {"ffn": 4}  # type: ignore[attr-defined]
    with pytest.raises(BrokenSpaceError, match="own_spaces:space returns a petl Configuration; it returned"):
        resolve("own_spaces:space")(FixedTrial({}), BERT)


@pytest.mark.parametrize(
    ("coordinates", "message"),
    [({"length": 1, "first_layer": 0}, "learning_rate"), ({"length": 99, "first_layer": 0}, "99")],
)
def test_coordinates_outside_the_space_are_refused(coordinates: dict[str, Any], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        decode(resolve("prefix"), coordinates, BERT)
