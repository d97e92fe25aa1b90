"""Published weights: torchvision's and timm's, with the preprocessing and the classes that belong to them.

They are looked for in the usual caches first (`HF_HOME`, `TORCH_HOME`), so that what is there needs no network; what is
not there, and cannot be fetched, ends in a sentence that says which file to put where.
"""

import contextlib
import difflib
import logging
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gkd_core.errors import GkdError, unknown
from gkd_core.models.network import Preprocessing
from gkd_core.models.state_dicts import OWN, first_line, tensors_in

log = logging.getLogger(__name__)

IMAGENET_1K = 1000
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def torchvision_weights(name: str) -> tuple[str, Any]:
    """The model and the weights that torchvision calls `ENUM.MEMBER`, `ResNet18_Weights.IMAGENET1K_V1` say.

    Raises:
        GkdError: there are none of this name, for classification.
    """
    from torchvision import models

    known: dict[str, tuple[str, Any]] = {}
    for model in models.list_models(module=models):
        for member, weights in models.get_model_weights(model).__members__.items():
            known[f"{type(weights).__name__}.{member}"] = model, weights
    if name not in known:
        near = difflib.get_close_matches(name, known, n=5, cutoff=0.4)
        raise GkdError(unknown("torchvision weights", name, [*near, "those listed in torchvision's documentation"]))
    return known[name]


def torchvision_preprocessing(model: str, weights: Any) -> Preprocessing:
    """What torchvision's own transforms for these weights do."""
    transforms = weights.transforms()
    mean, std = tuple(transforms.mean), tuple(transforms.std)
    if model in ("googlenet", "inception_v3"):
        # torchvision renormalises inside these two from ImageNet's statistics to (x − ½) / ½.
        mean = std = (0.5, 0.5, 0.5)
    size, resized = transforms.crop_size[0], transforms.resize_size[0]
    return Preprocessing(3, size, mean, std, interpolation(transforms.interpolation.value), min(1.0, size / resized))


def torchvision_members(model: str) -> dict[str, Any]:
    """The weights that torchvision publishes for a model, by their short names, `DEFAULT` among them."""
    from torchvision import models

    return dict(models.get_model_weights(model).__members__)


def torchvision_default(model: str) -> Preprocessing:
    """The preprocessing of a model's default weights."""
    return torchvision_preprocessing(model, torchvision_members(model)["DEFAULT"])


def torchvision_positions(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], image_size: int
) -> dict[str, Tensor]:
    """The state of a vision transformer with its positions resampled for images of another size, as torchvision does.

    Args:
        expected: state dict of the network it is for.
    """
    from torchvision.models.vision_transformer import interpolate_embeddings

    state = {key.removeprefix(OWN): value for key, value in state.items()}
    wanted, patches = expected[f"{OWN}encoder.pos_embedding"], expected[f"{OWN}conv_proj.weight"]
    have = state.get("encoder.pos_embedding")
    if have is not None and have.ndim == 3 and have.shape[1] != wanted.shape[1] and have.shape[2] == wanted.shape[2]:
        state = dict(interpolate_embeddings(image_size, patches.shape[-1], OrderedDict(state)))
    return {OWN + key: value for key, value in state.items()}


