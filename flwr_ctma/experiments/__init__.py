"""Many runs of one app: comparisons, sweeps and tournaments.

`app` names an app and `match` runs it once; `sweep` and `tournament` run many, in the
processes of `workers`; `scores` and `intervals` summarise them over seeds. A benchmark
of several apps would be a module beside them: its suite is a list of `Tournament`
plans, and `mean_scores`, `worst_case_interval` and `bootstrap_interval` take their
results as they are.
"""
