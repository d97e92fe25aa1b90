"""Our loader against torch's DataLoader with torchvision's transforms, on the same images."""

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks.timing import side_by_side
from gkd_core.data.augment import Augmentation
from gkd_core.data.loader import Loader
from gkd_core.data.prepared import Split

COUNT = 2048


class _Images(Dataset):
    def __init__(self, split: Split) -> None:
        self.split = split
        self.change = v2.Compose(
            [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)]
        )

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.change(torch.from_numpy(self.split.images[i]).permute(2, 0, 1)), int(self.split.labels[i])


def loading(rounds: int) -> dict[str, float]:
    """An epoch of 2,048 images of 32×32, random crop and flip, batches of 128"""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8)
    split = Split(images, rng.integers(0, 10, COUNT), (0.5, 0.5, 0.5))
    augmentation = Augmentation(crop_padding=4, flip=True)
    settings = {"batch_size": 128, "device": "cpu", "augmentation": augmentation, "shuffle": True, "num_classes": 10}
    loaders = {
        name: Loader(split, resident=resident, **settings)
        for name, resident in (("gkd, resident", True), ("gkd, streamed", False))
    }
    theirs = DataLoader(_Images(split), batch_size=128, shuffle=True)
    candidates = {name: lambda loader=loader: list(loader.epoch(0)) for name, loader in loaders.items()}
    return side_by_side(candidates | {"DataLoader + torchvision.transforms.v2": lambda: list(theirs)}, rounds=rounds)
