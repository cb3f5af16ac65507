from .loading import load, load_tokenizer
from .locate import BackboneError
from .model import Backbone, describe

__all__ = ["Backbone", "BackboneError", "describe", "load", "load_tokenizer"]
