"""Data for a notebook: names, folders, prepared folders, and torch data sets of one's own."""

import gc

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset

from gkd_core.data.load import load_data
from gkd_core.data.prepared import PreparedData
from gkd_core.errors import GkdError


def tensors(count: int = 30, channels: int = 1, classes: int = 3) -> TensorDataset:
    """Images [C, 6, 6] in [0, 1], each of one value: its position / 255."""
    images = torch.arange(count)[:, None, None, None].expand(-1, channels, 6, 6) / 255
    return TensorDataset(images, torch.arange(count) % classes)


class Pictures(Dataset):
    """Pillow images of 8 × 6 pixels, labels in `targets`; counts how often an image is made."""

    classes = ("cat", "dog")

    def __init__(self, count: int = 20) -> None:
        self.targets = [position % 2 for position in range(count)]
        self.made = 0

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, position: int) -> tuple[Image.Image, int]:
        self.made += 1
        return Image.new("RGB", (8, 6), (position, 0, 0)), self.targets[position]


def test_digits_are_split_and_their_folder_goes_with_the_data():
    data = load_data("digits")
    assert (data.classes, data.train.images.shape[1:]) == (tuple("0123456789"), (8, 8, 1))
    assert len(data.train) + len(data.validation) + len(data.test) == 1797
    folder, test = data.folder, data.test
    first = np.array(test.images[0])
    del data
    gc.collect()
    assert not folder.exists()
    assert np.array_equal(test.images[0], first), "a split that was taken out stays readable"


def test_a_folder_of_classes_is_read_at_the_size_asked_for(tmp_path):
    for name, grey in (("cat", 10), ("dog", 200)):
        (tmp_path / name).mkdir()
        for number in range(10):
            Image.new("L", (20, 30), grey + number).save(tmp_path / name / f"{number}.png")
    data = load_data(tmp_path, image_size=12, channels=1)
    assert data.classes == ("cat", "dog")
    assert data.train.images.shape[1:] == (12, 12, 1)


def test_a_prepared_folder_is_read_where_it_lies(digits):
    assert load_data(digits).folder == digits
    with pytest.raises(GkdError, match="image_size 8, not 16"):
        load_data(digits, image_size=16)


def test_a_cache_is_written_once_and_read_after_that(tmp_path):
    data = load_data("digits", image_size=4, cache=tmp_path / "cache")
    again = load_data("nowhere", cache=tmp_path / "cache")
    assert again.info == data.info == PreparedData.open(tmp_path / "cache").info


def test_data_sets_are_the_splits_they_are_given_as():
    data = load_data([tensors(30), tensors(9), tensors(6)])
    assert data.classes == ("0", "1", "2")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [30, 9, 6]
    assert data.train.images[:, 0, 0, 0].tolist() == list(range(30))
    assert data.test.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert not data.info.augment["flip"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_tensors_in_colour_are_kept_pixel_by_pixel(dtype):
    pixels = torch.randint(256, (12, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = pixels if dtype == torch.uint8 else pixels / 255
    data = load_data([TensorDataset(images, torch.arange(12) % 3)] * 3)
    assert np.array_equal(data.train.images[:], pixels.permute(0, 2, 3, 1).numpy())


def test_float_labels_must_be_whole():
    images = torch.zeros(4, 1, 6, 6)
    data = load_data([TensorDataset(images, torch.tensor([0.0, 1.0, 0.0, 1.0]))] * 3)
    assert data.train.labels[:].tolist() == [0, 1, 0, 1]
    for labels, named in ((torch.tensor([0.0, 1.5, 0.0, 1.0]), "label 1.5"), (torch.eye(4), "a label is not a number")):
        with pytest.raises(GkdError, match=named):
            load_data([TensorDataset(images, labels)] * 3)


def test_a_split_that_is_missing_is_taken_from_train():
    data = load_data((tensors(60), tensors(9)), test_fraction=0.25)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [45, 9, 15]


def test_pillow_images_are_brought_to_a_square_and_classes_are_the_data_set_s():
    data = load_data([Pictures(), Pictures(10)])
    assert (data.classes, data.train.images.shape[1:]) == (("cat", "dog"), (6, 6, 3))
    assert load_data([Pictures()], channels=1, classes=["a", "b"]).classes == ("a", "b")


def test_targets_and_subsets_spare_a_first_look_at_every_image():
    pictures = Pictures()
    data = load_data([Subset(pictures, range(5, 20)), Pictures(6), Pictures(6)])
    assert data.train.labels.tolist() == [position % 2 for position in range(5, 20)]
    assert data.train.images[0, 0, 0, 0] == 5
    assert pictures.made == 1 + 15


@pytest.mark.parametrize(
    ("datasets", "options", "named"),
    [
        ([], {}, "train, validation, test"),
        ([TensorDataset(torch.randn(9, 1, 4, 4), torch.arange(9) % 3)], {}, "[0, 1]"),
        ([TensorDataset(torch.zeros(9, 4, 4), torch.arange(9) % 3)], {}, "[C, H, W]"),
        ([TensorDataset(torch.zeros(9, 1, 4, 4, dtype=torch.int64), torch.arange(9) % 3)], {}, "int64"),
        ([tensors(), TensorDataset(torch.zeros(0, 1, 4, 4), torch.zeros(0))], {}, "validation"),
        ([tensors()], {"classes": ["a", "b"]}, "2 classes"),
    ],
)
def test_data_sets_that_do_not_fit_are_refused_in_one_sentence(datasets, options, named):
    with pytest.raises(GkdError) as raised:
        load_data(datasets, **options)
    assert named in str(raised.value)


@pytest.mark.parametrize(
    ("source", "options", "named"),
    [
        ("digitz", {}, "digits"),
        ("digits", {"classes": ["a"]}, "classes names"),
        ("digits", {"test_fraction": 0.001}, "or raise test_fraction"),
        ("digits", {"train_images": 5000}, "train_images is 5000"),
        ("torchvision:FashonMNIST", {}, "source: the torchvision set 'FashonMNIST' is unknown"),
        ("one", {}, "source one has one class, 'cat'"),
        ("two", {}, "or set unreadable to drop"),
    ],
)
def test_a_source_that_is_not_there_or_does_not_split_is_one_sentence(source, options, named, tmp_path, monkeypatch):
    """In the words of this call: there is no `data.test_fraction` in a notebook."""
    monkeypatch.chdir(tmp_path)
    for name in ("one/cat", "two/cat", "two/dog"):
        (tmp_path / name).mkdir(parents=True)
        for number in range(10):
            (tmp_path / name / f"{number}.png").write_text("no picture")
    with pytest.raises(GkdError) as raised:
        load_data(source, **options)
    assert named in str(raised.value)
    assert "data." not in str(raised.value)


def test_fewer_training_images_may_be_asked_for():
    assert len(load_data("digits", train_images=200).train) == 200


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"image_size": 0}, "image_size is 0"),
        ({"channels": 2}, "channels is 2"),
        ({"validation_fraction": 2.0}, r"validation_fraction is 2\.0"),
        ({"seed": -1}, "seed is -1"),
        ({"unreadable": "skip"}, "unreadable is 'skip'"),
    ],
)
def test_an_argument_that_params_yaml_would_refuse_is_refused_here_in_its_own_words(given, said):
    with pytest.raises(GkdError, match=f"^{said}"):
        load_data("digits", **given)


def test_a_path_that_is_not_there_is_no_misspelt_name():
    with pytest.raises(GkdError, match="source nowhere/ is not there"):
        load_data("nowhere/")
