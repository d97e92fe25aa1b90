"""The images of some classes."""

import numpy as np
import pytest
import torch

from gkd_core.data.loader import Loader
from gkd_core.data.part import ClassPart
from gkd_core.data.prepared import PreparedData
from gkd_core.errors import GkdError


def test_images_and_labels_of_the_classes_in_their_order(digits):
    whole = PreparedData.open(digits)
    part = ClassPart(whole, ("7", "2"))
    assert part.info.classes == ("7", "2")
    assert part.info.sha256 == whole.info.sha256
    wanted = np.flatnonzero(np.isin(whole.train.labels, [7, 2]))
    assert np.array_equal(np.array(part.train.images), whole.train.images[wanted])
    assert np.array_equal(part.train.labels, np.where(whole.train.labels[wanted] == 7, 0, 1))
    assert part.train.images.nbytes == len(wanted) * 64


def test_streamed_and_resident_batches_are_the_same(digits):
    part = ClassPart(PreparedData.open(digits), ("7", "2"))
    batches = [
        list(Loader(part.train, batch_size=32, device="cpu", shuffle=True, num_classes=2, resident=resident).epoch(1))
        for resident in (True, False)
    ]
    for a, b in zip(*batches, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)


def test_a_class_that_is_not_there_is_named(digits):
    with pytest.raises(GkdError, match="class 'seven' is unknown"):
        ClassPart(PreparedData.open(digits), ("seven", "2"))
