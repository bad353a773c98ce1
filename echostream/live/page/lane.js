// One translation on the page: its words, its meters, and all that it received.
import { READY, SPEECH, STATUS, TRANSCRIPT, TRANSLATION } from "./messages.js";

export class Lane {
  constructor(title, second) {
    const copy = document.getElementById("lane").content.cloneNode(true);
    this.element = copy.querySelector(".lane");
    this.element.classList.toggle("second", second);
    this.element.querySelector("h2").textContent = title;
    // One translation is read out, not two at once.
    if (second) this.find("translation").setAttribute("aria-live", "off");
    this.color = second ? "--second" : "--first";
    this.title = title;
    this.messages = [];
    this.speech = [];
    this.spans = []; // when translated speech sounded, or would have
    this.points = []; // compute and lag per chunk
    this.sentences = [];
    this.playEnd = 0;
  }

  find(name) { return this.element.querySelector(`.${name}`); }

  note(text) {
    this.find("note").hidden = false;
    this.find("note").textContent = text;
  }

  // `now`: seconds since the start.
  take(message, samples, now) {
    this.messages.push({ at_s: Number(now.toFixed(3)), ...message });
    if (message.type === READY) this.sampleRate = message.sample_rate;
    if (message.type === TRANSCRIPT || message.type === TRANSLATION) this.words(message);
    if (message.type === STATUS && "lag_ms" in message) this.status(message);
    if (message.type === SPEECH) {
      this.speech.push(samples);
      this.show("backlog", message.backlog_ms);
      const from = Math.max(this.playEnd, now);
      this.playEnd = from + samples.length / this.sampleRate;
      this.spans.push({ from, to: this.playEnd, level: 0.8 });
    }
  }

  words({ type, text, tail, sentence, source_ms: ms }) {
    const known = (this.sentences[sentence] ??= { transcript: "", translation: "", fromMs: ms, toMs: ms });
    if (text) {
      if (type === TRANSLATION && !known.translation) known.fromMs = ms;
      if (type === TRANSLATION) known.toMs = ms;
      known[type] = known[type] ? `${known[type]} ${text}` : text;
    }
    const list = this.find(type);
    // Whoever has scrolled back to read is left there.
    const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
    let item = list.querySelector(`[data-sentence="${sentence}"]`);
    if (!item) {
      item = document.createElement("li");
      item.dataset.sentence = sentence;
      const provisional = document.createElement("span");
      provisional.className = "tail";
      provisional.ariaHidden = "true"; // only words that stay are read out
      item.append(provisional);
      list.append(item);
    }
    const provisional = item.lastChild;
    if (text) provisional.before(item.firstChild === provisional ? text : ` ${text}`);
    provisional.textContent = tail && known[type] ? ` ${tail}` : tail;
    if (atEnd) list.scrollTop = list.scrollHeight;
  }

  status({ source_ms: sourceMs, compute_ms: computeMs, lag_ms: lagMs }) {
    this.points.push({ sourceMs, computeMs, lagMs });
    this.show("lag", lagMs);
    this.find("compute-text").textContent = `${Math.round(computeMs)} ms a chunk`;
  }

  show(name, ms) {
    this.find(name).value = ms;
    this.find(`${name}-text`).textContent = `${Math.round(ms)} ms`;
  }

  get said() { return this.sentences.filter(Boolean); }
}
