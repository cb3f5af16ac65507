"""What people read of a study: in Python, on the terminal, as files and as a picture.

query      Study, Trial and ParetoFront, read from MLflow
selection  rows that an expression selects
console    a line, a table and the words that the others print with
tables     a study, its front and a trial on the terminal
lists      a study of listed designs as a table, beside what the paper prints
live       what is shown while a study runs
plot       the picture of a front; labels places the names of its members
files      front.json, front.csv, front.png
commands   the commands that read: ls, show, front, query, export, replay ...
choices    what commands share, and the forms in which they write; schemas.json describes their JSON
counts     the parameters of a design as a table
replays    settings compared by replaying a finished study
"""
