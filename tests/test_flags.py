"""Flags, ``--set`` and YAML keys made from the dataclasses of settings."""

import argparse
import dataclasses
import subprocess
import sys
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import yaml

from echostream import cli
from echostream.config import (
    BacklogConfig,
    EchoStreamConfig,
    PolicyConfig,
    Settings,
    SpeechConfig,
    add_setting_args,
    from_dict,
    given_settings,
    overlay,
    preset,
    read_settings,
    setting_flags,
    settings_from_args,
    settings_of,
    to_dict,
)
from echostream.config.fields import setting
from echostream.evaluation.grid.definition import change_settings, load_grid

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "eval_configs").rglob("*.yaml"))
COMMANDS = {
    "translate": ["translate", "a.wav", "--out", "b.wav"],
    "listen": ["listen"],
    "serve": ["serve"],
    "soak": ["soak", "--output", "o"],
    "evaluate": ["evaluate", "grid.yaml"],
    "bench": ["bench", "tiny"],
}
# Every setting with another value than its default, as it is written on a command line.
CHANGED = {
    "policy.name": "wait_k",
    "policy.lagging_k1": "2",
    "policy.stride_n": "3",
    "policy.segment_size": "640",
    "policy.whole_word": "off",
    "policy.target_per_source": "0.5",
    "policy.max_len": "50",
    "policy.attention_frames": "4",
    "policy.attention_layer": "1",
    "policy.transcript": "head",
    "endpoint.method": "pause",
    "endpoint.endpoint_ms": "800",
    "endpoint.min_tokens": "5",
    "endpoint.max_sentence_ms": "9000",
    "endpoint.text_end_tokens": "1",
    "endpoint.text_end_score": "-3.5",
    "backlog.max_ms": "1500",
    "backlog.max_speed": "1.25",
    "speech.whole_words": "on",
    "speech.fill_chunks": "1.5",
    "speech.min_speed": "0.9",
    "speech.min_piece_ms": "640",
    "speech.voice": "shipped",
    "speech.voice_words": "3",
    "speech.voice_ahead": "4",
}
# Names that scripts, configurations and users know.
KNOWN = (
    "--policy --lagging-k1 --stride-n --segment-size --whole-word --max-len --endpoint "
    "--endpoint-ms --max-sentence-ms --text-end-tokens --max-backlog-ms --speak-whole-words "
    "--fill-chunks --min-speed --min-piece-ms"
).split()


def parser_of(kind=Settings):
    parser = argparse.ArgumentParser()
    add_setting_args(parser, kind)
    return parser


def all_keys():
    return [f"{s.name}.{f.name}" for s in fields(Settings) for f in fields(s.default_factory)]


def flag_of():
    return {one.key: one.flag for one in settings_of()}


def test_every_field_has_a_flag():
    assert list(flag_of()) == all_keys() == list(CHANGED)
    options = parser_of()._option_string_actions
    assert set(flag_of().values()) <= set(options) and set(KNOWN) <= set(options)
    assert all(options[flag].help for flag in flag_of().values())


def test_sections_are_those_of_the_whole_configuration():
    whole = {f.name: f for f in fields(EchoStreamConfig)}
    for section in fields(Settings):
        assert whole[section.name].default_factory is section.default_factory


def test_flags_assignments_and_yaml_say_the_same():
    flags = [part for key, text in CHANGED.items() for part in (flag_of()[key], text)]
    assigned = [part for key, text in CHANGED.items() for part in ("--set", f"{key}={text}")]
    by_flag = settings_from_args(parser_of().parse_args(flags), preset("tiny"))
    assert by_flag == settings_from_args(parser_of().parse_args(assigned), Settings())
    for key in all_keys():
        section, name = key.split(".")
        changed, default = (getattr(getattr(s, section), name) for s in (by_flag, Settings()))
        assert changed != default, key
    text = "\n".join(f"{flag_of()[k][2:].replace('-', '_')}: {v}" for k, v in CHANGED.items())
    assert overlay(Settings(), read_settings(yaml.safe_load(text), "x")) == by_flag
    dotted = yaml.safe_load("\n".join(f"{key}: {value}" for key, value in CHANGED.items()))
    assert overlay(Settings(), read_settings(dotted, "x")) == by_flag
    assert setting_flags(dotted, "x") == flags


@pytest.mark.parametrize("key", ["policy.whole_word", "speech.whole_words"])
def test_texts_stand_for_their_values(key):
    (one,) = (s for s in settings_of() if s.key == key)
    for word, value in one.words.items():
        assert one.parse(word) is value and one.text(value) == word


