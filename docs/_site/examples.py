"""`Example:` in a docstring is a section of examples on the site, too (an extension of griffe, see mkdocs.yml).

griffe knows `Examples:` alone, and would show `>>>` after the singular as a quotation.
"""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Reads the singular as the plural, and `Source:` as a note of its own paragraph."""

    def on_object(self, *, obj: griffe.Object, **unused: Any) -> None:
        if obj.docstring is not None:
            text = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"^( *)(Source:)", r"\n\1**\2**", text, flags=re.MULTILINE)
