"""Many runs of an app: comparisons, sweeps and tournaments."""
