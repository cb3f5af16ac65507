"""Search spaces: functions (trial, backbone) -> Configuration.

space       a space by its name; points to and from coordinates
shipped     what each space of ours consists of
dimensions  what may be suggested, as data
absent      which coordinates mean that a part is absent
unified  lora  adapter  prefix   the spaces
studies/    studies as YAML, the paper's tables among them
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
