"""A study, or several side by side, as one page that needs no network, and as the JSON that the page shows.

data       the document: what the page shows, and `petl-search report NAME --format json` prints
words      the sentences in it: answers, what is luck, what to run next
growth     how the front grew with what was spent
space      the dimensions of the space, and which of them matter
numbers    a trial's curve, and digits
page       the page: a document, the template, the script and the library in one file
watch      the page written again and again while a study runs
"""
