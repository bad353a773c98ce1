// Hands the input's samples to the page in blocks of about 40 ms, mono.
class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.block = new Float32Array(Math.round(sampleRate * 0.04));
    this.filled = 0;
    this.running = true;
    this.port.onmessage = ({ data }) => {
      if (data !== "stop") return;
      this.running = false;
      this.port.postMessage(this.block.slice(0, this.filled));
      this.port.postMessage("stopped");
    };
  }

  process([input]) {
    if (!this.running) return false;
    const channels = input.length;
    const length = channels ? input[0].length : 0;
    for (let i = 0; i < length; i++) {
      let sum = 0;
      for (let c = 0; c < channels; c++) sum += input[c][i];
      this.block[this.filled++] = sum / channels;
      if (this.filled === this.block.length) {
        this.port.postMessage(this.block.slice());
        this.filled = 0;
      }
    }
    return true;
  }
}
registerProcessor("capture", Capture);
