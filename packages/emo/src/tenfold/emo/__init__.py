"""EMO: efficient attention-based mobile models.

Zhang, Li, Li, Xue, Guo, Liu, Zhang, Tai, Wang, Zhang. Rethinking Mobile Block for Efficient Attention-
based Models. ICCV 2023, arXiv 2301.01146.
"""
