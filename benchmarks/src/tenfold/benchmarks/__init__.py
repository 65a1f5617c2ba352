"""Dashboards, comparisons and speed suites over the run records of the Tenfold packages."""
