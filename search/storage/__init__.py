"""Where the truth lies, on disks and servers. Decides nothing about the search.

errors     what stores raise, and how a full disk and a damaged database are recognised
address    which forms an address may have; addresses without passwords, and texts without them
commands   the commands that are printed
locations  StudyHome: every place of a study; the command that resumes it
remote     RemoteStore: a study's trials in an object store, or in another folder
database   PostgreSQL behind the records: options, outages, repetitions
tables     the tables that an sqlite database has to have
locks      one driver a study, and no workers of an earlier one
folder     TrialFolder: the files of a trial, and when they are valid
starts     what the heads of a study start from
listing    the files of all trials, listed once
studies    the studies of a database: created, opened, listed, deleted
quota      the limit on a study's bytes: usage, estimates, eviction
"""
