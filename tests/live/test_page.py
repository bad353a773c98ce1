"""The page in a headless Chromium: what it sends, shows, plays and saves."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from echostream import assets
from echostream.checkpoint import load_model_dir
from echostream.live.catalog import Catalog, served
from echostream.translator.pipeline import Pipeline
from tests.live.conftest import AUDIO, running

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
if CHROMIUM is None:
    pytest.skip("Chromium is not installed (Debian package chromium)", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="the extra 'browser' is not installed")

# Translated alike wherever its chunks begin, which the browser decides.
CLIP = "test_00161.flac"
REAL = AUDIO.parents[1] / "everyday" / "real"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def playwright():
    with sync_api.sync_playwright() as running_playwright:
        yield running_playwright


@contextlib.contextmanager
def chromium_hearing(playwright, clip: Path, folder: Path):
    """A browser whose microphone plays a clip and a second of silence, from the moment that a page
    opens it."""
    samples, rate = soundfile.read(clip, dtype="float32")
    path = folder / "microphone.wav"
    soundfile.write(path, np.concatenate([samples, np.zeros(rate, np.float32)]), rate)
    chromium = playwright.chromium.launch(
        executable_path=CHROMIUM,
        args=[*FLAGS, f"--use-file-for-fake-audio-capture={path}%noloop"],
    )
    yield chromium
    chromium.close()


@pytest.fixture(scope="module")
def browser(playwright, tmp_path_factory):
    folder = tmp_path_factory.mktemp("microphone")
    with chromium_hearing(playwright, AUDIO / CLIP, folder) as chromium:
        yield chromium


@pytest.fixture
def page(browser, address):
    with opened_page(browser, address) as page:
        yield page


@contextlib.contextmanager
def opened_page(browser, address):
    """A page that must not complain on the browser's console."""
    context = browser.new_context(
        viewport={"width": 1280, "height": 900}, permissions=["microphone"], accept_downloads=True
    )
    opened = context.new_page()
    complaints: list[str] = []
    opened.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(f"http://{address}/")
    until(opened, "document.querySelector('#model').options.length > 0")
    yield opened
    context.close()
    assert not complaints, complaints


def until(page, condition: str, timeout_s: float = 50.0) -> None:
    """Wait for a JavaScript condition. Playwright's own waiting evaluates strings inside the page,
    which the page's policy forbids."""
    for _ in range(int(timeout_s / 0.1)):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(100)
    pytest.fail(f"{condition} did not come true; the page says {page.inner_text('#state')!r}")


def choose_example(page, title: str) -> None:
    page.check("input[value=example]")
    page.select_option("#example", label=title)


def wait_done(page) -> None:
    until(page, "document.querySelector('#state').textContent === 'Done'")


def saved(page, what: str) -> bytes:
    with page.expect_download() as waiting:
        page.click(f"[data-save={what}]")
    return Path(waiting.value.path()).read_bytes()


def lines(page, kind: str) -> str:
    return " ".join(page.locator(f".lane:first-child .{kind} li").all_inner_texts())


def check_against_pipeline(page, tmp_path, expected) -> tuple[str, str]:
    """What the page shows and saves is what the pipeline gives for the samples that it sent."""
    for name in ("source", "speech"):
        (tmp_path / f"{name}.wav").write_bytes(saved(page, name))
    sent, rate = soundfile.read(tmp_path / "source.wav", dtype="float32")
    spoken, spoken_rate = soundfile.read(tmp_path / "speech.wav", dtype="int16")
    transcript, translation, speech = expected(sent, rate)
    assert lines(page, "transcript") == transcript and lines(page, "translation") == translation
    assert spoken_rate == 16000 and spoken.astype("<i2").tobytes() == speech
    return transcript, translation


def test_microphone_to_words_and_speech(page, tmp_path, expected):
    page.click("#start")
    until(page, "document.querySelector('.translation li')?.textContent.length > 10")
    page.wait_for_timeout(4500)
    assert page.locator(".tail").count() <= 2
    page.click("#stop")
    wait_done(page)
    transcript, translation = check_against_pipeline(page, tmp_path, expected)
    assert "photos" in translation and len(transcript.split()) >= 4
    captions = saved(page, "subtitles").decode()
    assert re.match(r"1\n00:00:\d\d,\d{3} --> 00:00:\d\d,\d{3}\n", captions)
    assert translation in captions
    assert saved(page, "text").decode() == f"{transcript}\n{translation}\n"
    log = json.loads(saved(page, "log"))
    assert log[0]["type"] == "ready" and log[-1]["type"] == "done"


