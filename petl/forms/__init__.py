"""The functional forms of a change of the hidden states, one a file; none of them needs torch to be imported.

    vocabulary  sites, insertions, compositions ...; `Settings` of one Δh, `Delta`: one Δh at one place
    exchange    what a form needs to write and read adapters of Hugging Face PEFT
    peft_fields  fields of PEFT's configurations, and what they may be
    virtual     the rows of prompts and prefixes in such adapters
    patterns    patterns of paths in such adapters' configurations
    form        `FunctionalForm`: what a form consists of
    table       `Form` and `FORMS`: all of them by name
    modules     the torch modules that forms share; the files below import it inside functions

    bottleneck  low_rank  prefix  multi_head  rescale  bias  prompt  full

A new form is a file, its two rows in `table`, and its row in `tests/helpers/designs.py`, by which the contract tests
train, count, save, load and merge it on every kind of model. It can then be named in text, as
`low_rank:site=key,size=4`.
"""
