"""timm's networks in our form: one of each family, which are as they come."""

import copy
import sys

import pytest
import torch
from torch import nn

from gkd_core.config import parse_params
from gkd_core.errors import GkdError
from gkd_core.models import timm as adapter
from gkd_core.models.create import create_model, list_models
from gkd_core.models.registry import create_classifier

CLASSES = 13  # as many as nothing else in a network has

# One small network of each of timm's families, and the side of its images in pixels.
FAMILIES = {
    "beit_base_patch16_224": 64,
    "botnet26t_256": 256,
    "caformer_s18": 64,
    "cait_xxs24_224": 64,
    "coat_lite_tiny": 64,
    "coatnet_nano_cc_224": 224,
    "convit_tiny": 64,
    "convmixer_768_32": 64,
    "convnext_atto": 64,
    "cpubone_b0_bfrobust": 64,
    "crossvit_tiny_240": 240,
    "cs3darknet_focus_s": 64,
    "csatv2": 512,
    "cspnext_tiny": 64,
    "davit_tiny": 64,
    "deepseek_vit_412m": 42,
    "deit_tiny_patch16_224": 64,
    "deit_tiny_distilled_patch16_224": 64,
    "densenet121": 64,
    "dla46_c": 64,
    "dpn48b": 64,
    "ese_vovnet19b_slim_dw": 64,
    "edgenext_xx_small": 64,
    "efficientformer_l1": 224,
    "efficientformerv2_s0": 224,
    "tf_efficientnet_lite0": 64,
    "efficientvim_m1": 224,
    "efficientvit_b0": 64,
    "efficientvit_m0": 64,
    "eva02_tiny_patch14_224": 56,
    "fasternet_t0": 64,
    "fastvit_t8": 64,
    "focalnet_tiny_srf": 64,
    "gcvit_xxtiny": 224,
    "gemma4_vit_167m": 96,
    "ghostnet_050": 64,
    "gmixer_12_224": 64,
    "hardcorenas_a": 64,
    "hgnet_tiny": 64,
    "hgnetv2_b0": 64,
    "hiera_tiny_224": 224,
    "hieradet_small": 64,
    "hrnet_w18_small": 64,
    "iformer_t": 64,
    "inception_next_atto": 64,
    "inception_resnet_v2": 96,
    "inception_v3": 96,
    "inception_v4": 96,
    "lcnetv2_small": 64,
    "legacy_seresnet18": 64,
    "legacy_xception": 96,
    "levit_128s": 224,
    "lowformer_b0": 64,
    "mambaout_femto": 64,
    "mobilenetv3_small_050": 64,
    "mobilenetv4_conv_small": 64,
    "mobilenetv5_300m": 128,
    "mobilevit_xxs": 64,
    "mvitv2_tiny": 64,
    "naflexvit_base_patch16_gap": 64,
    "nasnetalarge": 96,
    "nest_tiny": 64,
    "nextvit_small": 64,
    "nf_regnet_b0": 64,
    "pit_ti_224": 64,
    "pnasnet5large": 96,
    "pvt_v2_b0": 64,
    "qwen3_vit_88m": 64,
    "rdnet_tiny": 64,
    "regnety_002": 64,
    "repghostnet_050": 64,
    "repvgg_a0": 64,
    "repvit_m0_9": 64,
    "res2net50_14w_8s": 64,
    "resnest14d": 64,
    "resnet18": 64,
    "resnetv2_18": 64,
    "rexnet_100": 64,
    "samvit_base_patch16_224": 64,
    "selecsls42": 64,
    "sequencer2d_s": 64,
    "shvit_s1": 64,
    "skresnet18": 64,
    "starnet_s1": 64,
    "swiftformer_xs": 64,
    "swin_tiny_patch4_window7_224": 64,
    "swinv2_cr_tiny_224": 64,
    "swinv2_tiny_window8_256": 64,
    "test_vit": 160,
    "tiny_vit_5m_224": 64,
    "tnt_s_legacy_patch16_224": 64,
    "tresnet_m": 64,
    "twins_pcpvt_small": 64,
    "vgg11": 64,
    "visformer_tiny": 64,
    "vit_relpos_small_patch16_224": 64,
    "vit_base_patch16_siglip_224": 64,
    "vit_tiny_patch16_224": 64,
    "vit_tiny_r_s16_p8_224": 64,
    "vitamin_small_224": 64,
    "volo_d1_224": 64,
    "xception41": 96,
    "xcit_nano_12_p8_224": 64,
}
SEVERAL = {"crossvit_tiny_240", "efficientvim_m1"}  # hand several tensors to their head
QUICK = {
    "convnext_atto",
    "deit_tiny_distilled_patch16_224",
    "efficientvim_m1",
    "pit_ti_224",
    "pvt_v2_b0",
    "repvit_m0_9",
    "resnet18",
    "swin_tiny_patch4_window7_224",
    "tf_efficientnet_lite0",
    "vit_tiny_patch16_224",
}


def example(name: str) -> tuple[adapter.TimmClassifier, torch.Tensor]:
    """A network in eval mode, and images for it."""
    torch.manual_seed(0)
    size = FAMILIES[name]
    classifier = create_classifier(f"timm:{name}", CLASSES, image_size=size).eval()
    for layer in classifier.head_layers:
        nn.init.normal_(classifier.get_submodule(layer).weight)  # some start at zero, and so would all logits
    return classifier, torch.randn(2, 3, size, size)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)
