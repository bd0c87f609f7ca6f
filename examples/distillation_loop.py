"""Distillation in a loop of your own: `Distiller` is a module like any other, and `build_terms` makes its losses.

python examples/distillation_loop.py DATA TEACHER runs/student
"""

import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader

import leandetr
from leandetr import Distiller, build_terms
from leandetr.data.batches import collate
from leandetr.data.coco import CocoDataset, find_split
from leandetr.data.transforms import train_transform


def main(data: str, teacher: str, out: str, epochs: int = 30) -> list[float]:
    torch.manual_seed(0)
    teacher = leandetr.load(teacher)
    small = {"d_model": 64, "decoder_layers": 2}
    student = leandetr.create("rt_detr_v2", teacher.class_map, (96, 96), "resnet18", None, small).train()
    images = CocoDataset(find_split(data, "train"), train_transform(student.preprocessing, "ssd"), student.class_map)
    distiller = Distiller(student, teacher, build_terms("logits,fitnet", student, teacher)).train()
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=1e-4)  # the student's, and the adapters' of the terms
    losses = []
    for epoch in range(epochs):
        images.set_epoch(epoch)  # the augmentation of an image follows from it
        for batch in DataLoader(images, batch_size=4, shuffle=True, collate_fn=collate):
            output = distiller(**batch)
            optimizer.zero_grad()
            output.loss.backward()
            torch.nn.utils.clip_grad_norm_(distiller.parameters(), 0.1)
            optimizer.step()
            losses.append(output.loss.item())
        print(epoch, {name: round(value.item(), 3) for name, value in output.logs.items() if name.startswith("share/")})
    student.eval().save(Path(out))
    return losses


if __name__ == "__main__":
    main(*sys.argv[1:])
