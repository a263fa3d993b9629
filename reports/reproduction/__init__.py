"""Claims in, verdicts out: what a paper printed, against what records say.

:mod:`~reports.reproduction.claims` reads claim files, :mod:`~reports.reproduction.evidence` picks the records a
claim may rest on, :mod:`~reports.reproduction.measuring` turns them into an effect with its interval,
:mod:`~reports.reproduction.judging` gives the verdict, :mod:`~reports.reproduction.report` prints it.
"""
