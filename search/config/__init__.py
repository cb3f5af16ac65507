"""The study file.

text        YAML 1.2
sections    one class a section: fields, defaults, the rules within it
references  what is trained beside the front, and its settings
fields      StudyFields: the sections together
rules       the rules between sections, a table
study       StudyConfig: the fields, checked as a whole, and what follows from them
loading     a file, overrides and what is stored, with every fault at once
resuming    what a resume may change, a table
"""
