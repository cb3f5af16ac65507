"""Adapters on disk: ours, and those of Hugging Face PEFT.

storage      adapter directories: save, load
predict      `AdaptedModel`: text in, labels or text out
peft         to and from PEFT
peft_target  the model that a PEFT adapter is for
"""
