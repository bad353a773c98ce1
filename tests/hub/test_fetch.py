"""Released models through the real Hub client and a local server, whole and with everything that
goes wrong on the way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import soundfile
import torch

from echostream import cli
from echostream.checkpoint import load_model_dir, read_provenance
from echostream.hub import fetch, remote
from echostream.hub.fetch import FetchOptions, fetch_released
from echostream.hub.file_checks import WrongBytes, digest_file
from echostream.hub.names import cached_folder, find_model, resolve_model
from echostream.hub.remote import FetchError, Unreachable
from echostream.streamspeech.convert import read_streamspeech
from echostream.synthetic import synthetic_clip
from tests.hub.server import Fault
from tests.hub.stand_in import CHECKPOINT, as_released, build_release, tiny_streamspeech


def left_over(models: Path) -> list[str]:
    """What lies among the models that is no model."""
    hidden = (".fetch.lock", ".accepted-licences.json")
    return [path.name for path in models.iterdir() if path.name not in hidden]


def cached_bytes(store) -> int:
    return sum(p.stat().st_size for p in store.cache_folder.rglob("blobs/*"))


def test_a_release_becomes_a_model_directory(model, release, store, models):
    folder = fetch_released(model)
    assert folder == models / "stand-in-fr-en" == resolve_model("stand-in-fr-en")
    system = load_model_dir("stand-in-fr-en")
    wanted = read_streamspeech(
        release.checkpoint,
        release.data,
        vocoder=release.vocoder,
        vocoder_cfg=release.vocoder_config,
    )
    stored = system.model.state_dict()
    for key, tensor in wanted.model.state_dict().items():
        expected = tensor.half().float() if tensor.is_floating_point() else tensor
        assert torch.equal(stored[key], expected), key
    card = system.config.card
    assert (card.title, card.source_language, card.target_language, card.chunk_ms) == (
        "Stand-in French to English",
        "fr",
        "en",
        320,
    )
    assert card.tasks == ("asr", "s2tt", "s2st") and card.licence == "weights: none stated"


def test_the_directory_says_where_it_came_from(model, release, store):
    told = read_provenance(fetch_released(model))
    files = {one["file"]: one for one in told["files"]}
    assert set(files) == {part.place for part in model.parts}
    checkpoint = files[CHECKPOINT]
    assert checkpoint["sha256"] == digest_file(release.checkpoint).sha256
    assert checkpoint["source"] == f"{model.checkpoint.sources[0]}"
    assert checkpoint["checked_against"] == f"metadata of {store.endpoint}"
    assert files["config_gcmvn.yaml"]["checked_against"] == "EchoStream's table"
    assert files["config_gcmvn.yaml"]["source"].startswith(store.endpoint)
    assert told["licences"] == [{"covers": "weights", "name": "none stated", "where": "nowhere"}]


def test_large_originals_go_unless_they_are_to_stay(model, release, store, models):
    fetch_released(model)
    assert cached_bytes(store) == release.vocoder_config.stat().st_size
    shutil.rmtree(models)
    fetch_released(model, FetchOptions(keep=True))
    assert cached_bytes(store) > release.checkpoint.stat().st_size


def test_what_the_cache_held_before_stays_in_it(model, release, store):
    store.download(model.checkpoint.sources[0])
    fetch_released(model)
    assert cached_bytes(store) >= release.checkpoint.stat().st_size


def test_a_fetched_model_is_not_fetched_again(model, hub, store):
    folder = fetch_released(model)
    before = len(hub.log)
    assert fetch_released(model) == folder and len(hub.log) == before


def test_a_model_of_an_older_table_is_fetched_again(model, hub, store):
    folder = fetch_released(model)
    told = read_provenance(folder)
    told["made_of"][CHECKPOINT] = "hf:someone/else@main/x.pt"
    (folder / "provenance.json").write_text(json.dumps(told))
    before = len(hub.log)
    fetch_released(model)
    assert len(hub.log) > before and not fetch.recipe(model) != read_provenance(folder)["made_of"]


@pytest.mark.parametrize("where", ["GET /linked", "GET /conf/gcmvn.npz"])
def test_a_wrong_byte_is_noticed_before_anything_reads_the_file(
    model, hub, store, models, monkeypatch, where
):
    monkeypatch.setattr(fetch, "read_streamspeech", lambda *a, **k: pytest.fail("it was read"))
    hub.faults.append(Fault(where, spoil=100))
    with pytest.raises(WrongBytes, match="sha256 must be"):
        fetch_released(model)
    assert not left_over(models)
    monkeypatch.undo()


def test_after_a_wrong_byte_the_next_try_succeeds(model, hub, store):
    hub.faults.append(Fault("GET /linked", spoil=100, times=1))
    with pytest.raises(WrongBytes):
        fetch_released(model)
    load_model_dir(fetch_released(model))


def test_a_body_that_is_too_short_is_asked_for_again(model, hub, store, models):
    fault = Fault("GET /linked", shorten=1000, times=2)
    hub.faults.append(fault)
    load_model_dir(fetch_released(model))
    shutil.rmtree(models)
    fault.times = 1000
    with pytest.raises(Unreachable, match="should be of size"):
        fetch_released(model)
    assert not left_over(models)


def test_a_killed_fetch_leaves_nothing_that_looks_whole(model, release, hub, store, models):
    # The client prints a progress bar; the checkpoint stops half way until the process is killed.
    size = release.checkpoint.stat().st_size
    sha256 = digest_file(release.checkpoint).sha256
    hub.faults.append(Fault(f"GET /linked/{sha256}", stall_after=size // 2, times=1))
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "import huggingface_hub.constants as c; c.HF_HUB_CACHE = sys.argv[2]\n"
        "from tests.hub.stand_in import as_released, Release\n"
        "from echostream.hub.fetch import fetch_released\n"
        "fetch_released(as_released(Release(*map(Path, sys.argv[3:]))))\n"
    )
    places = (release.checkpoint, release.data, release.vocoder, release.vocoder_config)
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", program, root, store.cache_folder, *places],
        stderr=subprocess.PIPE,
        env={**os.environ, "HF_HUB_DISABLE_XET": "1"},
    )
    assert hub.stalled.wait(60), process.communicate()[1].decode()
    process.kill()
    process.communicate()
    assert find_model(model.name) is None
    load_model_dir(fetch_released(model))
    assert left_over(models) == [model.name]


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("after", [0, 1, 4_000, 70_000])
def test_a_cut_connection_is_resumed(model, hub, store, after, reset):
    hub.faults += [Fault("GET /linked", cut_after=after, reset=reset, times=2)]
    hub.faults += [Fault("GET /conf/config_gcmvn.yaml", cut_after=10, reset=reset, times=1)]
    load_model_dir(fetch_released(model))


def test_a_server_that_fails_for_a_while_is_waited_for(model, hub, store):
    for where in ("POST /api/models", "HEAD /", "GET /linked", "GET /conf/gcmvn.npz"):
        hub.faults.append(Fault(where, status=503, times=2))
    load_model_dir(fetch_released(model))


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (Fault("POST /api/models/ICTNLP", status=500), Unreachable, "answers 500.*--from FOLDER"),
        (Fault("POST /api/models/ICTNLP", status=401), FetchError, "answers 401.*HF_TOKEN"),
        (Fault("POST /api/models/ICTNLP", status=404), FetchError, "404"),
        (Fault("GET /conf/gcmvn.npz", status=404), FetchError, "gcmvn.npz: the server answers 404"),
        (Fault("GET /conf/gcmvn.npz", status=500), Unreachable, "answers 500"),
    ],
)
def test_what_the_server_refuses_is_one_line(model, hub, store, models, fault, error, message):
    hub.faults.append(fault)
    with pytest.raises(error, match=message) as caught:
        fetch_released(model)
    assert "\n" not in str(caught.value) and not left_over(models)


def test_a_missing_file_and_a_private_repository(model, hub, store):
    repo = hub.repos["ICTNLP/StreamSpeech_Models"]
    repo.token = "theirs"
    with pytest.raises(FetchError, match="private and wants HF_TOKEN"):
        fetch_released(model)
    repo.token = None
    repo.commits[repo.head].clear()
    with pytest.raises(FetchError, match="no such file at that revision"):
        fetch_released(model)


def test_a_token_opens_a_private_repository(model, hub, store, monkeypatch):
    hub.repos["ICTNLP/StreamSpeech_Models"].token = "theirs"
    monkeypatch.setenv("HF_TOKEN", "theirs")
    load_model_dir(fetch_released(model))


def test_without_a_network(model, store, models, monkeypatch):
    nowhere = "http://127.0.0.1:9"
    for name in ("HF_ENDPOINT", "ECHOSTREAM_GITHUB_RAW", "ECHOSTREAM_FAIRSEQ_FILES"):
        monkeypatch.setenv(name, nowhere)
    with pytest.raises(Unreachable, match="--from FOLDER"):
        fetch_released(model)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(Unreachable, match="HF_HUB_OFFLINE is set"):
        fetch_released(model)
    assert not left_over(models)


def test_the_vocoder_comes_from_its_other_place_if_the_hub_lacks_it(model, hub, store, caplog):
    repo = hub.repos["someone/vocoder"]
    del repo.commits[repo.head]["model.pt"]
    files = {one["file"]: one for one in read_provenance(fetch_released(model))["files"]}
    assert files["vocoder/g_00500000"]["source"] == f"{hub.url}/voc/g_00500000"


def test_no_space_is_noticed_before_the_download(model, hub, store, models, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=fetch.FREE_BYTES))
    with pytest.raises(OSError, match="needs .* MB of space .* MB are free"):
        fetch_released(model)
    assert not hub.log and not left_over(models)


def test_no_space_on_the_way_leaves_nothing(model, store, models, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("echostream.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        fetch_released(model)
    assert not left_over(models)
    monkeypatch.undo()


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_a_hostile_pickle_runs_nothing(release, hub, store, models, tmp_path):
    mark, hostile = tmp_path / "mark", tmp_path / CHECKPOINT
    saved = torch.load(release.checkpoint, weights_only=False)
    torch.save(saved | {"extra_state": Payload(mark)}, hostile)
    repo = hub.repos["ICTNLP/StreamSpeech_Models"]
    repo.commit(repo.head, {CHECKPOINT: hostile})
    with pytest.raises(ValueError, match="not admitted"):
        fetch_released(as_released(release))
    assert not mark.exists() and not left_over(models)


def test_two_fetches_at_once_download_once(model, hub, store):
    folders: list[Path] = []
    threads = [
        threading.Thread(target=lambda: folders.append(fetch_released(model))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 2 and folders[0] == folders[1]
    sha256 = model.vocoder[0].sha256
    assert len(hub.asked(f"GET /linked/{sha256}")) == 1
    load_model_dir(folders[0])


def test_what_an_interrupted_fetch_left_is_cleared(model, store, models):
    for name in (".stand-in-fr-en.fetching", ".stand-in-fr-en.abc123"):
        (models / name).mkdir(parents=True)
        (models / name / "half").write_text("half")
    fetch_released(model)
    assert left_over(models) == ["stand-in-fr-en"]


def gather(release, folder: Path) -> Path:
    """All files of a release in one folder, in no order."""
    shutil.copytree(release.data, folder / "some" / "where")
    for path in (release.checkpoint, release.vocoder, release.vocoder_config):
        shutil.copy(path, folder)
    return folder


def test_files_brought_by_other_means(model, release, hub, store, tmp_path):
    folder = gather(release, tmp_path / "brought")
    load_model_dir(fetch_released(model, FetchOptions(folder=folder)))
    assert not hub.asked("GET /linked") and not hub.asked("GET /conf")
    assert (folder / CHECKPOINT).is_file()


def test_files_brought_by_other_means_need_somebody_to_tell_their_hash(
    model, release, store, tmp_path, monkeypatch
):
    folder = gather(release, tmp_path / "brought")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FetchError, match="--unverified"):
        fetch_released(model, FetchOptions(folder=folder))
    made = fetch_released(model, FetchOptions(folder=folder, unverified=True))
    files = {one["file"]: one for one in read_provenance(made)["files"]}
    assert files[CHECKPOINT]["checked_against"] == "nobody: taken with --unverified"
    assert files["vocoder/g_00500000"]["checked_against"] == "EchoStream's table"


def test_unverified_does_not_take_what_is_known_to_be_wrong(model, release, store, tmp_path):
    folder = gather(release, tmp_path / "brought")
    content = bytearray((folder / CHECKPOINT).read_bytes())
    content[5000] ^= 1
    (folder / CHECKPOINT).write_bytes(content)
    with pytest.raises(WrongBytes):
        fetch_released(model, FetchOptions(folder=folder, unverified=True))


def test_a_file_that_was_not_brought(model, release, store, tmp_path):
    folder = gather(release, tmp_path / "brought")
    (folder / CHECKPOINT).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {CHECKPOINT}; it can be had from hf:ICT"):
        fetch_released(model, FetchOptions(folder=folder))


def test_offline_uses_what_the_hubs_cache_holds(model, release, store, tmp_path, monkeypatch):
    for part in (model.checkpoint, *model.vocoder):
        store.download(part.sources[0])
    expected = store.expected(model.checkpoint.sources[0])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    told = store.expected(model.checkpoint.sources[0])
    assert told.sha256 == expected.sha256 and told.told_by == "the Hub's cache"


def test_an_offline_model_transcribes_and_translates(hub, store, tmp_path):
    release = build_release(tiny_streamspeech(), tmp_path / "release", bidirectional=True)
    with pytest.raises(ValueError, match="cannot stream"):
        read_streamspeech(release.checkpoint, release.data)
    hub.repos["ICTNLP/StreamSpeech_Models"].commit("e" * 40, {})
    entry = as_released(release, name="stand-in:offline", speaks=False)
    repo = hub.repos["ICTNLP/StreamSpeech_Models"]
    repo.commits[entry.checkpoint.sources[0].revision].clear()
    repo.commit(entry.checkpoint.sources[0].revision, {CHECKPOINT: release.checkpoint})
    for path in release.data.rglob("*.*"):
        hub.web[f"/conf/{path.relative_to(release.data).as_posix()}"] = path
    system = load_model_dir(fetch_released(entry))
    assert system.config.vocoder is None and system.config.card.tasks == ("asr", "s2tt")
    soundfile.write(tmp_path / "in.wav", synthetic_clip(1.0, 16000, 0), 16000)
    command = ["translate", str(tmp_path / "in.wav"), "--out", str(tmp_path / "out.wav")]
    command += ["--model-dir", str(cached_folder(entry.name)), "--offline"]
    assert cli.main([*command, "--task", "s2tt"]) == 0
    assert cli.main(command) == 2 and not (tmp_path / "out.wav").exists()


def test_the_extra_is_named_where_it_is_missing(model, monkeypatch):
    monkeypatch.setattr(remote.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'echostream\[hub\]'"):
        fetch_released(model)
