"""Splits are stratified, seeded, disjoint, complete; what cannot be split is refused in one sentence."""

import dataclasses

import numpy as np
import pytest

from gkd_core.data.sources.base import Examples, Source, SplitName
from gkd_core.data.splits import choose_splits
from gkd_core.errors import GkdError


def source(labels: list[int] | np.ndarray, classes: int | None = None, **more: list[int]) -> Source:
    def examples(values: list[int] | np.ndarray) -> Examples:
        return Examples(np.asarray(values, dtype=np.int64), lambda i: np.zeros((1, 1, 1), np.uint8))

    splits: dict[SplitName, Examples] = {"train": examples(labels)}
    for name, values in more.items():
        splits[name] = examples(values)  # type: ignore[index]
    count = classes or int(np.max(labels)) + 1
    return Source("toy", tuple("abcdefghij"[:count]), 1, 1, splits, flip=False)


LABELS = np.repeat(np.arange(4), (100, 200, 300, 400))


def test_every_image_is_in_exactly_one_split_and_classes_keep_their_share() -> None:
    chosen = choose_splits(source(LABELS), 0.1, 0.2, seed=0)
    positions = np.concatenate([chosen[name].positions for name in ("train", "validation", "test")])
    assert sorted(positions.tolist()) == list(range(1000))
    counts = {name: np.bincount(LABELS[c.positions]).tolist() for name, c in chosen.items()}
    assert counts["test"] == [20, 40, 60, 80]
    assert counts["validation"] == [8, 16, 24, 32]
    assert counts["train"] == [72, 144, 216, 288]
    assert all(np.all(np.diff(c.positions) > 0) for c in chosen.values())


def test_the_seed_decides() -> None:
    first, again, other = (choose_splits(source(LABELS), 0.1, 0.2, seed=s) for s in (1, 1, 2))
    for name in ("train", "validation", "test"):
        assert np.array_equal(first[name].positions, again[name].positions)
        assert not np.array_equal(first[name].positions, other[name].positions)


def test_the_sources_own_splits_are_kept() -> None:
    chosen = choose_splits(source(LABELS, test=[0, 1, 2, 3]), 0.1, 0.2, seed=0)
    assert (chosen["test"].origin, chosen["test"].positions.tolist()) == ("test", [0, 1, 2, 3])
    assert (chosen["validation"].origin, len(chosen["validation"].positions)) == ("train", 100)
    ready = choose_splits(source(LABELS, validation=[0, 1], test=[2]), 0.1, 0.2, seed=0)
    assert [(c.origin, len(c.positions)) for c in ready.values()] == [("train", 1000), ("validation", 2), ("test", 1)]


def test_left_out_examples_change_nothing_else_than_never_having_been() -> None:
    kept = np.delete(np.arange(1000), [5, 500])
    chosen = choose_splits(source(LABELS), 0.1, 0.2, 0, excluded={"train": {5, 500}})
    never = choose_splits(source(LABELS[kept]), 0.1, 0.2, 0)
    for name in ("train", "validation", "test"):
        assert np.array_equal(chosen[name].positions, kept[never[name].positions])


@pytest.mark.parametrize(
    ("labels", "classes", "sentence"),
    [
        (
            [0] * 50 + [1] * 50 + [2],
            None,
            "class 'c' of toy has 1 image to split, too few for a test split of 0.2: give",
        ),
        ([0] * 96 + [1] * 2, None, "class 'b' of toy has 2 images to split, too few for a test split of 0.2"),
        ([0] * 200 + [1] * 5, None, "class 'b' of toy has 4 images to split, too few for a validation split of 0.1"),
        ([0] * 50, None, "toy has one class, 'a': a classifier needs two or more"),
        ([0] * 50 + [2] * 50, None, "class 'b' of toy has no readable training image: add images, or remove the class"),
        ([0] * 50 + [1] * 50, 4, "class 'c' of toy has no readable training image, nor have 1 others"),
        ([0, 0, 1, 1, 2, 2, 3, 3, 4, 4], None, "too few for a test split of 0.2: give it 5 or more"),
    ],
)
def test_what_cannot_be_split_is_one_sentence(labels: list[int], classes: int | None, sentence: str) -> None:
    with pytest.raises(GkdError) as error:
        choose_splits(source(labels, classes), 0.1, 0.2, 0)
    assert sentence in str(error.value)


def test_a_split_left_without_images_is_refused() -> None:
    with pytest.raises(GkdError, match="the test split of toy has no images"):
        choose_splits(source(LABELS, test=[0, 1]), 0.1, 0.2, 0, excluded={"test": {0, 1}})


