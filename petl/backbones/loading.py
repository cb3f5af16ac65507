"""Load a backbone's weights and its tokenizer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from petl.backbones.families import family_named
from petl.backbones.locate import CONFIG, BackboneError, fetch, locate
from petl.backbones.model import PEFT_CONFIG, parameters_of, read_config
from petl.backbones.padding import padding
from petl.backbones.quiet import quiet
from petl.backbones.weights import require_weights
from petl.errors import UserNotice, library

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def load(
    model: str,
    *,
    labels: Sequence[str] | None = None,
    generates: bool = False,
    seed: int = 0,
    dtype: str | torch.dtype = "float32",
    revision: str = "",
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> PreTrainedModel:
    """Return the pretrained model in evaluation mode: to classify into `labels`, to generate text, or as it is.

    With `labels` it has a new classification head, whose matrices are drawn from
    N(0, initializer_range) by `seed` alone, its biases zero; the global random state is neither read
    nor changed. A decoder's head reads the last token that is no padding: the padding of `tokenizer`, the one that
    will make its batches, by default that beside the weights, whatever the configuration says.
    One that `generates` has its pretrained output layer. Without either, it is the architecture
    that its configuration names.
    A pooler that the checkpoint of a classifier lacks is drawn, whatever the seed, with a UserNotice.
    Code from a repository is never run, and only safetensors are read. Raises BackboneError where files are missing
    or damaged, and where transformers refuses them.
    """
    import torch

    place = model if revision else locate(model)  # the hub's alone have revisions
    if Path(place).name == CONFIG:
        raise BackboneError(f"{model} is a configuration alone: it can be counted, but has no weights to load")
    folder, _ = fetch(place, revision, weights=True)
    config = read_config(folder, model)
    family = family_named(str(config.model_type))
    require_weights(folder, model)
    if (folder / PEFT_CONFIG).exists():  # transformers would put it on, unpickling it where it is *.bin
        raise BackboneError(f"{model}: an adapter of PEFT lies beside the model, {folder / PEFT_CONFIG}; take it away")
    if labels is not None:
        config.num_labels = len(labels)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    architecture = _class(config, model, classifies=labels is not None, generates=generates)
    refused = library(f"{model}: transformers does not load it", BackboneError)
    with quiet(), torch.random.fork_rng(devices=[]), refused:
        loaded, report = architecture.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # a checkpoint's own head for other labels; the base is checked below
            output_loading_info=True,
        )
    own = parameters_of(loaded)
    pretrained = {f"{own.prefix}.{name}" if own.prefix else name for name in own.base}
    if labels is None:
        pretrained |= own.head.keys()
    lost = pretrained & {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    drawn = sorted(
        name for name in lost if labels is not None and family.in_pooler(name.removeprefix(f"{own.prefix}."))
    )
    if lost := lost.difference(drawn):
        raise BackboneError(f"{model}: the weights lack or misshape {', '.join(sorted(lost))}")
    if drawn:
        _draw({name: loaded.get_parameter(name) for name in drawn}, loaded.config)
        text = f"{model} lacks {', '.join(drawn)}: drawn, the same wherever it is loaded; full fine-tuning trains them"
        warnings.warn(UserNotice(text), stacklevel=2)
    if labels is not None:
        draw_head(loaded, seed)
        if not family.encodes:
            loaded.config.pad_token_id = _padding_beside(folder, config) if tokenizer is None else padding(tokenizer)
    result: PreTrainedModel = loaded.eval()
    return result


def load_tokenizer(model: str, *, revision: str = "") -> PreTrainedTokenizerBase:
    """Return the tokenizer beside the pretrained model's weights; it pads, if need be with its end token.

    Raises BackboneError where there is none.
    """
    folder, _ = fetch(model if revision else locate(model), revision, weights=False)
    tokenizer = _tokenizer_in(folder, model)
    if not set(tokenizer.get_vocab()) - {*tokenizer.all_special_tokens, "\N{LOWER ONE EIGHTH BLOCK}"}:
        raise BackboneError(  # transformers makes one of the special tokens alone, to which every word is unknown
            f"{model}: no tokenizer in {folder}: its vocabulary has no words. Its files, such as tokenizer.json, lie "
            "beside config.json; copy them there, or save them with tokenizer.save_pretrained"
        )
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token_id = padding(tokenizer)
    return tokenizer


def _padding_beside(folder: Path, config: Any) -> int | None:
    """Return the padding of the tokenizer in a model's folder; where none lies there, what the configuration pads with.

    A folder without a tokenizer is asked first: transformers makes an empty one for some families.
    """
    if any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return padding(_tokenizer_in(folder, str(folder)))
    return _first(config.eos_token_id) if config.pad_token_id is None else config.pad_token_id


def _tokenizer_in(folder: Path, model: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    with library(f"{model}: no tokenizer in {folder}", BackboneError):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    return tokenizer


def _class(config: Any, model: str, *, classifies: bool, generates: bool) -> Any:
    import transformers

    if classifies:
        return transformers.AutoModelForSequenceClassification
    if generates and config.is_encoder_decoder:
        return transformers.AutoModelForSeq2SeqLM
    if generates:
        return transformers.AutoModelForCausalLM
    name = (getattr(config, "architectures", None) or ["AutoModel"])[0]
    architecture = getattr(transformers, name, None)
    if architecture is not transformers.AutoModel and not _is_model(architecture):
        raise BackboneError(f"{model}: its configuration names the architecture {name!r}, which transformers lacks")
    return architecture


def _is_model(architecture: Any) -> bool:
    from transformers import PreTrainedModel

    return isinstance(architecture, type) and issubclass(architecture, PreTrainedModel)


def _first(token: int | Sequence[int] | None) -> int | None:
    return token[0] if isinstance(token, Sequence) else token


def draw_head(model: PreTrainedModel, seed: int) -> None:
    """Draw a new task head in place: matrices from N(0, initializer_range) by `seed` alone, biases zero."""
    _draw(parameters_of(model).head, model.config, seed)


def _draw(parameters: Mapping[str, torch.nn.Parameter], config: Any, seed: int = 0) -> None:
    import torch

    generator = torch.Generator().manual_seed(seed)
    deviation = float(getattr(config, "initializer_range", 0.02))
    with torch.no_grad():
        for parameter in parameters.values():
            fresh = torch.zeros(parameter.shape)
            if parameter.dim() > 1:
                fresh.normal_(0.0, deviation, generator=generator)
            parameter.copy_(fresh)
