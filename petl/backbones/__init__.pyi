from .locate import BackboneError
from .model import Backbone, describe, load, load_tokenizer

__all__ = ["Backbone", "BackboneError", "describe", "load", "load_tokenizer"]
