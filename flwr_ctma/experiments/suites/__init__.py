"""Suites of the benchmark that the package ships, and the results of one of them."""
