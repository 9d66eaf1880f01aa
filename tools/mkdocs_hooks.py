"""MkDocs hooks that add files outside ``docs/`` to the site if a page links to them.

Pages link to files of the repository by relative paths (``../cluster.yaml``), which work in a checkout and on any code
host. Linked Markdown files become pages, and other linked files become downloads, both under ``project/``. A link to a
missing file is a warning, which ``mkdocs build --strict`` treats as an error.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mkdocs.structure.files import File, InclusionLevel

logger = logging.getLogger("mkdocs.plugins.fgst")

ROOT = Path(__file__).parents[1]
PREFIX = "project/"
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
CODE = re.compile(r"(^```.*?^```|`[^`\n]*`)", re.MULTILINE | re.DOTALL)


def to_site(path: str) -> str:
    """Return the path in the site of a file of the repository."""
    return path.removeprefix("docs/") if path.startswith("docs/") else PREFIX + path


def to_repository(site_path: str) -> str:
    """Return the path in the repository of a file of the site: the inverse of :func:`to_site`."""
    return site_path.removeprefix(PREFIX) if site_path.startswith(PREFIX) else f"docs/{site_path}"


def target_of(link: str, page: str) -> tuple[str, str] | None:
    """Return the file of the repository that a link on ``page`` refers to, and the anchor.

    Returns:
        ``None`` for links to the web and to anchors of the same page.
    """
    parts = urlsplit(link)
    if parts.scheme or parts.netloc or not parts.path:
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), parts.path)), parts.fragment


def links(text: str, page: str) -> list[str]:
    """Return the files of the repository that a page links to, without links in code."""
    prose = "".join(CODE.split(text)[::2])
    targets = (target_of(match[2], page) for match in LINK.finditer(prose))
    return [target[0] for target in targets if target is not None]


def on_files(files: Any, config: Any) -> Any:
    """Add all files outside ``docs/`` that are linked from a page or from a linked Markdown file."""
    pages = [to_repository(file.src_uri) for file in files.documentation_pages()]
    seen = set(pages)
    while pages:
        page = pages.pop()
        for target in links((ROOT / page).read_text(encoding="utf-8"), page):
            if target in seen:
                continue
            seen.add(target)
            if not (ROOT / target).exists() or target.startswith(".."):
                logger.warning("%s links to %s, which does not exist", page, target)
            elif not target.startswith("docs/") and (ROOT / target).is_file():
                # NOT_IN_NAV: included whether or not mkdocs.yml lists it, even if its name starts with a dot.
                files.append(
                    File.generated(
                        config,
                        to_site(target),
                        abs_src_path=str(ROOT / target),
                        inclusion=InclusionLevel.NOT_IN_NAV,
                    )
                )
                if target.endswith(".md"):
                    pages.append(target)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Replace the targets of links by the files of the site, and links to folders by plain text."""
    source = to_repository(page.file.src_uri)
    page_folder = os.path.dirname(page.file.src_uri) or "."

    def replace(match: re.Match[str]) -> str:
        target = target_of(match[2], source)
        if target is None:
            return match[0]
        path, anchor = target
        site_path = os.path.relpath(to_site(path), page_folder)
        return f"{match[1]}{site_path}{'#' + anchor if anchor else ''}{match[3]}"

    parts = CODE.split(markdown)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", lambda m: folder_as_text(m, source), parts[i])
        parts[i] = LINK.sub(replace, parts[i])
    return "".join(parts)


def folder_as_text(match: re.Match[str], source: str) -> str:
    """Return the text of a link to a folder of the repository; return any other link unchanged."""
    target = target_of(match[2], source)
    return match[1] if target is not None and (ROOT / target[0]).is_dir() else match[0]
