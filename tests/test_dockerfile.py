"""The Dockerfile, as far as it can be checked without Docker: instructions, files, shell, and what it pins."""

import fnmatch
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
_LINES = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE)).splitlines()
STEPS = [line.split(None, 1) for line in _LINES if line]
IGNORED = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()


def test_each_instruction_is_one_of_dockers_and_begins_with_an_image() -> None:
    known = {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT", "CMD"}
    assert STEPS[0][0] == "FROM" and {name for name, _ in STEPS} <= known


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    sources = [path for name, rest in STEPS if name == "COPY" for path in rest.split()[:-1]]
    assert "." in sources  # after which all that pip needs is there
    for path in {*sources, "pyproject.toml", "README.md", "LICENSE", "raylign/__init__.py", "training/configs/openmoji.yaml"}:
        assert (ROOT / path).exists()
        rules = [rule.removeprefix("**/") for rule in IGNORED]
        assert path == "." or not any(fnmatch.fnmatch(part, rule) for rule in rules for part in path.split("/"))


def test_its_commands_are_shell_and_use_declared_arguments() -> None:
    declared = {rest.split("=")[0] for name, rest in STEPS if name == "ARG"}
    commands = [rest for name, rest in STEPS if name == "RUN"]
    for command in commands:
        assert subprocess.run(["sh", "-n", "-c", command]).returncode == 0
        assert set(re.findall(r"\$\{?([A-Z_]+)", command)) <= declared
    said = []  # what pip is asked for, with an index and without
    for index in ("", "https://example.org/cpu"):
        script = f'pip() {{ echo "$@"; }}; {commands[0]}'
        environment = {"TORCH_INDEX": index, "PATH": "/usr/bin:/bin"}
        said.append(subprocess.check_output(["sh", "-c", script], cwd=ROOT, env=environment, text=True))
    pins = re.findall(r"^(torch(?:vision)?==\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    assert said[0].split() == ["install", *pins] and len(pins) == 2
    assert said[1].split() == ["install", "--index-url", "https://example.org/cpu", *pins]