@pytest.mark.skipif(assets.default_systems()[0] != "everyday", reason="its voice is missing")
def test_everyday_hears_a_person(playwright, tmp_path):
    folder = assets.model_dir("everyday")
    system = load_model_dir(folder)
    with (
        running(Catalog([served(folder, system)])) as place,
        chromium_hearing(playwright, REAL / "conf-now-recording.flac", tmp_path) as chromium,
        opened_page(chromium, place) as page,
    ):
        assert page.inner_text("#about").startswith("Speak Spanish; hear and read English")
        page.select_option("#chunk", value="640")
        page.click("#start")
        until(page, "document.querySelector('.translation')?.textContent.includes('conference')")
        page.wait_for_timeout(2000)
        page.click("#stop")
        wait_done(page)
        for name in ("source", "speech"):
            (tmp_path / f"{name}.wav").write_bytes(saved(page, name))
        shown = lines(page, "translation")
    sent, rate = soundfile.read(tmp_path / "source.wav", dtype="float32")
    pipeline = Pipeline(system, chunk_ms=640)
    outputs, _ = pipeline.step(sent, rate, pipeline.init_state(), final=True)
    assert shown == " ".join(word for output in outputs for word in output.translation)
    spoken, spoken_rate = soundfile.read(tmp_path / "speech.wav", dtype="float32")
    assert len(spoken) == sum(len(output.waveform) for output in outputs)
    assert len(spoken) > spoken_rate and np.sqrt((spoken**2).mean()) > 0.01


def test_example_beside_the_baseline(page, tmp_path, expected):
    choose_example(page, "señor cómo se llega a la panadería")
    assert page.locator("#beside option").all_inner_texts() == [
        "nothing",
        "echo-mini (StreamSpeech), recomputing",
        "echo-mini (StreamSpeech)",
    ]
    page.select_option("#beside", label="echo-mini (StreamSpeech), recomputing")
    page.click("#start")
    wait_done(page)
    titles = page.locator(".lane h2").all_inner_texts()
    assert titles == ["echo-mini", "echo-mini (StreamSpeech), recomputing"]
    assert "up to 120 s" in page.locator(".lane .note").nth(1).inner_text()
    check_against_pipeline(page, tmp_path, expected)
    assert len(page.locator(".lane").nth(1).locator(".translation li").inner_text()) > 10
    drawn = page.evaluate(
        """() => ['timeline', 'compute', 'lag'].map((id) => {
            const canvas = document.getElementById(id);
            const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
            return new Set(new Uint32Array(pixels.data.buffer)).size;
        })"""
    )
    assert min(drawn) > 3, "all pictures show something"
    for curve in ("compute", "lag"):
        said = page.inner_text(f"#{curve}-text")
        beside = r"echo-mini \(StreamSpeech\), recomputing"
        assert re.fullmatch(rf"echo-mini: \d+ ms .*, {beside}: \d+ ms .*", said)
    # The words of the one beside are not read out, those of the first are.
    logs = page.locator(".translation")
    assert [logs.nth(i).get_attribute("aria-live") for i in range(2)] == ["polite", "off"]


def test_sound_file_by_keyboard(page, tmp_path, expected):
    page.set_input_files("#file", AUDIO / "test_00041.flac")
    page.focus("input[value=microphone]")
    page.keyboard.press("ArrowDown")
    assert page.is_visible("#file")
    page.focus("#start")
    page.keyboard.press("Enter")
    until(page, "document.activeElement.id === 'stop'")
    wait_done(page)
    assert page.evaluate("document.activeElement.id") == "start"
    check_against_pipeline(page, tmp_path, expected)


def keep_connections(page) -> None:
    """Connections that the page opens stay in reach, as ``window.links``."""
    page.evaluate(
        """() => {
            const Real = WebSocket;
            window.links = [];
            window.WebSocket = class extends Real {
                constructor(...given) { super(...given); window.links.push(this); }
            };
        }"""
    )


def test_broken_connection_is_resumed(page, tmp_path, expected):
    keep_connections(page)
    choose_example(page, "más tarde nevará en la ciudad")
    page.click("#start")
    until(page, "document.querySelector('.translation li')")
    # The page gives its connection up; to the server it is still open until the next one comes.
    page.evaluate("window.links[0].onclose()")
    until(page, "window.links.length > 1")
    wait_done(page)
    check_against_pipeline(page, tmp_path, expected)


def keep_microphone(page) -> None:
    """The stream that the page gets next stays in reach, as ``window.given``."""
    page.evaluate(
        """() => {
            const devices = navigator.mediaDevices;
            const real = devices.getUserMedia.bind(devices);
            devices.getUserMedia = async (wanted) => (window.given = await real(wanted));
        }"""
    )


