"""What README.md and CONTRIBUTING.md tell the reader to type is typed here.

A block of Python is executed. A block of bash is run from the root of the repository as it stands, except for its
calls of make, which would run the tests from within the tests: of those the target must exist and resolve. A block
that cannot run here has `<!-- not run: reason -->` on the line before it; bash must accept its syntax all the same.
"""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"(?:<!-- not run: (?P<reason>.+?) -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.M | re.S)
MAKE = re.compile(r"^make\b.*$", re.M)


@dataclass
class Block:
    """A fenced block of a document."""

    place: str
    language: str
    code: str
    reason: str | None


def blocks_of(text: str, name: str) -> list[Block]:
    found = FENCE.finditer(text)
    return [
        Block(f"{name}:{text.count(chr(10), 0, each.start('code'))}", each["language"], each["code"], each["reason"])
        for each in found
    ]


BLOCKS = [b for name in ("README.md", "CONTRIBUTING.md") for b in blocks_of((ROOT / name).read_text(), name)]


def blocks_in(language: str):
    chosen = [block for block in BLOCKS if block.language == language]
    return pytest.mark.parametrize("block", chosen, ids=lambda block: block.place)


def run(*command: str) -> None:
    ended = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@blocks_in("bash")
def test_bash(block):
    run("bash", "-n", "-c", block.code)
    for line in MAKE.findall(block.code):
        run("bash", "-euo", "pipefail", "-c", re.sub(r"^make\b", "make --dry-run", line))
    rest = MAKE.sub("", block.code)
    if block.reason is None and rest.strip():
        run("bash", "-euo", "pipefail", "-c", rest)


@blocks_in("python")
def test_python(block):
    compile(block.code, block.place, "exec")
    if block.reason is None:
        run(sys.executable, "-c", block.code)


def test_the_documents_have_blocks_of_known_kinds():
    assert {block.place.split(":")[0] for block in BLOCKS} == {"README.md", "CONTRIBUTING.md"}
    assert {block.language for block in BLOCKS} <= {"bash", "python", "text", "json", "jsonl", "yaml"}


def test_every_fence_is_read():
    for name in ("README.md", "CONTRIBUTING.md"):
        fences = re.findall(r"^```", (ROOT / name).read_text(), re.M)
        assert len(fences) == 2 * sum(block.place.startswith(name) for block in BLOCKS)


def test_a_block_knows_its_language_its_place_and_why_it_is_not_run():
    text = "# A\n\n```bash\nmake x\n```\n<!-- not run: needs a GPU -->\n```python\nx\n```\n"
    bash, python = blocks_of(text, "A.md")
    assert (bash.language, bash.code, bash.reason, bash.place) == ("bash", "make x\n", None, "A.md:3")
    assert (python.language, python.code, python.reason) == ("python", "x\n", "needs a GPU")
