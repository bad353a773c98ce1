"""The layers of packages and who may import whom, read from the source (docs/architecture.md)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LONGEST_FILE = 600
# Layers from the lowest up, with their packages (or files): the longest prefix decides. A package
# may import itself and those of lower layers. Packages of one layer do not know each other.
LAYERS = [
    {"config": ("echostream.config",), "version": ("echostream",)},
    {
        "basics": (
            "echostream.arrays",
            "echostream.audio",
            "echostream.files",
            "echostream.int8_storage",
            "echostream.processes",
            "echostream.restricted_unpickler",
            "echostream.samples",
            "echostream.streaming",
            "echostream.text",
            "echostream.threads",
            "echostream.torch_files",
        ),
        # What a model is called and where it lies.
        "names": ("echostream.assets", "echostream.hub.table", "echostream.hub.names"),
    },
    {
        "layers": (
            "echostream.models.cache_limits",
            "echostream.models.kv_cache",
            "echostream.models.module_list",
            "echostream.models.transformer_layer",
            "echostream.models.emformer_layer",
            "echostream.models.causal_convolution",
            "echostream.models.distance_bias",
            "echostream.models.first_feed_forward",
            "echostream.models.chunk_conv",
            "echostream.models.chunk_conformer_layer",
        ),
    },
    {
        "encoders": (
            "echostream.models.encoder",
            "echostream.models.echostream_encoder",
            "echostream.models.whisper_stem",
            "echostream.models.chunk_conformer_encoder",
            "echostream.models.encoder_exchange",
        ),
        "decoders": ("echostream.models.decoders",),
    },
    {
        "model": (
            "echostream.models.echostream_model",
            "echostream.models.ctc_output",
            "echostream.models.text_states",
        ),
        "voice": ("echostream.voice",),
    },
    {"acceleration": ("echostream.acceleration",)},
    {
        "checkpoint": ("echostream.checkpoint", "echostream.precision"),
        "streams": ("echostream.translator",),
    },
    {
        "pipeline": (
            "echostream.translator.stream",
            "echostream.translator.pipeline",
            "echostream.translator.state",
            "echostream.speaking",
            "echostream.synthetic",
            "echostream.voice.speaker",
        ),
        "distillation": ("echostream.distillation",),
    },
    {"session": ("echostream.session",)},
    {"onnx": ("echostream.acceleration.onnx",)},
    {"evaluation": ("echostream.evaluation",)},
    {"streamspeech": ("echostream.streamspeech",), "whisper": ("echostream.whisper",)},
    {
        "agents": ("echostream.agents",),
        "training": ("echostream.training",),
        "fairseq_plugin": ("echostream.fairseq_plugin",),
        "live": ("echostream.live",),
        "hub": ("echostream.hub",),
        "simulstream": ("echostream.simulstream",),
    },
    {"bench": ("echostream.bench",)},
    {"api": ("echostream.api",)},
    {"commands": ("echostream.cli", "echostream.demo")},
]
# Hold other packages and nothing of their own.
EMPTY_PACKAGES = {"echostream.models", "echostream.acceleration"}
HEAVY = {
    "simuleval": ("agents/", "echostream/evaluation/"),
    "fairseq": ("echostream/fairseq_plugin/",),
}


def module_name(path: str) -> str:
    name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return "echostream.agents" + name.removeprefix("agents") if name.startswith("agents") else name


def read_sources(root: Path) -> dict[str, tuple[str, ast.Module]]:
    """Module name to path and syntax tree of everything installed."""
    found = {}
    for folder in ("echostream", "agents"):
        for path in sorted((root / folder).rglob("*.py")):
            relative = path.relative_to(root).as_posix()
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found[module_name(relative)] = (relative, tree)
    return found


def imported(tree: ast.Module, modules: set[str]) -> set[str]:
    """Modules that a file imports anywhere, those of this project as files."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            submodules = [name for name in inside if name in modules]
            names.update(submodules)
            if len(submodules) < len(inside):
                names.add(node.module)
    return names


def package_of(module: str) -> tuple[int, str] | None:
    """Layer and name of a module's package; the longest prefix decides."""
    best: tuple[int, int, str] | None = None
    for layer, packages in enumerate(LAYERS):
        for package, prefixes in packages.items():
            for prefix in prefixes:
                if module == prefix or module.startswith(prefix + "."):
                    if prefix == "echostream" and module != prefix:
                        continue
                    if best is None or len(prefix) > best[0]:
                        best = (len(prefix), layer, package)
    return None if best is None else best[1:]


def forbidden(sources: dict[str, tuple[str, ast.Module]]) -> list[str]:
    """Imports that the layers do not allow."""
    faults = []
    for module, (path, tree) in sources.items():
        own = package_of(module)
        if own is None:
            continue
        for name in sorted(imported(tree, set(sources))):
            other = package_of(name)
            if other is None or other == own:
                continue
            if other[0] >= own[0]:
                faults.append(f"{path} ({own[1]}) imports {name} ({other[1]})")
    return faults


