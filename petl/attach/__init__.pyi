from .attachment import Attachment, attach

__all__ = ["Attachment", "attach"]
