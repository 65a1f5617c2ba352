"""CoCa: general continual learning by complementary calibration.

Ji, Li, Wang, Zhang. Complementary Calibration: Boosting General Continual Learning with Collaborative
Distillation and Self-Supervision. IEEE TIP 2023, arXiv 2109.02426.
"""
