// Plays queued pieces of speech one behind the other. A small jitter buffer lets a first piece wait,
// so that one that follows closely joins it without a gap.
const JITTER_S = 0.06;
const REPORT_S = 0.05;

class Playback extends AudioWorkletProcessor {
  constructor() {
    super();
    this.pieces = [];
    this.offset = 0;
    this.queued = 0;
    this.wait = 0;
    this.sinceReport = 0;
    this.played = 0;
    this.port.onmessage = ({ data }) => {
      if (data === "clear") {
        this.pieces = [];
        this.queued = this.offset = 0;
        return;
      }
      if (!this.queued) this.wait = Math.round(sampleRate * JITTER_S);
      this.pieces.push(data);
      this.queued += data.length;
    };
  }

  process(_, [[out]]) {
    let filled = Math.min(this.wait, out.length);
    this.wait -= filled;
    const begun = filled;
    while (filled < out.length && this.pieces.length) {
      const piece = this.pieces[0];
      const count = Math.min(out.length - filled, piece.length - this.offset);
      out.set(piece.subarray(this.offset, this.offset + count), filled);
      filled += count;
      this.offset += count;
      this.queued -= count;
      if (this.offset === piece.length) {
        this.pieces.shift();
        this.offset = 0;
      }
    }
    this.played += filled - begun;
    this.sinceReport += out.length;
    if (this.sinceReport >= sampleRate * REPORT_S) {
      const queuedMs = (1000 * this.queued) / sampleRate;
      this.port.postMessage({ queuedMs, sounding: this.played > 0 });
      this.sinceReport = this.played = 0;
    }
    return true;
  }
}
registerProcessor("playback", Playback);
