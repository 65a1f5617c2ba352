"""TinyMIM: distilling masked-image-modelling teachers into tiny vision transformers.

Ren, Wei, Zhang, Hu. TinyMIM: An Empirical Study of Distilling MIM Pre-trained Models. CVPR 2023, arXiv
2301.01296.
"""
