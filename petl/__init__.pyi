from .adapters.peft import to_peft
from .adapters.storage import load_model, save
from .attach.attachment import Attachment
from .backbones.count import count
from .backbones.loading import load
from .backbones.model import describe
from .design import Design, Modification
from .presets import parse

__all__ = [
    "Attachment",
    "Design",
    "Modification",
    "count",
    "describe",
    "load",
    "load_model",
    "parse",
    "save",
    "to_peft",
]
