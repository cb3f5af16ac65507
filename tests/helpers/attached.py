"""What tests do with an attached design: move its tensors, run the model, look at all that attaching may touch."""

from __future__ import annotations

import tiny
import torch
from torch import Tensor
from transformers import PreTrainedModel

from petl.attach.attachment import Attachment


def logits(model: PreTrainedModel) -> Tensor:
    """Of the tiny batch."""
    result: Tensor = model(**tiny.batch()).logits
    return result


def randomise(attachment: Attachment, seed: int = 1, by: float = 0.1) -> None:
    """Add noise of that deviation to all that trains."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in attachment.named_parameters():
            noise = torch.empty(parameter.shape).normal_(0.0, by, generator=generator)
            parameter.add_(noise.to(parameter.dtype))


def look(model: PreTrainedModel) -> dict[str, object]:
    """All that attaching may touch."""
    return {
        "parameters": {name: (id(p), p.requires_grad, p._version) for name, p in model.named_parameters()},
        "modules": [name for name, _ in model.named_modules()],
        "hooks": {
            name: (len(module._forward_hooks), len(module._forward_pre_hooks)) for name, module in model.named_modules()
        },
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "attention": model.config._attn_implementation,
    }
