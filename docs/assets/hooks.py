"""mkdocs hook: the theme's stand-in for workers comes from elsewhere; the site works without a network, so ours takes its place."""

from __future__ import annotations

from typing import Any

THEIRS = "https://unpkg.com/iframe-worker/shim"


def on_post_page(output: str, page: Any, config: Any) -> str:
    return output.replace(THEIRS, "../" * page.url.count("/") + "assets/file-worker.js")
