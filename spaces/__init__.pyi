from .space import decode, encode, resolve

__all__ = ["decode", "encode", "resolve"]
