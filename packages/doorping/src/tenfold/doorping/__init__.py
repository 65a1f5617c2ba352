"""Doorping: backdoor attacks against dataset distillation, and their defences.

Liu, Li, Backes, Shen, Zhang. Backdoor Attacks Against Dataset Distillation. NDSS 2023, arXiv 2301.01197.
"""
