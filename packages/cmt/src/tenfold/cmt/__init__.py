"""CMT: cross-modal transformer for 3-D object detection.

Yan, Liu, Sun, Jia, Li, Wang, Zhang. Cross Modal Transformer: Towards Fast and Robust 3D Object
Detection. ICCV 2023, arXiv 2301.01283.
"""
