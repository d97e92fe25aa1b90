"""Batches on the device: the whole split resident there when it fits, streamed from the memory map when not."""

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gkd_core.data import own
from gkd_core.data.augment import (
    Augmentation,
    Rectangle,
    crop_and_flip,
    cut_mix,
    cut_out,
    draw_cut,
    draw_erased,
    mix,
    number_of_view,
)
from gkd_core.data.balance import balanced_order
from gkd_core.data.interleave import Interleaved, Joined, unlabelled_per_batch
from gkd_core.data.memory import fits
from gkd_core.data.operations import Operation, apply, draw_auto, draw_jitter
from gkd_core.data.photos import pictures
from gkd_core.data.prepared import Split
from gkd_core.data.shards import ALONE, Shards
from gkd_core.data.views import Numbers, RowNumbers
from gkd_core.data.windows import STREAM, Cutter, draw_windows
from gkd_core.errors import GkdError


class Batch(NamedTuple):
    """One batch on the device.

    Attributes:
        images: [B, C, H, W] float32 in [0, 1], augmented, not normalised.
        labels: [B] int64; with mixup or cutmix the labels of the first of each pair. −1 of an image without a label,
            whose row in `targets` is zero.
        indices: [B] int64, positions in the split; images without a label are counted on from its end.
        targets: [B, num_classes] float32 with mixup or cutmix, else None.
        topology: [B, F] float32, persistence features of the unaugmented images by their indices (of the first of each
            pair); None where the data has none.
        shards: which rows of the whole batch these are, where several processes share it.
        views: [B] int64, which of its image's views each is; None where there is no end to them (`Loader.view_count`).
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    targets: Tensor | None
    topology: Tensor | None = None
    shards: Shards = ALONE
    views: Tensor | None = None


class _Draws(NamedTuple):
    """What chance decides about a whole batch; None where nothing is asked of it."""

    shifts: Tensor | None
    coins: Tensor | None
    centres: Tensor | None
    partners: Tensor | None
    operations: Sequence[Sequence[Operation]] | None
    erased: Sequence[Rectangle | None] | None
    seeds: NDArray[np.int64] | None

    def of(self, rows: slice) -> "_Draws":
        """For these rows alone."""
        drawn: Any = (None if each is None else each[rows] for each in self)
        return _Draws(*drawn)


_NOTHING = _Draws(*[None] * len(_Draws._fields))


class Loader:
    """Batches of a split, epoch by epoch.

    With `random_resized_crop` the images are windows, cut by threads out of what the split holds: nothing is resident.

    The order and every augmentation are a function of (seed, epoch) alone, so a training resumed at an epoch needs no
    state from here; and the same whether the split is resident or streamed.

    The last, short batch is kept. When shuffled (that is, in training) a last batch that would leave a process a single
    image, which batch normalisation refuses, joins the batch before it: one of a single image with one process, of
    fewer than 2·n with n.

    With `views` there is a fixed number of views of every image: epoch n shows view n modulo that, in an order of its
    own, and what is random about a view is a function of (seed, image, view) alone.

    Several processes go through the same batches, each with its own rows of every one: order, augmentation and mixup's
    pairs are drawn for the whole batch, so they are the same however many share it.

    Images without a label join the batches of those with one (see `Interleaved`): an epoch is still one pass over the
    labelled ones. Mixup mixes either kind among themselves.

    Args:
        split: what to load.
        batch_size: labelled images a batch, all processes together.
        device: where the batches are wanted.
        seed: of order and augmentation.
        augmentation: random changes; null changes nothing.
        shuffle: a new order each epoch, else the split's own.
        balanced: with `shuffle`, an order in which all classes come equally often (see `balanced_order`).
        num_classes: width of mixup's and cutmix's targets.
        unlabelled: images without a label, to join those of the split in a shuffled order.
        unlabelled_fraction: which part of every batch they are, in (0, 1).
        views: how many views of each image there are; None draws every one anew.
        resident: keep all images on the device (True), stream them (False), or decide by free memory (null).
        processes: how many share each batch.
        rank: which of them this is; it gets a batch's rows in order of rank, in validation perhaps none of a short one.
    Raises:
        GkdError: fewer images than the batches need.
        ValueError: cutout or erasing without the data's mean; unlabelled images in a set order, or beside persistence
            features; a number of views of images that are mixed.
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
        balanced: bool = False,
        num_classes: int,
        unlabelled: Split | None = None,
        unlabelled_fraction: float = 0.0,
        views: int | None = None,
        resident: bool | None = None,
        processes: int = 1,
        rank: int = 0,
    ) -> None:
        self.split = split
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.seed = seed
        self.augmentation = augmentation or Augmentation()
        self._own = own.create(self.augmentation.own)
        self._stored = views
        self.view_count = views or self.augmentation.views
        self.shuffle = shuffle
        self.balanced = balanced
        self.num_classes = num_classes
        for name in ("cutout", "erasing"):
            if getattr(self.augmentation, name) and not split.mean:
                raise ValueError(f"{name} fills with the data's mean, but this split has none")
        if views and self.augmentation.mixes:
            raise ValueError("an image that is mixed with another of its batch has no fixed number of views")
        smallest = 2 * processes if shuffle else 1
        self._bounds = _bounds(len(split), batch_size, smallest)
        self._shards = [Shards.of(stop - start, processes, rank) for start, stop in self._bounds]
        self._interleaved: Interleaved | None = None
        self._has_label: Tensor | None = None
        images, labels = split.images, split.labels
        if unlabelled is not None and unlabelled_fraction:
            if not shuffle or split.topology is not None:
                raise ValueError("unlabelled images join a shuffled split without persistence features")
            extra = unlabelled_per_batch(batch_size, unlabelled_fraction)
            self._interleaved = interleaved = Interleaved(len(split), len(unlabelled), batch_size, extra)
            self._shards = [
                Shards.of(int(interleaved.rows(stop) - interleaved.rows(start)), processes, rank, labelled=stop - start)
                for start, stop in self._bounds
            ]
            self._bounds = tuple((int(interleaved.rows(a)), int(interleaved.rows(b))) for a, b in self._bounds)
            self._has_label = torch.from_numpy(interleaved.has_label()).to(self.device)
            images = cast(NDArray[np.uint8], Joined(images, unlabelled.images))
            labels = np.concatenate([labels, unlabelled.labels])
        self._source = images
        if len(split) < smallest:
            raise GkdError(
                f"{len(split)} images are too few for batches of {batch_size}: add images, or lower train.batch_size"
            )
        self._labels = torch.from_numpy(np.array(labels)).to(self.device)
        self._topology = None
        if split.topology is not None:
            self._topology = torch.from_numpy(np.array(split.topology)).to(self.device)
        self._fill = torch.tensor(split.mean, dtype=torch.float32, device=self.device)
        # Processes on a CPU share its memory; accelerators have their own.
        copies = processes if self.device.type == "cpu" else 1
        self.resident = fits(copies * images.nbytes, self.device) if resident is None else resident
        self._cutter: Cutter | None = None
        if self.augmentation.random_resized_crop:  # new pixels every time, of what the file holds
            self.resident, self._pictures = False, pictures(images)
            shape = (images.shape[3], *images.shape[1:3])
            self._cutter = Cutter(self._pictures, shape, pin=self.device.type == "cuda")
        self._images = torch.from_numpy(np.array(images)).to(self.device) if self.resident else None

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch."""
        return len(self._bounds)

    @property
    def images(self) -> int:
        """How many there are, with those without a label; a batch's `indices` are below it."""
        return len(self._labels)

    @property
    def batch_rows(self) -> tuple[int, int]:
        """How many rows of a batch this process has: of the first one, and the most of all."""
        rows = [shards.sizes[shards.rank] for shards in self._shards]
        return rows[0], max(rows)

    @property
    def view_facts(self) -> dict[str, Any]:
        """What the views depend on beside image and number."""
        if self._stored:
            return {"seed": self.seed, "count": self._stored, **self.augmentation.facts}
        return {"crop_padding": self.augmentation.crop_padding, "flip": self.augmentation.flip}

    def first_images(self, count: int) -> Tensor:
        """Of so many images of the split the first view, or without `views` the image as it is.

        Returns:
            [count, C, H, W] float32 on the device, laid out as a batch is.
        """
        rows = np.arange(count)
        if self._cutter is not None and self._stored:
            windows = draw_windows(self._pictures.sizes[rows], self._parts, self._of_view(rows, 0, STREAM))
            pixels = next(self._cutter.batches([(rows, windows)])).permute(0, 2, 3, 1)
        else:
            pixels = torch.from_numpy(self._source[rows])
        draws = _NOTHING
        if self._stored:
            numbers = self._of_view(rows, 0)
            draws = self._draw(count, (pixels.shape[1], pixels.shape[2]), torch.Generator(self.device), numbers)
        return self._augment(pixels.to(self.device).permute(0, 3, 1, 2), draws)

    def epoch(self, n: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch n, counted from 0, from batch `start` on.

        Of those before it no pixel is read; what is random about them is drawn and thrown away, so that the others are
        what they always are.
        """
        host = np.random.default_rng([self.seed, n])
        rows = self._order(host)
        if self._interleaved is not None:
            rows = self._interleaved.order(rows, self.seed, n)
        order = torch.from_numpy(rows)
        generator = torch.Generator(self.device).manual_seed(int(host.integers(2**62)))
        # Of what came later; by itself, so that what was there before has the numbers it always had.
        later = np.random.default_rng([self.seed, n, 1])
        # Drawn on the host: a scalar the device is handed, never asked for.
        alpha = self.augmentation.mixup
        shares = host.beta(alpha, alpha, self.steps_per_epoch) if alpha else np.ones(self.steps_per_epoch)
        indices = _to_device(order, self.device)
        skipped: list[Tensor | None] = [None] * start
        all_pixels = itertools.chain(skipped, self._pixels(order, indices, n, start))
        size = (self._source.shape[1], self._source.shape[2])
        for (begin, end), shards, share, pixels in zip(self._bounds, self._shards, shares, all_pixels, strict=True):
            known = None if self._has_label is None else self._has_label[begin:end]
            numbers: Numbers = self._of_view(rows[begin:end], n) if self._stored else later
            draws = self._draw(end - begin, size, generator, numbers, known)
            cut = None if draws.partners is None else self._draw_cut(size, later)
            if pixels is None:
                continue
            chosen = indices[begin:end]
            targets = None
            if draws.partners is None:
                images = self._augment(pixels.permute(0, 3, 1, 2), draws.of(shards.mine))
            else:
                whole = self._augment(pixels.permute(0, 3, 1, 2), draws)
                pairs = (whole, self._labels[chosen], draws.partners)
                if cut is None:
                    whole, mixed = mix(*pairs, float(share), self.num_classes)
                else:
                    whole, mixed = cut_mix(*pairs, cut, self.num_classes)
                images, targets = whole[shards.mine], mixed[shards.mine]
            chosen = chosen[shards.mine]
            if len(chosen):
                topology = None if self._topology is None else self._topology[chosen]
                views = self._views(chosen, draws.of(shards.mine), n)
                yield Batch(images, self._labels[chosen], chosen, targets, topology, shards, views)

    def _order(self, host: np.random.Generator) -> NDArray[np.int64]:
        """Which rows of the split an epoch shows, one after the other."""
        if not self.shuffle:
            return np.arange(len(self.split))
        return balanced_order(self.split.labels, host) if self.balanced else host.permutation(len(self.split))

    def _rows(self) -> list[slice]:
        """Where in the order the rows stand that this process reads, batch by batch."""
        if self.augmentation.mixes:  # a row's partner may be anywhere in the batch: all make the whole of it
            return [slice(start, stop) for start, stop in self._bounds]
        rows = []
        for (start, stop), shards in zip(self._bounds, self._shards, strict=True):
            first, end, _ = shards.mine.indices(stop - start)
            rows.append(slice(start + first, start + end))
        return rows

    def _windows(self, order: NDArray[np.int64], n: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Positions and windows of the rows that this process reads, batch by batch; drawn for the whole batch."""
        rng, sizes = np.random.default_rng([self.seed, n, STREAM]), self._pictures.sizes
        for (start, stop), rows in zip(self._bounds, self._rows(), strict=True):
            numbers: Numbers = self._of_view(order[start:stop], n, STREAM) if self._stored else rng
            windows = draw_windows(sizes[order[start:stop]], self._parts, numbers)
            yield order[rows], windows[rows.start - start : rows.stop - start]

    @property
    def _parts(self) -> tuple[float, float]:
        smallest, largest = self.augmentation.random_resized_crop or (1.0, 1.0)
        return smallest, largest

    def _of_view(self, images: NDArray[np.int64], epoch: int, purpose: int = 0) -> RowNumbers:
        """Random numbers for the view of these images that an epoch shows."""
        assert self._stored is not None
        return RowNumbers(self.seed, images, epoch % self._stored, purpose)

    def _pixels(self, order: Tensor, indices: Tensor, n: int, first: int) -> Iterator[Tensor]:
        """uint8 [rows, H, W, C] of epoch n on the device, batch by batch from batch `first` on."""
        if first == self.steps_per_epoch:
            return
        if self._cutter is not None:
            for squares in self._cutter.batches(itertools.islice(self._windows(order.numpy(), n), first, None)):
                yield squares.to(self.device, non_blocking=True).permute(0, 2, 3, 1)
            return
        if self._images is not None:
            for rows in self._rows()[first:]:
                yield self._images[indices[rows]]
            return

        def read(rows: slice) -> Tensor:
            pixels = torch.from_numpy(self._source[order[rows].numpy()])
            return pixels.pin_memory() if self.device.type == "cuda" else pixels

        # One batch is read ahead while the device works on the last.
        with ThreadPoolExecutor(1) as reader:
            next_rows, *others = self._rows()[first:]
            ahead = reader.submit(read, next_rows)
            for following in [*others, None]:
                pixels = ahead.result()
                if following is not None:
                    ahead = reader.submit(read, following)
                yield pixels.to(self.device, non_blocking=True)

    def _draw(
        self,
        batch: int,
        size: tuple[int, int],
        generator: torch.Generator,
        later: Numbers,
        known: Tensor | None = None,
    ) -> _Draws:
        """For a whole batch of images of size (H, W); `known` says which have a label, None all.

        Of a stored view everything comes from `later`, which then knows no batch.
        """
        augmentation, device = self.augmentation, self.device
        shifts = coins = centres = partners = operations = erased = seeds = None
        if augmentation.crop_padding or augmentation.flip:
            places, chance = 2 * augmentation.crop_padding + 1, 0.5 if augmentation.flip else 0.0
            if isinstance(later, RowNumbers):
                shifts = torch.from_numpy(later.integers(places, size=(batch, 2))).to(device)
                coins = torch.from_numpy(later.random(batch) < chance).to(device)
            else:
                shifts = torch.randint(places, (batch, 2), generator=generator, device=device)
                coins = torch.rand(batch, generator=generator, device=device) < chance
        if augmentation.cutout:
            if isinstance(later, RowNumbers):
                uniform = torch.from_numpy(later.random((batch, 2))).to(device, torch.float32)
            else:
                uniform = torch.rand(batch, 2, generator=generator, device=device)
            centres = torch.stack(((uniform[:, 0] * size[0]).long(), (uniform[:, 1] * size[1]).long()), 1)
        if augmentation.mixes:
            partners = _partners(torch.rand(batch, generator=generator, device=device), known)
        if augmentation.auto != "none":
            several = augmentation.rand_operations, augmentation.rand_magnitude
            operations = draw_auto(later, batch, augmentation.auto, size, *several)
        if augmentation.color_jitter or augmentation.hue:
            jitter = draw_jitter(later, batch, augmentation.color_jitter, augmentation.hue)
            operations = [[*a, *b] for a, b in zip(operations, jitter, strict=True)] if operations else jitter
        if augmentation.erasing:
            erased = draw_erased(later, batch, augmentation.erasing, size)
        if self._own:
            seeds = later.integers(2**31, size=batch)
        return _Draws(shifts, coins, centres, partners, operations, erased, seeds)

    def _views(self, chosen: Tensor, draws: _Draws, epoch: int) -> Tensor | None:
        """Which views were drawn, [B]; None where there is no end to them."""
        if self.view_count is None:
            return None
        if self._stored:
            return torch.full_like(chosen, epoch % self._stored)
        if draws.shifts is None or draws.coins is None:
            return torch.zeros_like(chosen)
        return number_of_view(draws.shifts, draws.coins, self.augmentation)

    def _draw_cut(self, size: tuple[int, int], later: np.random.Generator) -> Rectangle | None:
        """What cutmix exchanges in a batch; None leaves it to mixup."""
        augmentation = self.augmentation
        if not augmentation.cutmix or (augmentation.mixup and later.random() < 0.5):
            return None
        return draw_cut(later, augmentation.cutmix, size)

    def _augment(self, pixels: Tensor, draws: _Draws) -> Tensor:
        """uint8 [B, C, H, W] → float32 in [0, 1], changed as drawn; mixup and cutmix come after it."""
        if draws.shifts is not None and draws.coins is not None:
            pixels = crop_and_flip(pixels, draws.shifts, draws.coins, self.augmentation.crop_padding)
        if draws.operations is not None and len(pixels):
            pixels = torch.stack([apply(*each) for each in zip(pixels.contiguous(), draws.operations, strict=True)])
        images = pixels.to(torch.float32, memory_format=torch.contiguous_format) / 255
        if draws.centres is not None:
            images = cut_out(images, draws.centres, self.augmentation.cutout, self._fill)
        for image, rectangle in zip(images, draws.erased or (), strict=False):
            if rectangle is not None:
                rectangle.fill(image, self._fill.view(-1, 1, 1))
        return images if draws.seeds is None else own.apply(images, self._own, draws.seeds)


def _partners(drawn: Tensor, known: Tensor | None) -> Tensor:
    """A permutation of the batch [B] from numbers in [0, 1); images without a label keep among themselves."""
    if known is None:
        return drawn.argsort()
    kind = known.logical_not().to(drawn.dtype)
    return torch.empty_like(kind, dtype=torch.int64).scatter_(0, kind.argsort(stable=True), (kind + drawn).argsort())


def _bounds(count: int, batch_size: int, smallest: int) -> tuple[tuple[int, int], ...]:
    """(start, stop) of every batch; a last one of fewer than `smallest` joins the one before it."""
    starts = list(range(0, count, batch_size))
    stops = [min(start + batch_size, count) for start in starts]
    if len(starts) > 1 and stops[-1] - starts[-1] < smallest:
        starts, stops = starts[:-1], [*stops[:-2], count]
    return tuple(zip(starts, stops, strict=True))


def _to_device(order: Tensor, device: torch.device) -> Tensor:
    return order.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else order.to(device)
