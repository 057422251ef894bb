"""Many runs of an app: comparisons, sweeps and tournaments, and the code that runs them."""
