"""The page's reading of pictures, under Node, against Pillow: the same bits. Its runtime: what is refused."""

import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gkd_core.data.images import fit, read_image
from gkd_core.errors import GkdError
from gkd_core.export import web_page, web_runtime

WEB = Path(web_page.__file__).with_name("web")
CROPS = ("center", "squash", "border")


def node(script: str, *arguments: str) -> str:
    program = shutil.which("node")
    assert program, "the page's JavaScript is tested under Node, which is not there: apt-get install nodejs npm"
    command = [program, "--input-type=module", "-e", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=WEB, timeout=300).stdout


def scene(width: int, height: int, seed: int) -> Image.Image:
    """Slopes, an edge and noise: something for every frequency."""
    rows, columns = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(seed).integers(0, 60, (height, width, 3))
    slopes = np.stack([rows * 200 // height, columns * 200 // width, (rows + columns) % 200], -1)
    slopes[:, width // 3 : width // 2] = [250, 10, 80]
    return Image.fromarray((slopes + noise).clip(0, 255).astype(np.uint8))


FIT = """
import { readFileSync, writeFileSync } from "node:fs";
import { fit } from "./resample.js";
const folder = process.argv[1];
for (const { file, result, width, height, side, channels, crop } of JSON.parse(readFileSync(`${folder}/cases.json`))) {
  const data = new Uint8Array(readFileSync(`${folder}/${file}`));
  writeFileSync(`${folder}/${result}`, fit({ data, width, height }, side, channels, crop));
}
"""


def test_a_picture_is_resized_to_the_bits_of_pillow(tmp_path: Path) -> None:
    sizes = [(97, 61, 32), (61, 97, 32), (20, 9, 32), (32, 32, 32), (33, 32, 32), (64, 64, 32), (31, 47, 8)]
    sizes += [(1, 40, 16), (40, 1, 16), (301, 3, 24), (127, 126, 125), (250, 333, 224)]
    cases: list[dict[str, Any]] = []
    for number, (width, height, side) in enumerate(sizes):
        for channels in (1, 3):
            image = scene(width, height, number).convert("RGB" if channels == 3 else "L")
            file = f"{number}-{channels}.bin"
            (tmp_path / file).write_bytes(np.asarray(image).tobytes())
            facts = {"file": file, "width": width, "height": height, "side": side, "channels": channels}
            for crop in CROPS:
                cases.append({**facts, "crop": crop, "result": f"{number}-{channels}-{crop}.bin"})
                (tmp_path / f"{number}-{channels}-{crop}.pillow").write_bytes(
                    fit(image, side, channels, crop).tobytes()
                )
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    node(FIT, str(tmp_path))
    for case in cases:
        result = tmp_path / case["result"]
        assert result.read_bytes() == result.with_suffix(".pillow").read_bytes(), case


JPEG = """
import { readFileSync, writeFileSync } from "node:fs";
import { readJpeg } from "./picture.js";
const folder = process.argv[1];
const library = new WebAssembly.Module(readFileSync(`${folder}/jpeg.wasm`));
for (const { file, side, channels, crop } of JSON.parse(readFileSync(`${folder}/cases.json`))) {
  const bytes = new Uint8Array(readFileSync(`${folder}/${file}`));
  writeFileSync(`${folder}/${file}.bin`, readJpeg(bytes, { side, channels, crop }, library));
}
"""


@pytest.fixture(scope="module")
def runtime(web_files: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in web_files.iterdir()}


def test_a_jpeg_is_read_to_the_bits_of_pillow_however_it_was_written_and_turned(
    tmp_path: Path, runtime: dict[str, bytes]
) -> None:
    (tmp_path / "jpeg.wasm").write_bytes(runtime["jpeg.wasm"])
    cases: list[dict[str, Any]] = []
    written: list[dict[str, Any]] = [
        {"subsampling": 0, "quality": 95},
        {"subsampling": 1, "quality": 85},
        {"subsampling": 2, "quality": 75},
        {"subsampling": 2, "quality": 60, "progressive": True},
        {"subsampling": 2, "quality": 75, "restart_marker_rows": 1},
    ]
    for number, options in enumerate(written):
        for side in (200, 90, 40, 16):  # decoded whole, at a half, at a quarter, at an eighth
            file = f"{number}-{side}.jpg"
            scene(413, 387, number).save(tmp_path / file, **options)
            cases.append({"file": file, "side": side, "channels": 3 if number else 1, "crop": CROPS[number % 3]})
    scene(413, 387, 9).convert("L").save(tmp_path / "grey.jpg")
    cases.append({"file": "grey.jpg", "side": 32, "channels": 3, "crop": "center"})
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        scene(300, 180, turn).save(tmp_path / f"turned-{turn}.jpg", exif=exif)
        cases.append({"file": f"turned-{turn}.jpg", "side": 50, "channels": 3, "crop": "squash"})
    said = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    scene(300, 180, 3).save(tmp_path / "xmp.jpg", xmp=said)
    cases.append({"file": "xmp.jpg", "side": 50, "channels": 3, "crop": "center"})
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    node(JPEG, str(tmp_path))
    for case in cases:
        expected = read_image(tmp_path / case["file"], case["side"], case["channels"], crop=case["crop"])
        assert (tmp_path / f"{case['file']}.bin").read_bytes() == expected.tobytes(), case


def test_the_runtime_is_a_few_files_of_pinned_archives(runtime: dict[str, bytes]) -> None:
    assert set(runtime) == set(web_page.RUNTIME)
    assert runtime["ort.wasm"][:4] == runtime["jpeg.wasm"][:4] == b"\0asm"
    assert b"ONNX Runtime Web v1.30.0" in runtime["ort.js"][:200]


def archive(path: Path, content: bytes = b"another") -> Path:
    with tarfile.open(path, "w:gz") as members:
        entry = tarfile.TarInfo("package/jpeg-turbo.wasm")
        entry.size = len(content)
        members.addfile(entry, io.BytesIO(content))
    return path


def npm(folder: Path, script: str) -> str:
    """A folder for PATH in which npm does this."""
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    return str(folder)


def test_what_is_not_the_pinned_archive_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = archive(tmp_path / "cwasm-jpeg-turbo-0.1.3.tgz")
    with pytest.raises(GkdError, match=r"cwasm-jpeg-turbo-0\.1\.3\.tgz is none of the archives.*sha512"):
        web_runtime.read_runtime([other])
    with pytest.raises(GkdError, match=r"nothing\.tgz cannot be read"):
        web_runtime.read_runtime([tmp_path / "nothing.tgz"])
    monkeypatch.setenv("PATH", npm(tmp_path / "none", "") + "/missing")
    with pytest.raises(GkdError, match=r"there is no npm.*`npm pack onnxruntime-web@1\.30\.0`.*--web-runtime"):
        web_runtime.read_runtime()
    monkeypatch.setenv("PATH", npm(tmp_path / "fails", "echo 'npm error code E404' >&2; exit 1") + ":/bin")
    with pytest.raises(GkdError, match=r"npm could not fetch onnxruntime-web 1\.30\.0 .npm error code E404"):
        web_runtime.read_runtime()
    monkeypatch.setenv("PATH", npm(tmp_path / "lies", f"cp {other} $5/onnxruntime-web-1.30.0.tgz") + ":/bin")
    with pytest.raises(GkdError, match=r"another onnxruntime-web-1\.30\.0\.tgz than gkd was tested with"):
        web_runtime.read_runtime()
