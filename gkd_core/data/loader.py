"""Batches on the device: the whole split resident there when it fits, streamed from the memory map when not."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gkd_core.data.augment import Augmentation, crop_and_flip, cut_out, mix
from gkd_core.data.prepared import Split
from gkd_core.errors import GkdError

# What is left is for weights, activations and whoever else is on the device.
RESIDENT_SHARE_OF_FREE_MEMORY = 0.25


class Batch(NamedTuple):
    """One batch on the device.

    Attributes:
        images: [B, C, H, W] float32 in [0, 1], augmented, not normalised.
        labels: [B] int64; with mixup the labels of the first of each pair.
        indices: [B] int64, positions in the split.
        targets: [B, num_classes] float32 with mixup, else None.
        topology: [B, F] float32, persistence features of the unaugmented images by their indices (with mixup, of the
            first of each pair); None where the data has none.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    targets: Tensor | None
    topology: Tensor | None = None


class Loader:
    """Batches of a split, epoch by epoch.

    The order and every augmentation are a function of (seed, epoch) alone, so a training resumed at an epoch needs no
    state from here; and the same whether the split is resident or streamed.

    The last, short batch is kept. When shuffled (that is, in training) a last batch of a single image, which batch
    normalisation refuses, joins the batch before it, which then has batch_size + 1.

    Args:
        split: what to load.
        batch_size: images a batch.
        device: where the batches are wanted.
        seed: of order and augmentation.
        augmentation: random changes; null changes nothing.
        shuffle: a new order each epoch, else the split's own.
        num_classes: width of mixup's targets.
        drop_last: leave a short last batch out.
        resident: keep all images on the device (True), stream them (False), or decide by free memory (null).
    Raises:
        GkdError: fewer images than the batches need.
        ValueError: cutout without the data's mean.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        device: torch.device | str,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        shuffle: bool,
        num_classes: int,
        drop_last: bool = False,
        resident: bool | None = None,
    ) -> None:
        self.split = split
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.seed = seed
        self.augmentation = augmentation or Augmentation()
        self.shuffle = shuffle
        self.num_classes = num_classes
        if self.augmentation.cutout and not split.mean:
            raise ValueError("cutout fills with the data's mean, but this split has none")
        self._bounds = _bounds(len(split), batch_size, drop_last=drop_last, merge_single=shuffle)
        if not self._bounds or (shuffle and len(split) < 2):
            raise GkdError(
                f"{len(split)} images are too few for batches of {batch_size}: add images, or lower train.batch_size"
            )
        self._labels = torch.from_numpy(np.array(split.labels)).to(self.device)
        self._topology = None
        if split.topology is not None:
            self._topology = torch.from_numpy(np.array(split.topology)).to(self.device)
        self._fill = torch.tensor(split.mean, dtype=torch.float32, device=self.device)
        self.resident = fits(split.images.nbytes, self.device) if resident is None else resident
        self._images = torch.from_numpy(np.array(split.images)).to(self.device) if self.resident else None

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch."""
        return len(self._bounds)

    def epoch(self, n: int) -> Iterator[Batch]:
        """The batches of epoch n, counted from 0."""
        host = np.random.default_rng([self.seed, n])
        order = torch.from_numpy(host.permutation(len(self.split)) if self.shuffle else np.arange(len(self.split)))
        generator = torch.Generator(self.device).manual_seed(int(host.integers(2**62)))
        # Drawn on the host: a scalar the device is handed, never asked for.
        alpha = self.augmentation.mixup
        shares = host.beta(alpha, alpha, self.steps_per_epoch) if alpha else np.ones(self.steps_per_epoch)
        indices = _to_device(order, self.device)
        for (start, stop), share, pixels in zip(self._bounds, shares, self._pixels(order, indices), strict=True):
            chosen = indices[start:stop]
            labels = self._labels[chosen]
            images, targets = self._augment(pixels.permute(0, 3, 1, 2), labels, generator, float(share))
            topology = None if self._topology is None else self._topology[chosen]
            yield Batch(images, labels, chosen, targets, topology)

    def _pixels(self, order: Tensor, indices: Tensor) -> Iterator[Tensor]:
        """uint8 [B, H, W, C] on the device, batch by batch."""
        if self._images is not None:
            for start, stop in self._bounds:
                yield self._images[indices[start:stop]]
            return

        def read(bounds: tuple[int, int]) -> Tensor:
            rows = torch.from_numpy(self.split.images[order[slice(*bounds)].numpy()])
            return rows.pin_memory() if self.device.type == "cuda" else rows

        # One batch is read ahead while the device works on the last.
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(read, self._bounds[0])
            for following in [*self._bounds[1:], None]:
                rows = ahead.result()
                if following is not None:
                    ahead = reader.submit(read, following)
                yield rows.to(self.device, non_blocking=True)

    def _augment(
        self, pixels: Tensor, labels: Tensor, generator: torch.Generator, share: float
    ) -> tuple[Tensor, Tensor | None]:
        """uint8 [B, C, H, W] → float32 in [0, 1], changed as asked; mixup's targets."""
        augmentation, batch, device = self.augmentation, len(pixels), self.device
        if augmentation.crop_padding or augmentation.flip:
            padding = augmentation.crop_padding
            shifts = torch.randint(2 * padding + 1, (batch, 2), generator=generator, device=device)
            coins = torch.rand(batch, generator=generator, device=device) < (0.5 if augmentation.flip else 0.0)
            pixels = crop_and_flip(pixels, shifts, coins, padding)
        images = pixels.to(torch.float32, memory_format=torch.contiguous_format) / 255
        if augmentation.cutout:
            height, width = images.shape[2:]
            uniform = torch.rand(batch, 2, generator=generator, device=device)
            centres = torch.stack(((uniform[:, 0] * height).long(), (uniform[:, 1] * width).long()), 1)
            images = cut_out(images, centres, augmentation.cutout, self._fill)
        if not augmentation.mixup:
            return images, None
        partners = torch.rand(batch, generator=generator, device=device).argsort()
        return mix(images, labels, partners, share, self.num_classes)


def fits(size_bytes: int, device: torch.device) -> bool:
    """Whether a split of this size may live on the device: a quarter of the memory that is free now."""
    return size_bytes <= RESIDENT_SHARE_OF_FREE_MEMORY * _free_bytes(device)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    page = os.sysconf("SC_PAGE_SIZE")
    try:
        return page * os.sysconf("SC_AVPHYS_PAGES")
    except ValueError:  # macOS does not tell what is free
        return page * os.sysconf("SC_PHYS_PAGES") // 2


def _bounds(count: int, batch_size: int, *, drop_last: bool, merge_single: bool) -> tuple[tuple[int, int], ...]:
    """(start, stop) of every batch."""
    starts = list(range(0, count, batch_size))
    stops = [min(start + batch_size, count) for start in starts]
    if starts and stops[-1] - starts[-1] < batch_size and drop_last:
        starts, stops = starts[:-1], stops[:-1]
    elif merge_single and len(starts) > 1 and stops[-1] - starts[-1] == 1:
        starts, stops = starts[:-1], [*stops[:-2], count]
    return tuple(zip(starts, stops, strict=True))


def _to_device(order: Tensor, device: torch.device) -> Tensor:
    return order.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else order.to(device)