def test_microphone_falls_silent_and_is_unplugged(page):
    keep_microphone(page)
    page.click("#start")
    until(page, "document.querySelector('#state').textContent === 'Live'")
    # The fake microphone gives zeros once its file is over.
    until(page, "document.querySelector('#state').textContent.includes('microphone is silent')")
    page.evaluate(
        """() => {
            const [track] = window.given.getTracks();
            track.stop();
            track.dispatchEvent(new Event('ended'));
        }"""
    )
    wait_done(page)
    assert page.inner_text("#fault") == "The microphone is gone."
    assert page.is_enabled("#start") and page.is_disabled("#stop")
    assert len(lines(page, "translation")) > 10, "what was said before is translated"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("NotAllowedError", "The browser does not allow the microphone. Allow it"),
        ("NotFoundError", "There is no microphone. Connect one"),
        ("NotReadableError", "The microphone cannot be opened. Another program"),
    ],
)
def test_no_microphone_is_said_and_can_be_mended(page, error, said):
    page.evaluate(
        """(name) => {
            const devices = navigator.mediaDevices;
            const real = devices.getUserMedia;
            devices.getUserMedia = async () => {
                devices.getUserMedia = real;
                throw new DOMException("as browsers put it", name);
            };
        }""",
        error,
    )
    page.click("#start")
    until(page, "document.querySelector('#state').textContent === 'Not started'")
    assert page.inner_text("#fault").startswith(said)
    page.click("#start")
    until(page, "document.querySelector('#state').textContent === 'Live'")
    assert not page.is_visible("#fault")


def test_microphone_is_never_played_back(page):
    page.evaluate(
        """() => {
            const real = AudioNode.prototype.connect;
            window.connected = [];
            AudioNode.prototype.connect = function (to, ...more) {
                window.connected.push(`${this.constructor.name} ${to.constructor.name}`);
                return real.call(this, to, ...more);
            };
        }"""
    )
    page.check("input[value=example]")
    page.check("#monitor")
    page.check("input[value=microphone]")
    page.click("#start")
    until(page, "document.querySelector('#state').textContent === 'Live'")
    made = page.evaluate("window.connected")
    assert "MediaStreamAudioSourceNode AudioWorkletNode" in made
    assert "MediaStreamAudioSourceNode AudioDestinationNode" not in made


def test_slow_server_is_said_and_stop_pressed_again_does_not_wait_for_it(page):
    keep_connections(page)
    page.click("#start")
    until(page, "document.querySelector('#state').textContent === 'Live'")
    # From here on nothing that the server says arrives, not even that it has closed, but that it is
    # late.
    page.evaluate(
        """() => {
            const [link] = window.links;
            const status = { type: 'status', source_ms: 320, compute_ms: 900, lag_ms: 4000 };
            link.onmessage({ data: JSON.stringify({ ...status, received: 0 }) });
            link.onmessage = link.onclose = null;
        }"""
    )
    until(page, "document.querySelector('#state').textContent.endsWith('server is too slow')")
    page.dblclick("#stop")
    page.wait_for_timeout(1200)
    state = page.inner_text("#state")
    assert state == "Finishing; Stop again gives up", "a double click is one press"
    page.click("#stop")
    until(page, "document.querySelector('#state').textContent === 'Stopped'")
    assert "Stopped before everything was translated." in page.inner_text("#fault")
    assert page.is_enabled("#start")


def test_chunk_follows_the_model(page):
    def longer(route) -> None:
        told = route.fetch().json()
        told["models"][1]["recommended_chunk_ms"] = 640
        route.fulfill(json=told)

    page.route("**/v1/models", longer)
    page.reload()
    until(page, "document.querySelector('#model').options.length > 0")
    assert page.input_value("#chunk") == "320"
    page.select_option("#model", index=1)
    assert page.input_value("#chunk") == "640"
    page.select_option("#model", index=0)
    assert page.input_value("#chunk") == "320"


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_cut_off(page, width):
    page.set_viewport_size({"width": width, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_everything_has_a_name(page):
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('input, select, button')]
            .filter((e) => !e.labels?.length && !e.textContent.trim() && !e.ariaLabel)
            .map((e) => e.outerHTML)"""
    )
    assert unnamed == []


def test_page_is_strict_and_needs_nothing_from_outside(address):
    from urllib.request import urlopen

    with urlopen(f"http://{address}/", timeout=60) as response:
        policy = response.headers["Content-Security-Policy"]
        body = response.read().decode()
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert not re.search(r"(src|href)=\"(https?:)?//", body)
    assert not re.search(r"<script(?![^>]*src=)|style=|\son\w+=", body)