def circles(sources: dict[str, tuple[str, ast.Module]]) -> list[list[str]]:
    """Import circles between files, found by depth-first search."""
    graph = {
        module: imported(tree, set(sources)) & set(sources) - {module}
        for module, (_, tree) in sources.items()
    }
    found, done, path = [], set(), []

    def visit(module: str) -> None:
        if module in path:
            found.append([*path[path.index(module) :], module])
            return
        if module in done:
            return
        path.append(module)
        for name in sorted(graph[module]):
            visit(name)
        path.pop()
        done.add(module)

    for module in sorted(graph):
        visit(module)
    return found


@pytest.fixture(scope="module")
def sources():
    return read_sources(ROOT)


def test_every_module_has_a_package(sources):
    unplaced = [name for name in sources if package_of(name) is None and name not in EMPTY_PACKAGES]
    assert not unplaced


def relative_imports(sources: dict[str, tuple[str, ast.Module]]) -> list[str]:
    """Places with ``from .x import y``, whose names say nothing of the package they come from."""
    return [
        f"{path}:{node.lineno}"
        for path, tree in sources.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]


def test_imports_name_their_module_in_full(sources):
    assert not relative_imports(sources)


@pytest.mark.parametrize("line", ["from .session import Session", "from . import session"])
def test_a_relative_import_is_noticed(sources, line):
    path, tree = sources["echostream.translator.pipeline"]
    changed = ast.Module(body=[*tree.body, *ast.parse(line).body], type_ignores=[])
    assert relative_imports({**sources, "echostream.translator.pipeline": (path, changed)})


def test_imports_go_one_way(sources):
    assert not forbidden(sources)


def test_there_is_no_import_circle(sources):
    assert not circles(sources)


def test_heavy_frameworks_stay_behind_their_doors(sources):
    for path, tree in sources.values():
        for name in imported(tree, set(sources)):
            folders = HEAVY.get(name.split(".")[0])
            assert folders is None or path.startswith(folders), f"{path} imports {name}"


def test_policy_imports_configuration_alone(sources):
    _, tree = sources["echostream.models.decoders.ctc_decoder_policy"]
    names = [n for n in imported(tree, set(sources)) if n.startswith("echostream")]
    assert names == ["echostream.config"]


def test_decoders_do_not_import_encoders(sources):
    for module, (path, tree) in sources.items():
        if module.startswith("echostream.models.decoders."):
            assert not [
                n
                for n in imported(tree, set(sources))
                if "encoder" in n.rsplit(".", 1)[-1] and "decoder" not in n
            ], path


def test_no_file_is_too_long(sources):
    scripts = [path.relative_to(ROOT).as_posix() for path in (ROOT / "scripts").glob("*.py")]
    for path in [*(path for path, _ in sources.values()), *scripts]:
        lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
        assert lines <= LONGEST_FILE, f"{path} has {lines} lines"


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("echostream.translator.pipeline", "from echostream.session import Session"),
        ("echostream.session", "import echostream.evaluation.runs.run_folder"),
        ("echostream.models.decoders.vocoder", "from echostream.models import echostream_model"),
        (
            "echostream.translator.stream",
            "def f():\n    from echostream.streamspeech import recompute",
        ),
        ("echostream.translator.endpoint", "from echostream import checkpoint"),
    ],
)
def test_a_forbidden_import_is_noticed(sources, module, line):
    path, tree = sources[module]
    changed = ast.Module(body=[*tree.body, *ast.parse(line).body], type_ignores=[])
    assert len(forbidden({**sources, module: (path, changed)})) == len(forbidden(sources)) + 1


def imported_test_modules(files):
    """Imports of one test module by another, which would bind their helpers together."""
    found = []
    for path, tree in files.items():
        for node in ast.walk(tree):
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{a.name}" for a in node.names)]
            parts = [name.split(".") for name in names if name.startswith("tests.")]
            if any(part.startswith("test_") for name in parts for part in name):
                found.append(f"{path}:{node.lineno}")
    return found


def test_tests_share_helpers_not_test_modules():
    """What tests share lies in a conftest.py or in a module that holds no tests."""
    files = {
        path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted((ROOT / "tests").rglob("*.py"))
    }
    assert not imported_test_modules(files)
    line = ast.parse("def f():\n    from tests.live import test_page")
    assert imported_test_modules({"tests/x.py": line}) == ["tests/x.py:2"]


def test_a_circle_is_noticed(sources):
    path, tree = sources["echostream.config.policy"]
    changed = ast.Module(
        body=[*tree.body, *ast.parse("from echostream.config import model_config").body],
        type_ignores=[],
    )
    assert circles({**sources, "echostream.config.policy": (path, changed)})
