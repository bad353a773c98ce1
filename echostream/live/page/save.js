// Files made from a lane, in the browser alone.

function header(bytes, format, sampleRate, width) {
  const view = new DataView(new ArrayBuffer(44));
  const text = (at, word) => [...word].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + bytes, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, format, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, sampleRate, true);
  view.setUint32(28, sampleRate * width, true);
  view.setUint16(32, width, true);
  view.setUint16(34, 8 * width, true);
  text(36, "data");
  view.setUint32(40, bytes, true);
  return view;
}

// Pieces of Int16Array (16-bit samples) or Float32Array (32-bit float samples).
export function wav(pieces, sampleRate) {
  const width = pieces.length ? pieces[0].BYTES_PER_ELEMENT : 2;
  const bytes = pieces.reduce((sum, piece) => sum + piece.byteLength, 0);
  return new Blob([header(bytes, width === 4 ? 3 : 1, sampleRate, width), ...pieces], { type: "audio/wav" });
}

function clock(ms) {
  const part = (value, digits) => String(Math.floor(value)).padStart(digits, "0");
  return `${part(ms / 3600000, 2)}:${part((ms / 60000) % 60, 2)}:${part((ms / 1000) % 60, 2)},${part(ms % 1000, 3)}`;
}

export function text(sentences) {
  const lines = sentences.map(({ transcript, translation }) => `${transcript}\n${translation}\n`);
  return new Blob([lines.join("\n")], { type: "text/plain" });
}

// One caption a sentence, from its first translated word to its last, two seconds at least.
export function subtitles(sentences) {
  const said = sentences.filter(({ translation }) => translation);
  const blocks = said.map(({ translation, fromMs, toMs }, index) => {
    const end = Math.max(toMs, fromMs + 2000);
    return `${index + 1}\n${clock(fromMs)} --> ${clock(end)}\n${translation}\n`;
  });
  return new Blob([blocks.join("\n")], { type: "application/x-subrip" });
}

export function log(messages) {
  return new Blob([JSON.stringify(messages, null, 1)], { type: "application/json" });
}

export function offer(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
