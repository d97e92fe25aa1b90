"""With answers from disk a student comes out as with a teacher asked every time; what cannot be so, is not done."""

import errno
import json
import os

import numpy as np
import pytest
import torch

import gkd_core as gkd
from gkd_core.config import TrainingConfig
from gkd_core.data.augment import Augmentation, crop_and_flip
from gkd_core.data.loader import Loader
from gkd_core.errors import GkdError
from gkd_core.models.classifier import Output
from gkd_core.schemes import DistillationSpec
from gkd_core.training import teacher as teachers
from gkd_core.training.answers import HEADER_BYTES
from gkd_core.training.trainer import Trainer, Training, weights_digest
from tests.unit.stripes import network, stripes, stripes_data

COUNT, EPOCHS, BATCH = 84, 3, 32  # two batches of 32 and one of 20
AUGMENT = {"crop_padding": 1, "flip": True}


def trainer_of(cache=None, *, method="kd", seed=0, count=COUNT, unlabelled=0, scheme="single", teach=(1,), **config):
    data = stripes_data(count, unlabelled=unlabelled)
    data.info.sha256 = "stripes"
    settings = {"epochs": EPOCHS, "batch_size": BATCH, "device": "cpu", "seed": seed, "augment": AUGMENT}
    settings |= {"teacher_cache": cache is not None, **config}
    training = Training(
        network("resnet8", seed),
        data,
        TrainingConfig.model_validate(settings),
        DistillationSpec(method, scheme=scheme),
        tuple(network("resnet14", each) for each in teach),
        cache=cache,
    )
    return Trainer(training)


def trained(cache=None, **how):
    """Digest of the student's weights, part of the answers that were read, and what is said of the cache."""
    said = []
    trainer, real = trainer_of(cache, **how), Trainer.open_cache
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "open_cache", lambda *given: said.append(real(*given)) or said[-1])
        result = trainer.run()
    return weights_digest(result.network), result.teacher_cache_hits, "".join(said)


def forget_half(folder):
    """Every second row of every file becomes zeros, as if nobody had written it."""
    for path in folder.glob("*.answers"):
        header, content = path.read_bytes()[:HEADER_BYTES], path.read_bytes()[HEADER_BYTES:]
        rows = np.frombuffer(content, np.uint8).reshape(COUNT * 18, -1).copy()
        rows[::2] = 0
        path.write_bytes(header + rows.tobytes())


@pytest.mark.parametrize("method", ["kd", "crd"])
def test_the_student_is_the_same_bit_by_bit_whatever_part_of_the_answers_is_there(tmp_path, method):
    without, none, _ = trained(method=method)
    assert none is None
    first, hits, line = trained(tmp_path, method=method)
    assert first == without
    assert 0 < hits < 0.2  # three epochs of eighteen views
    assert "MB in" in line
    assert trained(tmp_path, method=method)[:2] == (without, 1.0)
    forget_half(tmp_path)
    half, hits, _ = trained(tmp_path, method=method)
    assert half == without
    assert 0.4 < hits < 0.6
    assert trained(tmp_path, method=method)[:2] == (without, 1.0)


def test_seeds_and_methods_share_what_they_ask_for(tmp_path):
    trained(tmp_path, seed=0)
    without, _, _ = trained(seed=1)
    other_seed, hits, _ = trained(tmp_path, seed=1)
    assert other_seed == without
    assert hits > 0.1
    assert trained(tmp_path, method="dkd")[1] == 1.0
    assert trained(tmp_path, method="rkd")[1] < 0.2  # nobody asked for embeddings
    assert trained(tmp_path)[1] == 1.0
    assert len(list(tmp_path.glob("*.answers"))) == 2


@pytest.mark.parametrize("changes", [{"auto": "rand", "color_jitter": 0.4}, {"cutout": 3, "erasing": 0.5}, {}])
def test_a_number_of_views_is_known_whatever_is_changed(tmp_path, changes):
    how = {"augment": AUGMENT | changes, "teacher_views": 2, "epochs": 3}
    without, none, _ = trained(**how)
    assert none is None
    first, hits, line = trained(tmp_path, **how)
    assert "MB in" in line
    assert first == without != trained(**how | {"teacher_views": None})[0]
    assert hits == pytest.approx(1 / 3)  # the third epoch shows the first's views
    assert trained(tmp_path, **how)[:2] == (without, 1.0)
    assert trained(tmp_path, **how, method="dkd")[1] == 1.0
    assert trained(tmp_path, **how, seed=1)[1] == pytest.approx(1 / 3)  # a seed has views of its own
    assert trained(tmp_path, **how | {"teacher_views": 3})[1] == 0.0


def test_the_number_of_views_is_in_the_record(tmp_path):
    trainer = trainer_of(teacher_views=2)
    assert trainer.facts["training"]["teacher_views"] == 2
    assert trainer.fingerprint != trainer_of().fingerprint


def test_another_teacher_other_data_and_other_views_are_not_read(tmp_path):
    trained(tmp_path)
    for other in ({"teach": (2,)}, {"count": COUNT - 1}, {"augment": AUGMENT | {"crop_padding": 2}}):
        without, _, _ = trained(**other)
        found, hits, _ = trained(tmp_path, **other)
        assert found == without
        assert hits < 0.2


def test_images_without_a_label_are_known_too(tmp_path):
    how = {"unlabelled": 40, "method": "kd"}
    without, _, _ = trained(**how)
    assert trained(tmp_path, **how)[0] == without
    assert trained(tmp_path, **how)[:2] == (without, 1.0)


