"""Who may import whom, read from the source."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Later layers may import earlier ones, never back.
LAYERS = [
    ("echostream.config",),
    ("echostream.streaming", "echostream.audio", "echostream.text"),
    (
        "echostream.models.transformer_layer",
        "echostream.models.emformer_layer",
        "echostream.models.chunk_conv",
        "echostream.models.chunk_conformer_layer",
    ),
    (
        "echostream.models.decoders",
        "echostream.models.echostream_encoder",
        "echostream.models.chunk_conformer_encoder",
    ),
    ("echostream.models.echostream_model",),
    ("echostream.checkpoint", "echostream.streamspeech.checkpoint_files", "echostream.streamspeech.settings"),
    ("echostream.streamspeech.convert", "echostream.streamspeech.export", "echostream.streamspeech.frontend"),
    ("echostream.pipeline",),
    ("echostream.streamspeech.recompute", "echostream.streamspeech.search"),
]
ALLOWED = {
    "simuleval": ("agents/", "echostream/evaluation/"),
    "fairseq": ("echostream/fairseq_plugin/",),
}


def sources():
    for folder in ("echostream", "agents"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def module_name(path):
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def layer(module):
    for index, names in enumerate(LAYERS):
        if any(module == name or module.startswith(name + ".") for name in names):
            return index
    return None


def test_heavy_frameworks_stay_behind_their_doors():
    for path, tree in sources():
        for name in imported(tree):
            folders = ALLOWED.get(name.split(".")[0])
            assert folders is None or path.startswith(folders), f"{path} imports {name}"


def test_imports_go_one_way():
    for path, tree in sources():
        own = layer(module_name(path))
        if own is None:
            continue
        for name in imported(tree):
            other = layer(name)
            assert other is None or other <= own, f"{path} imports {name}"


def test_policy_imports_configuration_alone():
    path = ROOT / "echostream/models/decoders/ctc_decoder_policy.py"
    names = [n for n in imported(ast.parse(path.read_text())) if n.startswith("echostream")]
    assert names == ["echostream.config"]


def test_decoders_do_not_import_encoders():
    for path, tree in sources():
        if path.startswith("echostream/models/decoders/"):
            assert not [
                n
                for n in imported(tree)
                if "encoder" in n.rsplit(".", 1)[-1] and "decoder" not in n
            ], path
