"""What the Tenfold packages share: logging, run records, comparison, seeding, accelerator set-up.

Nothing here knows any paper. See :mod:`tenfold.shared.runs` for the record a run leaves behind.
"""