def test_what_is_not_given_stays():
    config = replace(preset("tiny"), policy=PolicyConfig(lagging_k1=2), speech=SpeechConfig(True))
    assert settings_from_args(parser_of().parse_args([]), config) == Settings.of(config)
    args = parser_of().parse_args(["--stride-n", "4", "--whole-word", "auto"])
    assert given_settings(args) == {"policy.stride_n": 4, "policy.whole_word": None}
    found = settings_from_args(args, config)
    assert found == replace(Settings.of(config), policy=PolicyConfig(lagging_k1=2, stride_n=4))
    # The last one counts, flag or assignment.
    twice = ["--stride-n", "4", "--set", "policy.stride_n=5", "--set", "policy.stride_n=6"]
    assert given_settings(parser_of().parse_args(twice)) == {"policy.stride_n": 6}
    assert given_settings(parser_of().parse_args([*twice, "--stride-n", "7"])) == {
        "policy.stride_n": 7
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--stride-n", "0"], "--stride-n: policy.stride_n must be an integer >= 1, got '0'"),
        (["--stride-n", "two"], "policy.stride_n must be an integer >= 1, got 'two'"),
        (["--fill-chunks", "nan"], "speech.fill_chunks must be a number >= 0, got 'nan'"),
        (["--min-speed", "1.5"], "speech.min_speed must be a number between 0.5 and 1, got '1.5'"),
        (
            ["--policy", "ct"],
            "policy.name must be one of ctc, wait_k, wait_k_ctc, local_agreement, alignatt",
        ),
        (["--whole-word", "True"], "policy.whole_word must be one of auto, on, off, got 'True'"),
        (["--speak-whole-words", "auto"], "must be one of on, off, got 'auto'"),
        (["--set", "policy.stride_n"], "--set: expected SECTION.NAME=VALUE, got 'policy.stride_n'"),
        (["--set", "policy.stride_n=2.5"], "policy.stride_n must be an integer >= 1, got '2.5'"),
        (
            ["--set", "vocoder.rate=3"],
            "unknown section 'vocoder' in 'vocoder.rate'; sections are policy, endpoint, backlog, ",
        ),
        (
            ["--set", "backlog.max=3"],
            "unknown setting 'max' in 'backlog.max'; backlog has max_ms, max_speed",
        ),
        (["--set", "stride_n=3"], "unknown section 'stride_n'"),
    ],
)
def test_mistakes_are_named(flags, message, capsys):
    with pytest.raises(SystemExit):
        parser_of().parse_args(flags)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strid_n": 2}, "here: unknown setting 'strid_n'; known: policy, lagging_k1, stride_n"),
        ({"policy.strid_n": 2}, "here: unknown setting 'strid_n' in 'policy.strid_n'; policy has "),
        ({"stride_n": 2.5}, "here: policy.stride_n must be an integer >= 1, got '2.5'"),
        ({"stride_n": True}, "here: policy.stride_n must be an integer >= 1, got True"),
        ({"stride_n": None}, "here: policy.stride_n must be an integer >= 1, got None"),
        ({"stride_n": [2]}, "here: policy.stride_n must be an integer >= 1, got"),
        ({"policy": {"stride_n": 2}}, "here: policy.name must be one of ctc, wait_k, wait_k_ctc"),
    ],
)
def test_mistakes_in_yaml_are_named(values, message):
    with pytest.raises(ValueError) as error:
        read_settings(values, "here")
    assert message in str(error.value)


def test_yaml_takes_off_for_a_boolean_and_is_understood_all_the_same():
    values = yaml.safe_load("{endpoint: off, whole_word: on, speak_whole_words: off}")
    assert read_settings(values, "x") == {
        "endpoint.method": "off",
        "policy.whole_word": True,
        "speech.whole_words": False,
    }


@dataclass(frozen=True)
class ToyPolicy(PolicyConfig):
    """A policy with settings of its own: fields, and nothing else."""

    frames: int = setting(4, "newest frames that must stay unseen", at_least=1, may_be_missing=True)
    head: Literal["mean", "max"] = setting("mean", "which attention", flag="attention-head")
    layer: int | None = setting(None, "which layer; none: the last", at_least=0)


@dataclass(frozen=True)
class ToySettings(Settings):
    policy: ToyPolicy = field(default_factory=ToyPolicy)


def test_a_new_field_is_a_flag():
    parser = parser_of(ToySettings)
    assert "newest frames that must stay unseen" in parser.format_help()
    args = parser.parse_args(
        ["--frames", "2", "--attention-head", "max", "--set", "policy.layer=3"]
    )
    found = settings_from_args(args, ToySettings(), ToySettings)
    assert found.policy == ToyPolicy(frames=2, head="max", layer=3)
    back = overlay(found, read_settings({"layer": "none"}, "x", ToySettings))
    assert back.policy.layer is None
    with pytest.raises(ValueError, match="policy: frames must be >= 1, got 0"):
        ToyPolicy(frames=0)
    old = {key: v for key, v in to_dict(ToyPolicy()).items() if key != "frames"}
    assert from_dict(ToyPolicy, old) == ToyPolicy(), "older model directories still load"


