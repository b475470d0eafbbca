"""The description that a package index shows: README.md without what only a checkout can show, its pictures and pages."""

import re
from pathlib import Path

from setuptools import setup

text = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
text = re.sub(r"^!\[[^\]]*\]\((?!https:)[^)]*\)\n+", "", text, flags=re.MULTILINE)
text = re.sub(r"\[([^\]]*)\]\((?!https:)[^)]*\)", r"\1", text)
setup(long_description=text, long_description_content_type="text/markdown")
