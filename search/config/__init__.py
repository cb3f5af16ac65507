"""The study file: sections, rules across them, loading."""
