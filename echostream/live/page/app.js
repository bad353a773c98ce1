// The page: choices, one or two sessions on the same source, and what comes of them.
import { Source, Speaker } from "./audio.js";
import { drawCurves, drawTimeline } from "./charts.js";
import { Lane } from "./lane.js";
import * as save from "./save.js";
import { Session } from "./session.js";

const $ = (id) => document.getElementById(id);
const EXAMPLE_GAP_S = 1.0;
const FILE_TAIL_S = 0.5;
// Less than one step of 16 bits, which a microphone in a quiet room exceeds and a muted one does not.
const SILENT_PEAK = 2e-5;
const SILENT_S = 3;
const SLOW_MS = 3000; // lag of a chunk
const DOUBLE_CLICK_MS = 1000;
let models = [];
let examples = [];
let run = null;

function say(text) {
  if ($("state").textContent !== text) $("state").textContent = text; // read out when it changes
}

function fault(text) {
  $("fault").hidden = !text;
  $("fault").textContent = text;
}

function token() { return $("token").value || decodeURIComponent(location.hash.slice(1)); }

async function ask(path, options) {
  try {
    return await fetch(path, options);
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
}

async function fetchModels() {
  const headers = token() ? { Authorization: `Bearer ${token()}` } : {};
  const answer = await ask("v1/models", { headers });
  $("token-field").hidden = answer.status !== 401 && !$("token").value;
  if (answer.status === 401) {
    if (token()) fault("The server does not know this token.");
    return;
  }
  const { models: listed, chunk_ms: chunk } = await answer.json();
  fault("");
  models = listed;
  $("model").replaceChildren(...models.map((model) => new Option(titleOf(model), model.name)));
  chooseChunk(chunk);
  introduce();
  offerBeside();
}

async function loadModels() {
  try {
    await fetchModels();
  } catch (error) {
    fault(error.message);
  }
}

function chooseChunk(ms) {
  if ([...$("chunk").options].some(({ value }) => Number(value) === ms)) $("chunk").value = ms;
}

// What the chosen model says of itself.
function introduce() {
  const { source_language: source, target_language: target, tasks, licence } = modelOf($("model").value);
  const name = (code) => new Intl.DisplayNames("en", { type: "language" }).of(code);
  const get = tasks.includes("s2st") ? "hear and read" : "read";
  $("about").textContent = source
    ? `Speak ${name(source)}; ${get} ${name(target)} while you go on.`
    : `Speak; ${get} the translation while you go on.`;
  $("licence").textContent = licence ? `Licence of the model: ${licence}` : "";
}

function modelOf(name) { return models.find((model) => model.name === name); }

function titleOf({ title }) { return title; }

// Every other model may run beside the chosen one; those that recompute first, as they differ most.
function offerBeside() {
  const before = $("beside").value;
  const others = models.filter(({ name }) => name !== $("model").value);
  others.sort((a, b) => Number(b.recompute) - Number(a.recompute));
  const options = others.map((model) => new Option(titleOf(model), model.name));
  $("beside").replaceChildren(new Option("nothing", ""), ...options);
  if (others.some(({ name }) => name === before)) $("beside").value = before;
  $("beside-field").hidden = !others.length;
}

async function fetchExamples() {
  examples = await (await ask("examples/index.json")).json();
  const options = examples.map(({ title }, index) => new Option(title, String(index)));
  $("example").replaceChildren(new Option("all of them, one after the other", "all"), ...options);
}

function chosenSource() { return new FormData($("controls")).get("source"); }

function showChoices() {
  $("file-field").hidden = chosenSource() !== "file";
  $("example-field").hidden = chosenSource() !== "example";
  $("monitor-field").hidden = chosenSource() === "microphone";
  if (models.length) introduce();
  offerBeside();
}

async function openSource(source) {
  if (chosenSource() === "microphone") {
    say("Waiting for the microphone");
    return source.openMicrophone();
  }
  if (chosenSource() === "file") {
    if (!$("file").files.length) throw new Error("Choose a sound file first.");
    return source.openFiles([...$("file").files], FILE_TAIL_S);
  }
  const chosen = $("example").value === "all" ? examples : [examples[Number($("example").value)]];
  const blobs = await Promise.all(chosen.map(async ({ file }) => (await ask(file)).blob()));
  return source.openFiles(blobs, blobs.length > 1 ? EXAMPLE_GAP_S : FILE_TAIL_S);
}

// What the server says to programs, for people.
const FAULTS = { unknown_session: "The server has been restarted, or was away for too long. Press Start again." };

class Run {
  constructor() {
    this.levels = [];
    this.blocks = [];
    this.lanes = [];
    this.heard = null;
    this.microphone = chosenSource() === "microphone";
    this.connected = this.over = false;
    this.stoppedAt = null;
    this.silentS = 0; // how long the microphone has given nothing at all
  }

  get now() { return this.begun ? (performance.now() - this.begun) / 1000 : 0; }

  async begin() {
    this.source = new Source(
      (block) => this.hear(block),
      () => this.sessions.forEach((s) => s.end()),
      () => fault("The microphone is gone."),
    );
    this.sessions = [];
    await this.source.prepare();
    await openSource(this.source);
    const names = [$("model").value, $("beside").value].filter(Boolean);
    this.speaker = new Speaker(modelOf(names[0]).sample_rate, (report) => this.report(report));
    await this.speaker.prepare();
    setVolume(this);
    this.lanes = names.map((name, index) => this.addLane(name, index, names.length));
    this.heard = this.lanes[0];
    $("lanes").replaceChildren(...this.lanes.map((lane) => lane.element));
    $("key-second").hidden = $("save-hint").hidden = names.length < 2;
    this.begun = performance.now();
    this.sessions = this.lanes.map((lane) => this.addSession(lane));
    // The loudspeaker must not speak into the microphone.
    await this.source.begin($("monitor").checked && !this.microphone);
    this.frame();
  }

  addLane(name, index, count) {
    const model = modelOf(name);
    const lane = new Lane(titleOf(model), index > 0);
    if (model.recompute) lane.note(`Computes everything again at every chunk, as StreamSpeech was published, up to ${model.limit_s} s.`);
    const listen = lane.find("listen");
    listen.hidden = count < 2;
    listen.querySelector("input").checked = index === 0;
    listen.addEventListener("change", () => {
      this.heard = lane;
      this.speaker.node.port.postMessage("clear");
    });
    lane.name = name;
    return lane;
  }

  addSession(lane) {
    const start = {
      sample_rate: this.source.sampleRate,
      chunk_ms: Number($("chunk").value),
      model: lane.name,
      task: modelOf(lane.name).tasks.includes("s2st") ? "s2st" : "s2tt",
    };
    return new Session(start, token(), {
      message: (message, samples) => {
        lane.take(message, samples, this.now);
        if (samples && lane === this.heard) this.speaker.play(samples);
      },
      closed: (reason) => this.closed(lane, reason),
      state: (text) => {
        this.connected = text === "live";
        this.sayState();
      },
    });
  }

  sayState() {
    if (this.over) return;
    if (this.stoppedAt !== null) say("Finishing; Stop again gives up");
    else if (!this.connected) say("Reconnecting");
    else if (this.silentS > SILENT_S) say("Live, but the microphone is silent");
    else if (this.heard?.points.at(-1)?.lagMs > SLOW_MS) say("Live, but the server is too slow");
    else say("Live");
  }

  hear(block) {
    let sum = 0;
    let peak = 0;
    for (const value of block) {
      sum += value * value;
      peak = Math.max(peak, Math.abs(value));
    }
    this.silentS = this.microphone && peak < SILENT_PEAK ? this.silentS + block.length / this.source.sampleRate : 0;
    if (this.connected) this.sayState();
    const level = Math.min(1, Math.sqrt(sum / block.length) * 6);
    this.levels.push({ from: this.now - block.length / this.source.sampleRate, to: this.now, level });
    this.blocks.push(block);
    this.sessions.forEach((session) => session.send(block));
  }

  report({ queuedMs }) {
    if (this.heard && this.begun) this.heard.show("backlog", queuedMs);
  }

  // The first time what was said is still translated; the second time it is given up.
  stop() {
    if (this.stoppedAt === null) this.stoppedAt = performance.now();
    else if (performance.now() - this.stoppedAt > DOUBLE_CLICK_MS) this.sessions.forEach((session) => session.giveUp());
    this.sayState();
    this.source.stop();
  }

  closed(lane, reason) {
    if (reason) fault(`${lane.title}: ${FAULTS[reason.code] ?? reason.message}`);
    if (!this.sessions.every((session) => session.over)) return;
    this.over = true;
    this.source.stop();
    this.ended = this.now;
    say(reason ? "Stopped" : "Done");
    $("start").disabled = $("choices").disabled = false;
    if (document.activeElement === $("stop")) $("start").focus();
    $("stop").disabled = true;
    document.querySelectorAll("[data-save]").forEach((button) => (button.disabled = false));
  }

  frame() {
    const rows = [{ color: "--source", spans: this.levels }, ...this.lanes];
    const last = Math.max(0, ...this.lanes.map((lane) => lane.playEnd));
    const now = this.ended ? Math.min(this.now, Math.max(this.ended, last)) : this.now;
    drawTimeline($("timeline"), rows, now);
    for (const [id, field] of [["compute", "computeMs"], ["lag", "lagMs"]]) {
      drawCurves($(id), this.lanes, field);
      $(`${id}-text`).textContent = this.lanes
        .filter((lane) => lane.points.length)
        .map((lane) => `${lane.title}: ${Math.round(lane.points.at(-1)[field])} ms for the last chunk`)
        .join(", ");
    }
    if (!this.ended || this.now < Math.max(this.ended, last) + 1) requestAnimationFrame(() => this.frame());
  }
}

function setVolume(target) {
  if (!target?.speaker) return;
  const muted = $("mute").getAttribute("aria-pressed") === "true";
  target.speaker.volume = muted ? 0 : Number($("volume").value) / 100;
}

$("controls").addEventListener("submit", async (event) => {
  event.preventDefault();
  fault("");
  if (!models.length) await loadModels();
  if (!models.length) return;
  run?.speaker?.close();
  run = new Run();
  const focused = document.activeElement === $("start");
  $("start").disabled = $("choices").disabled = true;
  document.querySelectorAll("[data-save]").forEach((button) => (button.disabled = true));
  say("Starting");
  const reading = $("choices");
  reading.disabled = false; // a disabled field has no value while the choices are read
  try {
    await run.begin();
    if (run.over) return; // the server has closed it already
    $("stop").disabled = false;
    if (focused) $("stop").focus(); // the button that had it is disabled now
  } catch (error) {
    if (run.over) return;
    fault(error.name === "EncodingError" ? "The browser cannot play this file." : error.message);
    say("Not started");
    run.source?.stop();
    $("start").disabled = false;
    return;
  }
  reading.disabled = true;
});

$("model").addEventListener("change", () => chooseChunk(modelOf($("model").value).recommended_chunk_ms));
$("controls").addEventListener("change", showChoices);
$("token").addEventListener("change", loadModels);
$("stop").addEventListener("click", () => run?.stop());
$("volume").addEventListener("input", () => setVolume(run));
$("mute").addEventListener("click", () => {
  const pressed = $("mute").getAttribute("aria-pressed") === "true";
  $("mute").setAttribute("aria-pressed", String(!pressed));
  setVolume(run);
});

const MAKERS = {
  speech: (lane) => [save.wav(lane.speech, lane.sampleRate), "wav"],
  source: () => [save.wav(run.blocks, run.source.sampleRate), "wav"],
  text: (lane) => [save.text(lane.said), "txt"],
  subtitles: (lane) => [save.subtitles(lane.said), "srt"],
  log: (lane) => [save.log(lane.messages), "json"],
};
document.querySelectorAll("[data-save]").forEach((button) => {
  button.addEventListener("click", () => {
    const [blob, ending] = MAKERS[button.dataset.save](run.heard);
    save.offer(blob, `echostream-${button.dataset.save}.${ending}`);
  });
});

fetchExamples().catch((error) => fault(error.message));
loadModels().then(showChoices);