def test_some_of_the_training_images_are_kept_in_proportion_and_the_other_splits_stay() -> None:
    whole = choose_splits(source(LABELS), 0.1, 0.2, seed=0)
    part = choose_splits(source(LABELS), 0.1, 0.2, seed=0, train_images=100)
    assert np.bincount(LABELS[part["train"].positions]).tolist() == [10, 20, 30, 40]
    assert set(part["train"].positions) < set(whole["train"].positions)
    for name in ("validation", "test"):
        assert np.array_equal(part[name].positions, whole[name].positions)
    assert np.array_equal(
        choose_splits(source(LABELS), 0.1, 0.2, seed=0, train_images=720)["train"].positions,
        whole["train"].positions,
    )


@pytest.mark.parametrize(("count", "words"), [(721, "leaves 720 images"), (3, "too few for the 4 classes")])
def test_more_or_fewer_than_can_be_kept_is_refused(count: int, words: str) -> None:
    with pytest.raises(GkdError, match=f"data.train_images is {count}.*{words}"):
        choose_splits(source(LABELS), 0.1, 0.2, seed=0, train_images=count)


def grouped(labels: np.ndarray, groups: list[str], **more: tuple[list[int], list[str]]) -> Source:
    plain = source(labels, **{name: values for name, (values, _) in more.items()})
    named = {"train": groups, **{name: names for name, (_, names) in more.items()}}
    splits = {name: dataclasses.replace(each, groups=tuple(named[name])) for name, each in plain.splits.items()}
    return dataclasses.replace(plain, splits=splits)


@pytest.mark.parametrize("mixed", [False, True], ids=["of one class each", "of several classes"])
def test_a_group_is_in_one_split_and_classes_keep_their_share(mixed: bool) -> None:
    random = np.random.default_rng(0)
    patients = random.integers(0, 120, len(LABELS)) if mixed else LABELS * 50 + random.integers(0, 40, len(LABELS))
    groups = [str(patient) for patient in patients]
    chosen = choose_splits(grouped(LABELS, groups), 0.1, 0.2, seed=0)
    assert sorted(np.concatenate([c.positions for c in chosen.values()]).tolist()) == list(range(1000))
    assert all(np.all(np.diff(c.positions) > 0) for c in chosen.values())
    of_split = {name: {groups[position] for position in c.positions} for name, c in chosen.items()}
    assert not of_split["train"] & of_split["validation"]
    assert not of_split["test"] & (of_split["train"] | of_split["validation"])
    for name, share in (("train", 0.72), ("validation", 0.08), ("test", 0.2)):
        wanted = share * np.bincount(LABELS)
        assert np.abs(np.bincount(LABELS[chosen[name].positions]) - wanted).max() <= 12
    again, other = (choose_splits(grouped(LABELS, groups), 0.1, 0.2, seed=s)["test"].positions for s in (0, 1))
    assert np.array_equal(chosen["test"].positions, again)
    assert not np.array_equal(again, other)


def test_examples_without_a_group_are_each_on_their_own() -> None:
    groups = ["together"] * 40 + [""] * 960
    chosen = choose_splits(grouped(LABELS, groups), 0.1, 0.2, seed=0)
    assert [len(c.positions) for c in chosen.values()] == [720, 80, 200]
    assert sum(bool({0, 39} & set(c.positions.tolist())) for c in chosen.values()) == 1


def test_groups_of_one_change_nothing() -> None:
    plain = choose_splits(source(LABELS), 0.1, 0.2, seed=0)
    for groups in ([str(i) for i in range(1000)], [""] * 1000):
        alone = choose_splits(grouped(LABELS, groups), 0.1, 0.2, seed=0)
        assert all(np.array_equal(alone[name].positions, plain[name].positions) for name in plain)


def test_a_class_in_too_few_groups_is_refused_by_name() -> None:
    groups = ["one patient"] * 100 + [str(i // 5) for i in range(900)]
    with pytest.raises(GkdError, match=r"class 'a' of toy has 100 images to split, with those of a group together"):
        choose_splits(grouped(LABELS, groups), 0.1, 0.2, seed=0)


def test_a_group_in_two_ready_splits_is_refused_by_name() -> None:
    ready = grouped(LABELS, [str(i) for i in range(1000)], test=([0, 1, 2, 3], ["", "a", "7", "b"]))
    with pytest.raises(GkdError, match="group '7' of toy is in the train split and in the test split"):
        choose_splits(ready, 0.1, 0.2, seed=0)
    left_out = choose_splits(ready, 0.1, 0.2, seed=0, excluded={"train": {7}})
    assert len(left_out["test"].positions) == 4
