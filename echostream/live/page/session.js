// One session with the server: starts, sends, receives, and resumes when the connection breaks.
import * as type from "./messages.js";

const RETRY_MS = 500;

export class Session {
  // `on.message(message, samples)` hears everything in order; `on.closed(reason)` ends it: reason is
  // null after `done`, else {code, message}; `on.state(text)` tells of the connection.
  constructor(start, token, on) {
    this.start = start;
    this.token = token;
    this.on = on;
    this.id = null;
    this.lastSeq = -1;
    this.sent = 0; // samples handed to this session
    this.kept = []; // blocks that the server has not confirmed, with their first sample's number
    this.ended = this.over = this.open = false;
    this.speech = null;
    this.connect();
  }

  connect() {
    if (this.over) return; // given up while it waited to try again
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = (this.socket = new WebSocket(`${scheme}//${location.host}/v1/stream`));
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      const first = this.id
        ? { type: type.RESUME, session: this.id, last_seq: this.lastSeq }
        : { type: type.START, ...this.start };
      if (this.token) first.token = this.token;
      socket.send(JSON.stringify(first));
    };
    // A connection that another one has followed has no say any more.
    socket.onmessage = ({ data }) => socket === this.socket && this.receive(data);
    socket.onclose = () => socket === this.socket && this.lost();
  }

  receive(data) {
    if (typeof data !== "string") {
      const message = this.speech;
      this.speech = null;
      this.lastSeq = message.seq;
      this.on.message(message, new Int16Array(data));
      return;
    }
    const message = JSON.parse(data);
    if (message.type === type.SPEECH) {
      this.speech = message; // counts as received once its samples have come
      return;
    }
    if ("seq" in message) this.lastSeq = message.seq;
    if (message.type === type.READY) this.ready(message);
    if (message.type === type.STATUS) this.confirm(message.received);
    this.on.message(message, null);
    if (message.type === type.DONE) this.finish(null);
    if (message.type === type.ERROR) this.finish(message);
  }

  ready(message) {
    this.id = message.session;
    this.confirm(message.received);
    this.lostAt = null;
    this.open = true;
    for (const { first, block } of this.kept) {
      const missing = Math.max(message.received - first, 0);
      if (missing < block.length) this.socket.send(block.subarray(missing));
    }
    if (this.ended) this.sendEnd();
    this.on.state("live");
  }

  confirm(received) {
    while (this.kept.length && this.kept[0].first + this.kept[0].block.length <= received) {
      this.kept.shift();
    }
  }

  send(block) {
    if (this.over || this.ended) return;
    this.kept.push({ first: this.sent, block });
    this.sent += block.length;
    if (this.open) this.socket.send(block);
  }

  end() {
    if (this.over || this.ended) return;
    this.ended = true;
    if (this.open) this.sendEnd();
  }

  // Ends here and now, whatever is still to come.
  giveUp() {
    if (this.over) return;
    this.finish({ code: "given_up", message: "Stopped before everything was translated." });
    this.socket?.close();
  }

  sendEnd() { this.socket.send(JSON.stringify({ type: type.END })); }

  lost() {
    this.open = false;
    this.speech = null;
    if (this.over) return;
    this.lostAt ??= Date.now();
    if (!this.id || Date.now() - this.lostAt > type.RESUME_MS) {
      this.finish({ code: "lost", message: "The connection to the server is lost." });
      return;
    }
    this.socket = null;
    this.on.state("reconnecting");
    setTimeout(() => this.connect(), RETRY_MS);
  }

  finish(reason) {
    if (this.over) return;
    this.over = true;
    this.on.closed(reason);
  }
}
