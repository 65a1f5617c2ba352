"""PMT-IQA: blind image quality assessment by progressive multi-task learning.

Pan, Guo, Qingge, Zhang, Yang. PMT-IQA: Progressive Multi-task Learning for Blind Image Quality
Assessment. PRICAI 2023, arXiv 2301.01182.
"""