def fetch_torchvision(weights: Any) -> tuple[dict[str, Tensor], Path]:
    """The tensors of published weights and their file, from torch.hub's cache or its address.

    Raises:
        GkdError: the file in the cache is damaged, or there is none and none can be fetched.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the last line on stdout is for results
            content = weights.get_state_dict(
                progress=sys.stderr.isatty(), check_hash=True, map_location="cpu", weights_only=True
            )
    except Exception as error:
        if path.exists():
            raise GkdError(f"{path} is damaged ({first_line(error)}): delete it, and it is fetched again") from None
        raise GkdError(_not_fetched(weights.url, path, error)) from None
    return tensors_in(content, str(path)), path


def timm_file(published: Any) -> Path:
    """The file of weights that timm publishes, from the caches, the hub or its address.

    Args:
        published: timm's `PretrainedCfg`.
    Raises:
        GkdError: it is in no cache and cannot be fetched.
    """
    if published.hf_hub_id:
        repository, _, revision = published.hf_hub_id.partition("@")
        names = (published.hf_hub_filename,) if published.hf_hub_filename else HUB_FILES
        return hub_file(repository, names, revision or None)
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(published.url).name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                torch.hub.download_url_to_file(published.url, str(path), progress=sys.stderr.isatty())
        except Exception as error:  # urllib's, and the file system's
            raise GkdError(_not_fetched(published.url, path, error)) from None
    return path


def hub_file(repository: str, names: Sequence[str], revision: str | None = None) -> Path:
    """The first of these files that there is in a repository of the Hugging Face hub: in its cache, else fetched.

    Raises:
        GkdError: there is none, or none can be fetched.
    """
    try:
        from huggingface_hub import constants, hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError:
        raise GkdError("weights on the hub need the package huggingface-hub: pip install 'gkd[hub]'") from None
    problem: Exception | None = None
    for local in (True, False):
        for name in names:
            try:
                with contextlib.nullcontext() if local else _fetching(f"{name} of {repository}"):
                    return Path(hf_hub_download(repository, name, revision=revision, local_files_only=local))
            except LocalEntryNotFoundError as error:
                problem = error.__cause__ if isinstance(error.__cause__, Exception) else error
                if not local:  # the hub itself was not reached, so it has no other name either
                    break
            except EntryNotFoundError as error:
                problem = error
            except Exception as error:  # of the network, of the hub, of access to it
                problem = error
                break
    assert problem is not None
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    raise GkdError(
        f"cannot fetch {names[0]} of {repository} from the hub ({first_line(problem)}): run `hf download {repository} "
        f"{names[0]}` where there is a network and copy the folder that it makes to {folder}, or give the file itself "
        "as weights"
    )


@contextlib.contextmanager
def _fetching(what: str) -> Iterator[None]:
    """Say once what is fetched, for the hub's client tries for half a minute; and leave out its line for each try."""
    from huggingface_hub.utils import logging as theirs

    log.warning("fetching %s from the hub", what)
    before = theirs.get_verbosity()
    theirs.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        theirs.set_verbosity(before)


def hub_settings(repository: str) -> tuple[Any, str]:
    """timm's `PretrainedCfg` of a repository on the hub, and the name of the architecture: what its config.json says.

    Raises:
        GkdError: there is no such file, it cannot be fetched, or it describes no network of timm's.
    """
    from timm.models import PretrainedCfg, load_model_config_from_hf

    name, _, revision = repository.partition("@")
    path = hub_file(name, ("config.json",), revision or None)
    try:
        settings, architecture, _ = load_model_config_from_hf(repository)
        return PretrainedCfg(**settings), architecture
    except Exception as error:  # a file of another kind makes timm raise what comes
        raise GkdError(
            f"{path} describes no network of timm's ({type(error).__name__}: {first_line(error)}): give another "
            "repository, or the file of weights itself"
        ) from None


def timm_preprocessing(published: Any) -> Preprocessing:
    """What timm's own transforms do for weights with this `PretrainedCfg`."""
    from timm import data

    library: Any = data
    found = library.resolve_data_config(pretrained_cfg=published.to_dict())
    channels, _, size = found["input_size"]
    mean, std = tuple(found["mean"]), tuple(found["std"])
    return Preprocessing(channels, size, mean, std, interpolation(found["interpolation"]), float(found["crop_pct"]))


def interpolation(name: str) -> str:
    """Ours for that of torchvision's or timm's transforms: what is not bilinear is close to bicubic."""
    return "bilinear" if name == "bilinear" else "bicubic"


def imagenet_classes() -> tuple[str, ...]:
    """ImageNet-1k's thousand classes as torchvision calls them, which has one name for each."""
    from torchvision import models

    categories: list[str] = models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    return tuple(categories)


def _not_fetched(url: str, path: Path, error: Exception) -> str:
    return f"cannot fetch {url} ({first_line(error)}): try again, or put that file at {path} yourself"
