"""Links of the pages that lead out of docs/ work on the site too (a hook of MkDocs, see mkdocs.yml).

The pages are written for a code host, where `[cifar10.yaml](../configs/cifar10.yaml)` opens the file. A site holds what
is in docs/ alone, so each file that a page names so becomes a page of the site that shows it, and the link leads there.
Of a folder that is a page of links to its files.
CONTRIBUTING.md and CHANGELOG.md are pages by themselves.
"""

import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
WHOLE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
HOME = {"README.md": "index.md"}
LANGUAGES = {".yaml": "yaml", ".yml": "yaml", ".py": "python", ".ipynb": "json", ".toml": "toml", ".json": "json"}
LINK = re.compile(r"(\]\()((?![a-z]+:|#|/)[^)\s#]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for each file outside docs/ that a page links to."""
    docs = Path(config.docs_dir)
    for name, address in WHOLE.items():
        files.append(File.generated(config, address, content=(ROOT / name).read_text(encoding="utf-8")))
    pages = [
        (docs / file.src_uri, file.content_string) for file in files.documentation_pages() if not file.generated_by
    ]
    pages += [(ROOT / name, (ROOT / name).read_text(encoding="utf-8")) for name in WHOLE]
    for target in [target for place, text in pages for target in _linked(text, place)]:
        for each in (target, *_inside(target)):
            address = page_of(each, docs)
            if files.get_file_from_path(address) is None:
                files.append(File.generated(config, address, content=shown(each, docs)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page's text with such links led to the pages of this site."""
    docs = Path(config.docs_dir)
    sources = {address: ROOT / name for name, address in WHOLE.items()}
    place = sources.get(page.file.src_uri, docs / page.file.src_uri)
    if page.file.src_uri.startswith("files/"):
        return markdown

    def led(match: re.Match[str]) -> str:
        target = (place.parent / match[2]).resolve()
        if place.is_relative_to(docs) and target.is_relative_to(docs):
            return match[0]  # what is inside is MkDocs' own to check
        address = page_of(target, docs)
        return match[1] + os.path.relpath(address, PurePosixPath(page.file.src_uri).parent) + match[3]

    return LINK.sub(led, markdown)


def page_of(target: Path, docs: Path) -> str:
    """Where the site shows a file of the repository."""
    if target.is_relative_to(docs):
        return target.relative_to(docs).as_posix()
    name = target.relative_to(ROOT).as_posix()
    return WHOLE.get(name) or HOME.get(name) or (f"files/{name}/files.md" if target.is_dir() else f"files/{name}.md")


def shown(target: Path, docs: Path) -> str:
    """A page with the text of a file, or with links to the files of a folder."""
    if target.is_dir():
        here = PurePosixPath(page_of(target, docs)).parent
        links = [(file.relative_to(target), os.path.relpath(page_of(file, docs), here)) for file in _inside(target)]
        return "\n".join([f"# {target.name}", "", *(f"- [{name}]({address})" for name, address in links)]) + "\n"
    text = target.read_text(encoding="utf-8").rstrip("\n")
    fence = "`" * (1 + max((len(found) for found in re.findall(r"`{3,}", text)), default=2))
    name = target.relative_to(ROOT).as_posix()
    return f"# {target.name}\n\n`{name}`\n\n{fence}{LANGUAGES.get(target.suffix, 'text')}\n{text}\n{fence}\n"


def _linked(text: str, place: Path) -> list[Path]:
    """Files of the repository, outside docs/, that a page at `place` links to."""
    found = []
    for match in LINK.finditer(text):
        target = (place.parent / match[2]).resolve()
        if target.is_relative_to(ROOT / "docs"):
            continue
        if not target.is_relative_to(ROOT) or not target.exists():
            raise PluginError(f"{place.relative_to(ROOT)} links to {match[2]}, which is not in the repository")
        found.append(target)
    return found


def _inside(folder: Path) -> list[Path]:
    """Files of a folder, none of a file; without what Python and tools leave there."""
    if not folder.is_dir():
        return []
    left = re.compile(r"(^|/)(\.|__pycache__/)|\.egg-info/")
    found = sorted(file for file in folder.rglob("*") if file.is_file())
    return [file for file in found if not left.search(file.relative_to(folder).as_posix())]
