"""The folder web/ of a bundle: a page that classifies pictures in the browser, from any server of static files.

Its look is the served page's (gkd_core/serving/page). Where Node is installed the model first answers in the page's own
runtime, and what it answers is compared with onnxruntime's.
"""

import json
import shutil
import subprocess
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from gkd_core.data.images import Crop
from gkd_core.errors import GkdError
from gkd_core.export.manifest import decision_of
from gkd_core.export.session import as_input, first_line, session
from gkd_core.files import Shape, expect_shape, write_bytes, write_json
from gkd_core.serving.classify import softmax

OURS = ("camera.css", "index.html", "jpeg.js", "licences.txt", "measure.js", "model.js", "package.json", "page.js",
        "picture.js", "resample.js")  # fmt: skip
SERVED = ("icon.svg", "page.css", "view.js")  # of the page of `gkd serve`
RUNTIME = ("jpeg.wasm", "ort.js", "ort.wasm")
FACTS = "facts.json"
TOLERANCE = 1e-3  # of a probability: beyond it the browser would be another model
SECONDS = 600
MEASURED: Shape = {
    "load_ms": float,
    "median_ms": float,
    "p95_ms": float,
    "runs": int,
    "node": str,
    "processor": str,
    "asked": {"logits": [float], "probabilities": [float]},
}


def write_page(
    folder: Path,
    *,
    name: str,
    model: Path,
    manifest: Mapping[str, Any],
    entry: Mapping[str, Any],
    precision: str,
    crop: Crop,
    runtime: Mapping[str, bytes],
) -> dict[str, Any]:
    """Write the page into a new folder.

    Args:
        name: the model's, for people.
        model: the ONNX file that answers, described by `entry`, the manifest's for its `precision`.
        crop: how a picture is made a square for it.
        runtime: what `gkd_core.export.web_runtime.read_runtime` gave.
    Returns:
        size_bytes of the folder, model_bytes and runtime_bytes of it; `measured`: what Node measured (`MEASURED`), None
        where there is no Node.
    Raises:
        GkdError: the model does not answer in the page's runtime as it does in onnxruntime.
    """
    form, shape = manifest["model"]["input"], manifest["model"]["input_shape"]
    side, channels = (shape[0], shape[2]) if form == "uint8_nhwc" else (shape[1], shape[0])
    folder.mkdir()
    for package, names in (("gkd_core.export", OURS), ("gkd_core.serving", SERVED)):
        place = resources.files(package) / ("web" if names is OURS else "page")
        for file in names:
            text = (place / file).read_text(encoding="utf-8")
            write_bytes(folder / file, (text.replace("{{name}}", name) if file == "index.html" else text).encode())
    for file in RUNTIME:
        write_bytes(folder / file, runtime[file])
    shutil.copyfile(model, folder / model.name)
    decision = decision_of(manifest, precision)
    write_json(
        folder / FACTS,
        {
            "name": name,
            "classes": manifest["classes"],
            "file": model.name,
            "input": form,
            "input_name": manifest["model"]["input_name"],
            "output": manifest["model"]["output"],
            "side": side,
            "channels": channels,
            "crop": crop,
            "rule": "" if decision is None else next(decision.words()),
            "lineage": [
                manifest["network"],
                f"distilled by {manifest['method']}",
                precision,
                f"model {entry['sha256'][:12]}",
                f"data {manifest['data_sha256'][:12]}",
            ],
        },
    )
    measured = _measured(folder, model, side, channels)
    return {
        "size_bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "model_bytes": model.stat().st_size,
        "runtime_bytes": sum(len(runtime[file]) for file in RUNTIME),
        "measured": measured,
    }


def _measured(folder: Path, model: Path, side: int, channels: int) -> dict[str, Any] | None:
    """What measure.js says, once it is sure that the model answered as it does in onnxruntime."""
    node = shutil.which("node")
    if node is None:
        return None
    try:
        result = subprocess.run(
            [node, "measure.js"], cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=True
        )
        measured: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1][:300]
        raise GkdError(f"{model.name} does not run in the page's runtime ({reason}): leave out --web") from None
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        raise GkdError(
            f"node could not measure the page ({first_line(error)}): see to node, or leave out --web"
        ) from None
    expect_shape(folder / "measure.js", measured, MEASURED)
    places = np.arange(side * side * channels)
    pixels = ((places * 89 + (places >> 8) * 57) & 255).astype(np.uint8).reshape(1, side, side, channels)
    opened, asked = session(model), measured["asked"]
    names = [output.name for output in opened.get_outputs()]
    given = opened.run(names, {opened.get_inputs()[0].name: as_input(opened, pixels)})
    outputs = dict(zip(names, given, strict=True))
    expected = outputs["probabilities"] if "probabilities" in outputs else softmax(outputs["logits"])
    difference = float(np.abs(expected - np.array([asked["probabilities"]], np.float32)).max())
    wrong = "" if difference <= TOLERANCE else f"probabilities differ by {difference:.2g}, and at most {TOLERANCE:g}"
    if "decision" in outputs and asked.get("decision") != int(outputs["decision"][0]):
        wrong = f"it decides {asked.get('decision')}, and {outputs['decision'][0]}"
    if wrong:
        raise GkdError(
            f"{model.name} answers otherwise in a browser than in onnxruntime: {wrong} is meant: take another "
            "--precision, or leave out --web"
        )
    return measured
