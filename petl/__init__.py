"""Parameter-efficient designs, and how they are attached to a frozen transformer.

From the ground up; what imports torch does so from `backbones` on, inside functions there:

    forms           the functional forms of a change, one a file, and the words for it
    design          Modification, Design: what a method is
    parts, presets  the parts by the paper's conventions; named designs, and their text form
    head            Head: what a classifier's head reads, and how it starts
    configuration   Training, Configuration: what one trial trains
    measurements    what one training produced
    tasks           what is trained on
    untrusted, hashing  reading what others may have written; the hash of a file
    errors          what is the user's to mend, and all faults of a file as text
    backbones       which models there are, where their parts lie, what a design costs on them
    attach          put a design on a model, take it off, merge it
    data            a task as tokenised rows, and its batches
    training        train and evaluate
    adapters        adapters on disk: ours, and those of Hugging Face PEFT
    paper           what He et al. (ICLR 2022) print
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
