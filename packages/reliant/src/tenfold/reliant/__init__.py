"""RELIANT: fair knowledge distillation for graph neural networks.

Dong, Zhang, Yuan, Zou, Wang, Li. RELIANT: Fair Knowledge Distillation for Graph Neural Networks. SDM
2023, arXiv 2301.01150.
"""
