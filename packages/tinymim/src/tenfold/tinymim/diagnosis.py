"""How a student's relations differ from its teacher's, head by head, and pictures of both."""

from __future__ import annotations

import torch

from tenfold.shared.runs import Run
from tenfold.tinymim.figures import draw_head_divergences, draw_relations
from tenfold.tinymim.image_sets import judging_batches
from tenfold.tinymim.relations import head_divergences, relation
from tenfold.tinymim.teacher_files import AnyTeacher
from tenfold.tinymim.training import Images
from tenfold.tinymim.vit import QKV, VisionTransformer


@torch.inference_mode()
def compare_relations(
    run: Run, student: VisionTransformer, teacher: AnyTeacher, images: Images, draws: bool
) -> dict[str, float]:
    """How far the student's relations are from the teacher's on test images, whatever it was trained to imitate."""
    assert images.split is not None
    if student.config.embed_dim % teacher.heads:
        return {}  # it can't be read with the teacher's heads
    pixels, _ = next(iter(judging_batches(images.split.test, images.config.image_size, 64)))
    was_training = student.training
    student.eval()
    wanted, found = teacher.read(pixels, {"qkv"}).qkv, student.target_qkv(pixels, teacher.heads)
    student.train(was_training)
    assert wanted is not None
    if not teacher.has_cls:
        found = QKV(*(values[:, :, 1:] for values in found))
    each = {pair: head_divergences(found, wanted, pair) for pair in ("qk", "vv")}
    if draws:
        with run.figure("heads.png", "Divergence from the teacher's relations, head by head") as path:
            draw_head_divergences({pair.upper(): values.tolist() for pair, values in each.items()}, path)
        with run.figure("relations.png", "Relations of one test image: teacher above, student below") as path:
            maps = {
                "Q-K": (relation(wanted.q[0], wanted.k[0]), relation(found.q[0], found.k[0])),
                "V-V": (relation(wanted.v[0], wanted.v[0]), relation(found.v[0], found.v[0])),
            }
            draw_relations(images.split.test.pixels(torch.tensor([0]))[0], maps, path)
    return {f"kl_{pair}": float(values.mean()) for pair, values in each.items()}
