"""What people read of a study: in Python, on the terminal, as files and as a picture.

query      Study, Trial and ParetoFront, read from MLflow
selection  rows that an expression selects
console    a line, a table and the words that the others print with
tables     a study, its front and a trial on the terminal
lists      a study of listed designs as a table, beside what the paper prints
live       what is shown while a study runs
plot       the picture of a front; labels places the names of its members
files      front.json, front.csv, front.png, report.html
report     a study, or several, as a page for a browser, and the JSON that it shows
choices    the forms in which commands write all this; schemas.json describes their JSON
counts     the parameters of a design as a table
replays    settings compared by replaying a finished study
"""
