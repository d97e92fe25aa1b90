"""health.html: what `gkd check` found, for people, with the pictures. No script, no address, nothing to fetch."""

import base64
import io
from collections import Counter
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from gkd_core.data.health import KINDS, TWICE, Finding, Health, Look, summary
from gkd_core.data.images import Unreadable, decoded, in_mode, opened
from gkd_core.data.sources.base import SPLITS
from gkd_core.files import write_bytes, write_json

THUMBNAIL = 192  # longer side in pixels; shown at half of it, for dense screens
SHOWN = 24  # findings of a kind with pictures; the others are named
TOGETHER = 6  # pictures of one finding


def write_health(folder: Path, health: Health) -> None:
    """Write health.json and health.html into an existing folder."""
    write_json(folder / "health.json", summary(health))
    write_bytes(folder / "health.html", render(health).encode())


def render(health: Health) -> str:
    """The page as one HTML document of a few MB at most. All names are escaped."""
    environment = Environment(
        loader=PackageLoader("gkd_core.data", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    facts = summary(health)
    return environment.get_template("health.html.j2").render(
        facts=facts,
        splits=[split for split in SPLITS if any(split in counts for counts in facts["classes"].values())],
        most=max((sum(counts.values()) for counts in facts["classes"].values()), default=1),
        left_out=Counter(each.reason for each in health.source.left_out).most_common(),
        left_out_names=health.source.left_out[:1000],
        sections=[_section(health, kind, found) for kind, found in health.by_kind().items()],
        clean=[
            text
            for kind, text in KINDS.items()
            if kind not in health.by_kind() and kind not in ("splits", "label_issues")
        ],
        errors=len(health.errors),
    )


def _section(health: Health, kind: str, found: list[Finding]) -> dict[str, Any]:
    pictures = kind not in ("splits", "unreadable", "few_images")
    return {
        "kind": kind,
        "text": KINDS[kind],
        "error": any(finding.error for finding in found),
        "wide": kind in TWICE,
        "count": len(found),
        "shown": [
            {
                "detail": finding.detail,
                "pictures": [_picture(health, look) for look in finding.looks[:TOGETHER]],
                "more": len(finding.looks) - TOGETHER,
            }
            for finding in found[: SHOWN if pictures else 0]
        ],
        "named": found[SHOWN if pictures else 0 :],
    }


def _picture(health: Health, look: Look) -> dict[str, str]:
    label = health.source.classes[look.label] if look.label >= 0 else "no class"
    return {
        "name": look.name,
        "about": f"{label} · {look.split} · {look.size[0]}\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}{look.size[1]}",
        "address": _thumbnail(health, look),
    }


def _thumbnail(health: Health, look: Look) -> str:
    """The picture as a data address; "" where it cannot be read any more."""
    examples = health.source.splits[look.split]
    try:
        if examples.open is None:
            pixels = examples.read(look.position)
            small = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
        else:
            with examples.open(look.position) as stream, opened(stream) as image:
                small = in_mode(decoded(image, THUMBNAIL), "RGB")
                small.thumbnail((THUMBNAIL, THUMBNAIL))
    except (OSError, Unreadable):
        return ""
    content = io.BytesIO()
    small.save(content, "JPEG", quality=70)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