def test_it_changes_no_digest_and_no_record(tmp_path):
    with_, without = trainer_of(tmp_path, teacher_cache_gb=1.0), trainer_of()
    assert with_.fingerprint == without.fingerprint
    assert with_.facts == without.facts


def test_a_full_disk_ends_the_writing_and_not_the_training(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    assert trained(tmp_path)[0] == trained()[0]
    assert "writing failed (No space left on device)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"method": "at"}, "feature maps"),
        ({"scheme": "ensemble", "teach": (1, 2)}, "several networks teach"),
        ({"augment": AUGMENT | {"mixup": 0.2}}, "augment"),
        ({"augment": AUGMENT | {"cutout": 2}}, "augment"),
        ({"augment": AUGMENT | {"color_jitter": 0.2}}, "augment"),
        ({"teacher_cache_gb": 1e-6}, "teacher_cache_gb"),
    ],
)
def test_where_it_cannot_be_it_says_why_and_trains_without(tmp_path, how, reason):
    found, hits, line = trained(tmp_path, **how)
    assert hits is None
    assert line.startswith("teacher cache: not used, for ")
    assert reason in line
    assert not list(tmp_path.glob("*.answers"))
    assert found == trained(**how)[0]


def test_a_folder_that_cannot_be_made_is_a_reason(tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written (Not a directory)" in trained(tmp_path / "file" / "cache", epochs=1)[2]


class Peculiar(teachers.OnlineTeacher):
    """Answers in bits that depend on the size of the batch, or on where in it an image stands."""

    changed = staticmethod(lambda logits: logits)

    def __call__(self, images, indices, targets=None):
        output = super().__call__(images, indices, targets)
        return output._replace(logits=self.changed(output.logits))


@pytest.fixture
def peculiar(monkeypatch):
    monkeypatch.setattr(teachers, "OnlineTeacher", Peculiar)
    return lambda changed: monkeypatch.setattr(Peculiar, "changed", staticmethod(changed))


def test_batches_of_a_size_with_other_bits_are_always_asked(tmp_path, peculiar):
    peculiar(lambda logits: logits * (1.25 if len(logits) < 32 else 1.0))
    without, _, _ = trained()
    assert trained(tmp_path)[0] == without
    again, hits, _ = trained(tmp_path)
    assert again == without
    assert hits == pytest.approx(64 / 84)  # chunks are as large as batches, and the last batch, of 20, is asked


def test_a_teacher_whose_answer_depends_on_its_neighbours_is_always_asked(tmp_path, peculiar):
    peculiar(lambda logits: logits + 0.01 * logits[:1])
    found, hits, line = trained(tmp_path)
    assert hits is None
    assert "differs with the others in its batch" in line
    assert found == trained()[0]


@pytest.mark.parametrize(("padding", "flip", "views"), [(0, False, 1), (0, True, 2), (1, False, 9), (1, True, 18)])
def test_image_and_view_say_which_pixels_they_are(padding, flip, views):
    augmentation = Augmentation(crop_padding=padding, flip=flip)
    split = stripes(40, 0)
    loader = Loader(split, batch_size=16, device="cpu", augmentation=augmentation, shuffle=True, num_classes=4)
    assert augmentation.views == views
    pixels = torch.from_numpy(split.images).permute(0, 3, 1, 2)
    seen = set()
    for epoch in range(6):
        for batch in loader.epoch(epoch):
            number = batch.views if not flip else batch.views // 2
            shifts = torch.stack([number // (2 * padding + 1), number % (2 * padding + 1)], 1)
            flips = (batch.views % 2 == 1) & flip
            assert torch.equal(batch.images, crop_and_flip(pixels[batch.indices], shifts, flips, padding) / 255)
            seen |= set(batch.views.tolist())
    assert seen == set(range(views))


def test_two_processes_have_the_views_of_their_own_rows():
    how = {"batch_size": 16, "device": "cpu", "shuffle": True, "num_classes": 4}
    how["augmentation"] = Augmentation(crop_padding=1, flip=True)
    whole = list(Loader(stripes(40, 0), **how).epoch(0))
    parts = [list(Loader(stripes(40, 0), **how, processes=2, rank=rank).epoch(0)) for rank in (0, 1)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert torch.equal(batch.views, torch.cat([first.views, second.views]))


def test_the_library_wants_a_folder_for_it(tmp_path):
    data = gkd.load_data("digits", train_images=60)
    student, teacher = (gkd.create_model("resnet8", data=data, seed=seed) for seed in (0, 1))
    settings = {"method": "kd", "epochs": 1, "device": "cpu", "teacher_cache": True}
    with pytest.raises(GkdError, match="work=FOLDER"):
        gkd.distill(student, teacher, data, **settings)
    result = gkd.distill(student, teacher, data, **settings, work=tmp_path)
    result.save(tmp_path)
    assert json.loads((tmp_path / "run.json").read_text())["teacher_cache_hits"] == 0.0
    assert "teacher_cache" not in json.loads((tmp_path / "training.json").read_text())["training"]
    assert len(list((tmp_path / "teacher-cache").glob("*.answers"))) == 1


def test_a_cached_answer_has_no_stages(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.open_cache(trainer.teacher)
    batch = next(trainer.loader.epoch(0))
    output = trainer.cached(batch)
    assert isinstance(output, Output)
    assert output.stages == ()
    assert output.embedding.shape == (BATCH, 0)
    assert torch.equal(output.logits, trainer.teacher(batch.images, batch.indices).logits)
    assert torch.equal(trainer.cached(batch).logits, output.logits)
    assert trainer.cached.hits == 0.5
