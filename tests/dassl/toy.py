"""A data set of coloured squares, written as PNG files, and small trainers for it."""

from __future__ import annotations

import os

import torch.nn.functional as F
from PIL import Image
from torch import nn

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY, TrainerX, TrainerXU
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer

SIDE = 8
COLOURS = ((200, 30, 30), (30, 200, 30), (30, 30, 200))


def write_images(root: str, per_class: int) -> list[Datum]:
    """Write ``per_class`` images of each of three colours; the red ones are domain 0."""
    items = []
    for label, colour in enumerate(COLOURS):
        for index in range(per_class):
            path = os.path.join(root, f"{label}_{index}.png")
            if not os.path.exists(path):
                shade = tuple(max(0, c - 7 * index) for c in colour)
                Image.new("RGB", (SIDE + 4, SIDE + 2), shade).save(path)
            items.append(Datum(path, label, index % 2, f"colour_{label}"))
    return items


@DATASET_REGISTRY.register()
class ToyColours(DatasetBase):
    """Twelve training images (also without labels), three validation and six test images."""

    domains = ("even", "odd")

    def __init__(self, cfg):
        os.makedirs(cfg.DATASET.ROOT, exist_ok=True)
        items = write_images(cfg.DATASET.ROOT, 7)
        train = [item for i, item in enumerate(items) if i % 7 < 4]
        val = [item for i, item in enumerate(items) if i % 7 == 4]
        test = [item for i, item in enumerate(items) if i % 7 > 4]
        train = self.generate_fewshot_dataset(train, num_shots=cfg.DATASET.NUM_SHOTS)
        super().__init__(train_x=train, train_u=train, val=val, test=test)


@TRAINER_REGISTRY.register()
class ToyTrainer(TrainerX):
    """Linear classifier on pixels."""

    def build_model(self):
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, self.num_classes))
        self.model.to(self.device)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("linear", self.model, self.optim, self.sched)

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        output = self.model(image)
        loss = F.cross_entropy(output, label)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)


@TRAINER_REGISTRY.register()
class ToyTrainerXU(TrainerXU):
    """The same with an entropy term on unlabelled images."""

    build_model = ToyTrainer.build_model

    def forward_backward(self, batch_x, batch_u):
        image, label, unlabelled = self.parse_batch_train(batch_x, batch_u)
        prob = F.softmax(self.model(unlabelled), dim=1)
        entropy = -(prob * prob.clamp_min(1e-8).log()).sum(1).mean()
        loss = F.cross_entropy(self.model(image), label) + 0.1 * entropy
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}
