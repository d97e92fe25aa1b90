"""A plugin of gkd: importing it registers a method, a network and two augmentations (docs/plugins.md)."""

from typing import Annotated

import torch
from pydantic import Field, PositiveFloat
from torch import nn
from torch.nn.functional import cosine_similarity
from torchvision.transforms import v2

import gkd_core as gkd


@gkd.register_method("cosine-embedding", source="Hou et al. 2022, arXiv:2205.10803", reads="embeddings")
class CosineEmbedding(gkd.losses.Loss):
    """Scaled cosine error of the embeddings, weight · mean (1 − cos)^power; a linear map where their sizes differ."""

    unlabelled = True  # it also teaches on images without a class

    def __init__(self, student, teacher, *, weight: PositiveFloat = 1.0, power: Annotated[float, Field(ge=1)] = 2.0):
        super().__init__()
        self.weight, self.power = weight, power
        sizes = student.embedding_size(), teacher.embedding_size()
        self.adapter = nn.Identity() if sizes[0] == sizes[1] else nn.Linear(*sizes, bias=False)

    def forward(self, student, teacher, labels, *, epoch=0.0, indices=None):
        cosine = cosine_similarity(self.adapter(student.embedding).float(), teacher.embedding.float())
        angle = (1 - cosine).clamp_min(0).pow(self.power).mean()
        return {"ce": self.cross_entropy(student.logits, labels), "angle": self.weight * angle}


def separable(inside, outside, stride):
    depthwise = nn.Conv2d(inside, inside, 3, stride, padding=1, groups=inside, bias=False)
    return nn.Sequential(depthwise, nn.Conv2d(inside, outside, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU())


@gkd.register_model("separable-32", stages=["wide", "deep"], head="fc")
class Separable(nn.Module):
    """Normalised images [B, C, H, W] → logits [B, num_classes]."""

    def __init__(self, num_classes, in_channels=3):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.wide, self.deep = separable(32, 32, stride=1), separable(32, 64, stride=2)
        self.fc = nn.Linear(64, num_classes)

    def forward(self, images):
        return self.fc(self.deep(self.wide(self.stem(images))).mean((2, 3)))


@gkd.register_augmentation("noise")
def noise(image, *, strength: Annotated[float, Field(ge=0, le=1)] = 0.05):
    """[C, H, W] in [0, 1] with normal noise of a standard deviation up to `strength`."""
    return (image + strength * torch.rand(1) * torch.randn_like(image)).clamp(0, 1)


@gkd.register_augmentation("gaussian-blur")
class Blur(v2.GaussianBlur):  # torchvision's, with options that params.yaml can give
    def __init__(self, *, size: Annotated[int, Field(ge=3)] = 3, sigma: Annotated[float, Field(gt=0.1)] = 2.0):
        super().__init__(size, (0.1, sigma))
