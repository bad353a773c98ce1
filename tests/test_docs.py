"""What the documentation names is there: files, anchors, commands, flags, settings."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from echostream.cli import build_parser
from echostream.config import PolicyConfig, Settings, settings_of
from echostream.models.decoders.ctc_decoder_policy import Counts, PolicyState

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "echostream" / "assets").rglob("*.md"),
    ]
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    """What is not code, since code may look like a link."""
    return re.sub(r"`[^`\n]*`", "CODE", BLOCK.sub("", page.read_text("utf-8")))


def anchors(page: Path) -> set[str]:
    """Of the headings, as sites and Git hosts make them."""
    text = BLOCK.sub("", page.read_text("utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    words = (re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in headings)
    return {re.sub(r"\s", "-", heading) for heading in words}


def shell_lines(page: Path) -> list[str]:
    """Commands of the shell blocks, continued lines joined."""
    blocks = [text for kind, text in BLOCK.findall(page.read_text("utf-8")) if kind == "bash"]
    return [line for text in blocks for line in text.replace("\\\n", " ").splitlines()]


def subparsers() -> dict[str, argparse.ArgumentParser]:
    (action,) = (
        action
        for action in build_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return action.choices


COMMANDS = subparsers()
BEFORE = ("time", "/usr/bin/time", "-v", "do", "done", "then")
AGENTS = "".join(path.read_text("utf-8") for path in (ROOT / "agents").glob("*.py"))
SOURCES = "".join(
    path.read_text("utf-8")
    for folder in ("echostream/training", "echostream/evaluation", "scripts")
    for path in (ROOT / folder).rglob("*.py")
)
# SimulEval's own, as its documentation has them.
OF_SIMULEVAL = set(
    "--agent --agent-class --system-dir --user-dir --source --target --output --no-scoring "
    "--source-segment-size --quality-metrics --latency-metrics --computation-aware --score-only "
    "--device".split()
)


def test_pages_are_found():
    assert len(PAGES) > 30 and "README.md" in NAMES and "docs/glossary.md" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    page = ROOT / name
    for target in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name} links to {target}"
        if anchor:
            assert anchor in anchors(file), f"{name} links to {target}"


def calls(line: str) -> list[list[str]]:
    """The programs of a line, each with its arguments, without what stands before a program."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("|&;"):
            found.append([])
        elif found[-1] or not (re.match(r"\w+=", word) or word in BEFORE):
            found[-1].append(word)
    return [call for call in found if call]


@pytest.mark.parametrize("name", NAMES)
def test_commands_and_their_flags_exist(name):
    for line in shell_lines(ROOT / name):
        for program, *arguments in calls(line):
            flags = {word.partition("=")[0] for word in arguments if word.startswith("--")}
            if program == "echostream" and arguments[0] != "--help":
                assert arguments[0] in COMMANDS, f"{name}: {line}"
                flags -= set(COMMANDS[arguments[0]]._option_string_actions)
            elif program == "simuleval":
                flags -= OF_SIMULEVAL | set(COMMANDS["translate"]._option_string_actions)
                flags = {flag for flag in flags if f'"{flag}"' not in AGENTS}
            elif program == "python" and arguments[0].startswith("scripts/"):
                flags = {flag for flag in flags if f'"{flag}"' not in SOURCES}
            else:
                continue
            assert not flags, f"{name}: {line}"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "CHANGELOG.md"])
def test_scripts_exist(name):
    for script in re.findall(r"\b(?:scripts|examples)/\w+\.(?:py|sh)\b", (ROOT / name).read_text()):
        assert (ROOT / script).is_file(), f"{name} names {script}"


@pytest.mark.parametrize("name", NAMES)
def test_extras_exist(name):
    metadata = (ROOT / "pyproject.toml").read_text("utf-8")
    known = set(re.findall(r"^([\w-]+) = \[", metadata, re.MULTILINE))
    for extras in re.findall(r"(?:echostream|'\.|\"\.)\[([\w,-]+)\]", (ROOT / name).read_text()):
        assert set(extras.split(",")) <= known, f"{name} names the extras {extras}"


def test_pages_that_the_source_names_exist():
    folders = ("echostream", "agents", "scripts", "examples", "eval_configs", "tests")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    for file in files:
        if file.suffix in (".py", ".sh", ".yaml", ".js") and file != Path(__file__):
            for page in re.findall(r"\bdocs/[\w/-]+\.md\b", file.read_text("utf-8")):
                assert (ROOT / page).is_file(), f"{file} names {page}"


def test_every_setting_is_described():
    page = (ROOT / "docs/reference/settings.md").read_text("utf-8")
    for setting in settings_of(Settings):
        assert f"| `{setting.flag}` | `{setting.key}` |" in page, setting.key


def test_every_command_is_described():
    page = (ROOT / "docs/reference/commands.md").read_text("utf-8")
    for command in COMMANDS:
        assert f"| `echostream {command}` |" in page, command


def test_the_glossary_has_thirty_terms_with_meaning_and_source():
    lines = (ROOT / "docs/glossary.md").read_text("utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    terms = rows[2:]
    assert len(terms) == 30 and all(len(row) == 3 and all(row) for row in terms)
    names = [row[0].lower() for row in terms]
    assert names == sorted(names)


def test_the_policy_of_the_tutorial_works():
    page = (ROOT / "docs/tutorials/add-a-policy.md").read_text("utf-8")
    code = next(text for kind, text in BLOCK.findall(page) if kind == "python")
    scope: dict = {}
    exec(compile(code, "add-a-policy.md", "exec"), scope)
    decide = scope["decide_cautious"]

    def new(asr, st, written, finished=False, **settings):
        counts = Counts(asr, st, written, 0.0, finished)
        return decide(counts, PolicyState(), PolicyConfig(**settings), False)[0]

    assert new(2, 5, 1).max_new_tokens == 1  # as the page's own test says
    assert new(5, 2, 2).max_new_tokens == 0
    assert new(5, 5, 1, lagging_k1=2).max_new_tokens == 2
    assert new(0, 0, 0, finished=True).until_eos
