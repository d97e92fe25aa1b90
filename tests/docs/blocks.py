"""The fenced blocks of the pages, and a page as one bash script that runs them in order."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/*.md", "docs/reference/*.md", "examples/*/README.md")
    for page in ROOT.glob(pattern)
    if page.name != "CHANGELOG.md"
)
RUN = ("bash", "python")
SHOWN = ("yaml", "text", "json", "toml")
NEEDS = ("cluster", "gpu", "docker", "internet", "object storage")
BLOCK = re.compile(r"(?:^<!-- (needs|run by): ([^>]+?) -->\n)?^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ADDRESS = "localhost:8080"


def name_of(page: Path) -> str:
    """Where a page is, from the root on: several are called README.md."""
    return page.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        line: of the page, on which it begins.
        language: after the fence.
        text: between the fences.
        needs: what is not there in a test, else "".
        run_by: the file that runs it elsewhere, else "".
    """

    line: int
    language: str
    text: str
    needs: str = ""
    run_by: str = ""

    @property
    def runs(self) -> bool:
        """Whether it is run where the page is."""
        return self.language in RUN and not self.needs and not self.run_by


def blocks(text: str) -> list[Block]:
    """The blocks of a page."""
    found = []
    for match in BLOCK.finditer(text):
        marker, value, language, inside = match.groups()
        line = text[: match.start(3)].count("\n") + 1
        found.append(Block(line, language, inside, **({} if marker is None else {marker.replace(" ", "_"): value})))
    return found


def script(page: Path, folder: Path, port: int, smaller: dict[str, str], before_python: str) -> str:
    """Bash that runs the page's blocks, one after another in one shell, and writes the files that its YAML names.

    Args:
        folder: for the page's files; it is also where the shell begins.
        port: of the servers, in place of 8080.
        smaller: pattern → what stands in its place, so that it ends soon.
        before_python: what the page's Python takes for granted.
    """
    lines = [
        "set -euo pipefail",
        'stop() { [ -z "${server:-}" ] || { kill "$server"; wait "$server" || true; }; server=; }',
        "trap stop EXIT",
        # A server is stopped by the next one, or at the end.
        f'serve() {{ stop; gkd serve "$@" --port {port} > serving.out & server=$!',
        '    until grep -q url serving.out; do kill -0 "$server"; sleep 0.1; done; }',
    ]
    python = before_python
    for number, block in enumerate(blocks(page.read_text(encoding="utf-8"))):
        text = block.text.replace(ADDRESS, f"localhost:{port}")
        for pattern, shorter in smaller.items():
            text = re.sub(pattern, shorter, text)
        if block.language == "yaml" and (name := re.match(r"# ([\w-]+\.yaml)\b", text)):
            (folder / name[1]).write_text(text)
        if not block.runs:
            continue
        lines.append(f"echo '== line {block.line}' >&2")
        if block.language == "bash":
            lines.append(re.sub(r"^gkd serve ", "serve ", text, flags=re.MULTILINE))
            continue
        if ADDRESS in block.text:
            lines.append("serve deploy")
        python += f"\n{text}"  # what an earlier block defined is there
        file = folder / f".block-{number}.py"
        file.write_text(python)
        lines.append(f"run-python {shlex.quote(str(file))}")
    return "\n".join(lines) + "\n"