def test_a_family_has_our_form_and_computes_what_timm_computes(name):
    """Logits and head bit for bit; stages that nothing overwrites; the layers that belong to classes, and no other."""
    classifier, images = example(name)
    with torch.no_grad():
        output = classifier(images)
        assert torch.equal(output.logits, classifier.network(images))
        if output.stages:
            assert torch.equal(classifier.head(output.last_stage), output.logits)
    assert output.logits.shape == (2, CLASSES)
    assert output.logits.std() > 0
    widths = [classifier.get_submodule(layer).weight.shape[1] for layer in classifier.head_layers]
    assert output.embedding.shape == (2, sum(widths))

    assert bool(output.stages) == (name not in SEVERAL)
    if output.stages:
        assert 2 <= len(output.stages) <= 4
        assert all(stage.ndim == 4 for stage in output.stages)
        sides = [stage.shape[2] for stage in output.stages[:-1]]  # the last one may be a fusion of those before
        assert sides == sorted(sides, reverse=True)
        assert output.last_stage.shape[:2] == output.stages[-1].shape[:2]
        # Raises where a stage was changed after it was made.
        sum(stage.square().sum() for stage in classifier(images).stages).backward()

    counted = {key for key, value in classifier.state_dict().items() if value.shape[:1] == (CLASSES,)}
    assert counted == {key for key in classifier.state_dict() if key.rpartition(".")[0] in classifier.head_layers}
    assert max(classifier.parameter_depths().values()) > 0


def test_a_transformer_s_stages_are_its_patches_at_four_depths_the_last_after_the_norm():
    classifier, images = example("vit_tiny_patch16_224")
    seen = []
    for depth in (2, 5, 8, 11):
        classifier.network.blocks[depth].register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        output = classifier(images)
        seen[-1] = classifier.network.norm(seen[-1])
    for stage, tokens in zip(output.stages, seen, strict=True):
        assert stage.shape == (2, 192, 4, 4)
        assert torch.equal(stage[0, :, 1, 2], tokens[0, 1 + 1 * 4 + 2])
    assert torch.equal(output.tokens, seen[-1].transpose(1, 2))
    assert torch.equal(output.embedding, output.tokens[:, :, 0])


def test_stages_of_a_network_without_a_class_token_stay_where_its_last_tokens_are_no_grid():
    """PiT hands its class token alone to its head; its stages are the maps before."""
    classifier, images = example("pit_ti_224")
    output = classifier(images)
    assert output.tokens.shape == (2, 256, 1)
    assert [stage.shape[2] for stage in output.stages] == [7, 4, 2]


def test_a_copy_reads_its_own_layers():
    """An averaged network is a copy; hooks that stayed would have it read those of the first."""
    classifier, images = example("resnet18")
    other = copy.deepcopy(classifier)
    nn.init.normal_(other.network.conv1.weight)
    with torch.no_grad():
        assert not torch.equal(other(images).embedding, classifier(images).embedding)
        pooled = other(images).stages[-1].mean((2, 3))
        torch.testing.assert_close(other(images).embedding, pooled)


def test_it_trains_and_counts_batch_statistics_once():
    classifier, images = example("efficientvit_b0")  # there is a batch norm in its head
    classifier.train()
    classifier(images)
    assert {int(n) for key, n in classifier.state_dict().items() if key.endswith("num_batches_tracked")} == {1}


def test_weight_decay_spares_what_timm_spares():
    classifier, _ = example("vit_tiny_patch16_224")
    assert {"network.pos_embed", "network.cls_token"} <= classifier.undecayed()


# --- by name


def test_timm_s_names_are_listed_where_they_are_asked_for():
    assert "timm:convnext_atto" in list_models("timm:convnext_*")
    assert all(name.startswith("timm:") for name in list_models("timm:"))
    assert not [name for name in list_models() if name.startswith("timm:")]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm:convnext_tinny", ["'timm:convnext_tinny' is unknown", "did you mean 'timm:convnext_tiny'"]),
        ("timm:resnet18.a1_in2k", ["'a1_in2k' is unknown", "did you mean 'a1_in1k'"]),
        ("timm:", ["is unknown"]),
    ],
)
def test_an_unknown_name_gets_the_nearest(name, words):
    for create in (lambda: create_model(name, classes=["a", "b"]), lambda: parse_params({"student": {"name": name}})):
        with pytest.raises(GkdError) as caught:
            create()
        assert all(word in str(caught.value) for word in words), caught.value
        assert "\n" not in str(caught.value)


def test_without_timm_its_names_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(GkdError, match=r"pip install 'gkd\[hub\]'"):
        create_model("timm:resnet18", classes=["a", "b"])


def test_an_encoder_is_no_classification_network():
    with pytest.raises(GkdError, match="timm:qwen3_vit_88m_enc is an encoder without a classification layer"):
        create_model("timm:qwen3_vit_88m_enc", classes=["a", "b"], image_size=64)


@pytest.mark.parametrize(
    ("name", "size", "made_for"),
    [("vit_tiny_patch16_224", 8, 224), ("nest_tiny", 24, 224), ("inception_v3", 32, 299), ("test_vit", 8, 160)],
)
def test_images_smaller_than_the_network_takes(name, size, made_for):
    with pytest.raises(GkdError) as caught:
        create_model(f"timm:{name}", classes=["a", "b"], image_size=size)
    assert f"timm:{name} does not take images of {size}×{size} pixels" in str(caught.value)
    assert f"set image_size to {made_for}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_there_is_no_cifar_stem():
    with pytest.raises(GkdError, match="its own stem"):
        create_model("timm:resnet18", classes=["a", "b"], stem="cifar")


def test_several_tensors_at_the_head_are_no_last_stage():
    classifier = create_classifier("timm:efficientvim_m1", CLASSES, image_size=224)
    with pytest.raises(GkdError, match=r"no head on a last stage.*such as kd"):
        classifier.head(torch.zeros(1, 320, 4, 4))
