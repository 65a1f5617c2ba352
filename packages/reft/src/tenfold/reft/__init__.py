"""RefT: reference twice, few-shot instance segmentation.

Han, Zhang, Xue, Xu, Shen, Wang, Wang, Liu, Li. Reference Twice: A Simple and Unified Baseline for Few-
Shot Instance Segmentation. TPAMI 2024, arXiv 2301.01156.
"""
