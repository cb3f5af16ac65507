"""Backbones: which families there are, where their parts lie, what a design costs on them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
