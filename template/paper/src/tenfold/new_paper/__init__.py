"""New Paper.

Hinton, Vinyals and Dean, 2015, https://arxiv.org/abs/1503.02531. A large network's softened answers tell a small one
more about each image than its label does; on few images the small one therefore learns more from them.
"""

from tenfold.new_paper.checkpoints import load_network
from tenfold.new_paper.data import ImageSet, draw_images, load_digits_split
from tenfold.new_paper.evaluation import accuracy, predict
from tenfold.new_paper.losses import distillation_loss
from tenfold.new_paper.model import DigitClassifier

__all__ = [
    "DigitClassifier",
    "ImageSet",
    "accuracy",
    "distillation_loss",
    "draw_images",
    "load_digits_split",
    "load_network",
    "predict",
]
