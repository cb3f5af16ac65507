"""Backbones: which families there are, where their parts lie, what a design costs on them.

families    one row a family: the paths of its stacks, attentions, linears, input
locate      where a pretrained model's files are
model       `Backbone`, described from its configuration, without weights
loading     its weights and its tokenizer
padding     what a batch is padded with
weights     whether the files of weights are whole
layout      its stacks, and the linears in them that a design may change
plan        the deltas of a design on a model
count       exact numbers of parameters
pooling     a linear head on pooled hidden states
generation  the text that a model generates
quiet       transformers without its progress bar and its reports
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
