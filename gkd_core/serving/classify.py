"""From a picture to class names and probabilities, the same for `gkd predict`, the page and /classify."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gkd_core.data.images import Unreadable, read_image
from gkd_core.errors import GkdError
from gkd_core.serving.model import Model
from gkd_core.serving.tensors import Array

NO_PICTURES = "this model does not take square grey or colour pictures: serve it and send it tensors"


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities [B, C] of logits [B, C]."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    probabilities: NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def ranked(logits: NDArray[np.float32], classes: tuple[str, ...], top: int) -> list[list[dict[str, Any]]]:
    """For each image its `top` likeliest classes: [{"class", "probability"}, …], the likeliest first.

    Args:
        logits: [B, C].
        classes: C names.
    """
    return _likeliest(softmax(logits), classes, top)


def answers(model: Model, found: Mapping[str, Array], top: int) -> list[dict[str, Any]]:
    """What a model says of each image: {"predictions": its `top` likeliest classes, as of `ranked`}.

    Where the model decides, their probabilities are the calibrated ones, and beside them are "decision", the class that
    the image is given or None for none of these, and "score", which says how sure the model is.

    Args:
        found: the model's outputs [B, …] by name (`Model.answer`).
    """
    if model.decision is None:
        return [{"predictions": rows} for rows in ranked(found[model.output.name], model.classes, top)]
    likeliest = _likeliest(found["probabilities"].astype(np.float64), model.classes, top)
    return [
        {
            "predictions": rows,
            "decision": model.classes[named] if named >= 0 else None,
            "score": float(f"{score:.6g}"),
        }
        for rows, named, score in zip(likeliest, found["decision"].tolist(), found["score"].tolist(), strict=True)
    ]


def _likeliest(probabilities: NDArray[np.float64], classes: tuple[str, ...], top: int) -> list[list[dict[str, Any]]]:
    rows = []
    for row in probabilities:
        order = np.argsort(-row, kind="stable")[:top]
        rows.append([{"class": classes[i], "probability": round(float(row[i]), 6)} for i in order])
    return rows


def classify_files(model: Model, files: list[Path], top: int) -> list[dict[str, Any]]:
    """What `answers` says of pictures, each brought to the model's size as `gkd prepare` does it.

    Raises:
        GkdError: a file is not there or no picture, or the model does not take pictures.
    """
    if model.picture is None:
        raise GkdError(NO_PICTURES)
    side, channels = model.picture
    rows = []
    for file in files:  # one by one: each is decoded, answered and forgotten
        if not file.is_file():  # one would wait for ever for what a pipe holds
            reason = "it is no file" if file.exists() else "it does not exist"
            raise GkdError(f"{file} is no picture that can be read ({reason}): name an image file")
        try:
            picture = read_image(file, side, channels, crop=model.crop)
        except Unreadable as error:
            raise GkdError(f"{file} is no picture that can be read ({error}): name an image file") from None
        rows += answers(model, model.answer(model.from_pictures(picture[None])), top)
    return rows
