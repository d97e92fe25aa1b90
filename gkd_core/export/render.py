"""Files from the templates of a bundle, each format with what makes a text one of its own."""

import re
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from gkd_core.files import write_bytes


def render(template: str, path: Path, facts: dict[str, Any]) -> None:
    """Write what a template of `templates/` makes of the facts; filters are yaml, pbtxt, md and percent.

    Raises:
        jinja2.UndefinedError: the template names a fact that is not there.
    """
    environment = Environment(
        loader=PackageLoader("gkd_core.export", "templates"),
        autoescape=False,  # no HTML here: each format has its own filter
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"yaml": yaml_scalar, "pbtxt": pbtxt_literal, "md": markdown_text, "percent": _percent}
    text = environment.get_template(template).render(**facts)
    # Conditions leave runs of empty lines behind.
    write_bytes(path, (re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n").encode())


def yaml_scalar(value: str) -> str:
    """A string as one double-quoted YAML scalar."""
    return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=float("inf")).strip()


def pbtxt_literal(value: str) -> str:
    """A string as a literal of protobuf's text format: anything but plain ASCII as octal bytes."""
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}" for byte in value.encode())
    return f'"{"".join(plain)}"'


def markdown_text(value: object) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&!$])", r"\\\1", " ".join(str(value).split()))


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"