def test_a_field_that_no_flag_can_be_made_of_is_noticed():
    @dataclass(frozen=True)
    class Silent(PolicyConfig):
        frames: int = 4

    @dataclass(frozen=True)
    class Listed(PolicyConfig):
        frames: tuple[int, ...] = setting((), "a list")

    @dataclass(frozen=True)
    class Same(PolicyConfig):
        frames: int = setting(4, "another setting's flag", flag="stride-n")

    for policy, message in (
        (Silent, "policy.frames: a setting needs a help text"),
        (Listed, "policy.frames: no flag can be made of tuple"),
        (Same, "policy.frames and policy.stride_n have one flag, --stride-n"),
    ):
        kind = dataclasses.make_dataclass(
            "Kind",
            [("policy", policy, field(default_factory=policy))],
            bases=(Settings,),
            frozen=True,
        )
        with pytest.raises(TypeError, match=message):
            settings_of(kind)


def test_bounds_hold_without_flags_too():
    with pytest.raises(ValueError, match="policy: stride_n must be >= 1, got 0"):
        PolicyConfig(stride_n=0)
    with pytest.raises(ValueError, match="backlog: max_speed must be between 1 and 3, got nan"):
        BacklogConfig(max_speed=float("nan"))


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_that_decides_has_every_flag(command):
    parser = cli.build_parser()
    flags = [part for key, text in CHANGED.items() for part in (flag_of()[key], text)]
    args = parser.parse_args([*COMMANDS[command], *flags, "--threads", "2"])
    assert len(given_settings(args)) == len(CHANGED) and args.threads == 2


def test_the_agents_have_every_flag_under_simuleval():
    pytest.importorskip("simuleval")
    from simuleval import options

    from echostream.agents.echostream_s2st import EchoStreamS2STAgent

    parser = options.general_parser()
    EchoStreamS2STAgent.add_args(parser)
    flags = [part for key, text in CHANGED.items() for part in (flag_of()[key], text)]
    args, unknown = parser.parse_known_args(["--model-dir", "m", *flags])
    assert len(given_settings(args)) == len(CHANGED) and not unknown


def test_translate_decides_as_it_is_told(model_dir, tmp_path, monkeypatch):
    import soundfile

    from echostream.live import ends
    from echostream.synthetic import synthetic_clip

    soundfile.write(tmp_path / "in.wav", synthetic_clip(1.0, 16000, seed=1), 16000)
    made = []

    class Noted(ends.Pipeline):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(ends, "Pipeline", Noted)
    command = ["translate", str(tmp_path / "in.wav"), "--model-dir", str(model_dir)]
    command += [
        "--out",
        str(tmp_path / "out.wav"),
        "--policy",
        "wait_k",
        "--set",
        "speech.min_speed=1",
    ]
    assert cli.main([*command, "--endpoint", "pause"]) == 0
    pipeline = made[-1]  # the one that hears streams
    assert pipeline.policy_config.name == "wait_k" and pipeline.speech_config.min_speed == 1.0
    assert pipeline.endpoints.config.method == "pause"


def test_bench_refuses_what_forced_rates_leave_no_room_for(capsys):
    assert cli.main(["bench", "tiny", "--stride-n", "2"]) == 2
    assert "forced rates, which policy.stride_n does not change" in capsys.readouterr().err


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_shipped_configuration_loads(path):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.parent.name == "grids":
        grid = load_grid(path)
        changed = change_settings(grid, {"policy.stride_n": 2, "policy.whole_word": None})
        for system in changed.systems:
            assert setting_flags(system.settings, "x") == [
                "--stride-n",
                "2",
                "--whole-word",
                "auto",
            ]
        assert change_settings(grid, {}) == grid
    elif path.parent.name == "simulstream":
        processor = pytest.importorskip("echostream.simulstream.processor")
        processor.check_config(SimpleNamespace(**content))
    else:
        pytest.importorskip("simuleval")
        from simuleval import options
        from simuleval.utils.agent import get_agent_class_from_dir
        from simuleval.utils.arguments import cli_argument_list

        parser = options.general_parser()
        get_agent_class_from_dir(path.parent, path.name).add_args(parser)
        written = [a for a in cli_argument_list({**content, "stride_n": 2}) if a not in sys.argv]
        args, unknown = parser.parse_known_args(written)
        assert args.model_dir == "model" and given_settings(args) == {"policy.stride_n": 2}
        assert unknown == ["--agent-class", content["agent_class"]] or not unknown


def test_parsers_load_nothing_heavy():
    code = (
        "import sys, echostream.cli\n"
        "echostream.cli.build_parser()\n"
        "heavy = {'torch', 'numpy', 'soundfile', 'tqdm', 'joblib', 'simuleval', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
