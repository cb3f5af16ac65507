"""Attach a design to a loaded backbone, and detach it again.

attachment   `attach`, and the `Attachment` that it returns
build        the modules of a design, with their first values
hook_points  where each change enters the network
hooks        the hooks by which it does
attention    changes inside the attention: prefixes, multi-head adapters
prompts      rows in front of the input
merge        what is linear, folded into the weights
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
