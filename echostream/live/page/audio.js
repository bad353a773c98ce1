// Sound in and sound out. Sources send Float32Array blocks; speakers play 16-bit pieces.

async function addWorklet(context, file) {
  try {
    await context.audioWorklet.addModule(file);
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
}

// What a browser says when it gives no microphone, in words that say what to do.
const REFUSALS = {
  NotAllowedError: "The browser does not allow the microphone. Allow it for this page, then press Start again.",
  NotFoundError: "There is no microphone. Connect one, then press Start again.",
  NotReadableError: "The microphone cannot be opened. Another program may be using it.",
};

export class Source {
  // `onBlock(samples)` hears every block; `onEnd()` is called when a file is over or stopped;
  // `onLost()` when the microphone is taken away, before `onEnd()`.
  constructor(onBlock, onEnd, onLost) {
    this.onBlock = onBlock;
    this.onEnd = onEnd;
    this.onLost = onLost;
    this.context = new AudioContext({ latencyHint: "interactive" });
    this.sampleRate = this.context.sampleRate;
  }

  async prepare() {
    await addWorklet(this.context, "capture-worklet.js");
    this.capture = new AudioWorkletNode(this.context, "capture", { numberOfOutputs: 0 });
    this.capture.port.onmessage = ({ data }) => {
      if (data === "stopped") this.stopped();
      else if (data.length) this.onBlock(data);
    };
  }

  async openMicrophone() {
    if (!navigator.mediaDevices) {
      throw new Error("Browsers give the microphone to pages from this machine or over https only.");
    }
    try {
      this.media = await navigator.mediaDevices.getUserMedia({
        audio: { channelCount: 1, echoCancellation: true, noiseSuppression: false, autoGainControl: false },
      });
    } catch (error) {
      throw REFUSALS[error.name] ? new Error(REFUSALS[error.name]) : error;
    }
    // Comes when it is unplugged or its permission is withdrawn, not when the page stops it.
    this.media.getTracks()[0].onended = () => {
      if (!this.stopping) this.onLost();
      this.stop();
    };
    this.input = this.context.createMediaStreamSource(this.media);
  }

  // Files one after the other, `gapS` of silence behind each.
  async openFiles(files, gapS) {
    const parts = [];
    for (const file of files) parts.push(await this.context.decodeAudioData(await file.arrayBuffer()));
    const gap = Math.round(gapS * this.sampleRate);
    const total = parts.reduce((sum, part) => sum + part.length + gap, 0);
    const whole = this.context.createBuffer(1, total, this.sampleRate);
    const mono = whole.getChannelData(0);
    let at = 0;
    for (const part of parts) {
      for (let c = 0; c < part.numberOfChannels; c++) {
        const channel = part.getChannelData(c);
        for (let i = 0; i < part.length; i++) mono[at + i] += channel[i] / part.numberOfChannels;
      }
      at += part.length + gap;
    }
    this.input = this.context.createBufferSource();
    this.input.buffer = whole;
    this.input.onended = () => this.stop();
  }

  async begin(monitor) {
    await this.context.resume();
    this.input.connect(this.capture);
    if (monitor) this.input.connect(this.context.destination);
    if (this.input.start) this.input.start();
  }

  stop() {
    if (this.stopping) return;
    this.stopping = true;
    if (this.media) this.media.getTracks().forEach((track) => track.stop());
    if (this.capture) this.capture.port.postMessage("stop");
    else this.stopped();
  }

  stopped() {
    this.context.close();
    this.onEnd();
  }
}

export class Speaker {
  // `onReport({queuedMs, sounding})` comes twenty times a second.
  constructor(sampleRate, onReport) {
    this.context = new AudioContext({ sampleRate, latencyHint: "interactive" });
    this.gain = this.context.createGain();
    this.gain.connect(this.context.destination);
    this.onReport = onReport;
  }

  async prepare() {
    await addWorklet(this.context, "playback-worklet.js");
    this.node = new AudioWorkletNode(this.context, "playback", {
      numberOfInputs: 0, outputChannelCount: [1],
    });
    this.node.port.onmessage = ({ data }) => this.onReport(data);
    this.node.connect(this.gain);
    await this.context.resume();
  }

  play(integers) {
    const piece = new Float32Array(integers.length);
    for (let i = 0; i < piece.length; i++) piece[i] = integers[i] / 32768;
    this.node.port.postMessage(piece, [piece.buffer]);
  }

  set volume(value) { this.gain.gain.value = value; }

  close() { this.context.close(); }
}
