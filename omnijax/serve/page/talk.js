// A live conversation: the microphone goes to the server all the time, and what comes back is
// played at once. The model hears while it speaks and decides itself when to speak.

import * as server from "./api.js";
import {gate, openMicrophone} from "./microphone.js";
import {fromBase64, RATE, toBase64} from "./pcm.js";
import {Speaker} from "./speaker.js";

const AUDIO = {type: "audio/pcm", rate: RATE};
const session = (turns) => ({
  type: "realtime",
  output_modalities: ["audio"],
  audio: {input: {format: AUDIO, turn_detection: turns}, output: {format: AUDIO}},
});
// Four seconds of sound in base64: so much may wait to be sent.
const MOST_WAITING = 4 * RATE * 2 * 4 / 3;
// Ids of events. Errors that answer a cut are none: the answer had ended before it arrived. What is
// refused of sound is that the model should listen while it speaks: then turns are taken.
const CUT = "cut";
const SOUND = "sound";

const CLOSED = {
  1001: "The server is shutting down.",
  1006: "The connection to the server broke.",
  1008: "The server ended the conversation.",
  1012: "The server restarts.",
  1013: "The server is busy: all its places are taken. Try again in a while.",
};

// hooks, all called with what happens: state("asking" | "connecting" | "live" | "turns"),
// heardStart(item), heardEnd(item, ms), words(item, text, atMs), spoken(item), cut(item, ms),
// latency(ms), levels("user" | "model", RMS), problem(message), and once, at the end,
// ended(problem or null).
export class Talk {
  constructor(hooks) {
    this.hooks = hooks;
    this.loud = gate();
    this.lastLoud = null;
    this.ready = false;
    this.over = false;
    this.native = true;
    this.hearing = false;
    this.response = null;  // the id of the one that is being sent
    this.received = new Map();  // samples of each item
    this.cut = new Set();  // items that were interrupted: what still comes of them is dropped
    this.heardFrom = new Map();
    this.complaint = null;
  }

  // The microphone first: nobody's place is taken while the browser asks for leave.
  async start(model) {
    this.hooks.state("asking");
    try {
      this.microphone = await openMicrophone({
        heard: (pcm, level) => this.heard(pcm, level),
        lost: () => this.stop("The microphone was disconnected. Connect it, then talk again."),
      });
      this.speaker = await Speaker.open({
        started: () => this.started(),
        level: (level) => this.hooks.levels("model", level),
      });
      if (this.over) return this.release();  // ended while the browser asked
      this.hooks.state("connecting");
      this.socket = server.socket(model);
    } catch (fault) {
      if (this.over) return this.release();
      return this.stop(fault.name === "SyntaxError" ? "This API key can't be sent: it has letters "
        + "that a subprotocol may not have." : fault.message);
    }
    this.socket.onmessage = ({data}) => this.receive(JSON.parse(data));
    this.socket.onclose = (event) => this.closed(event);
  }

  heard(pcm, level) {
    this.hooks.levels("user", level);
    if (this.loud(level)) this.lastLoud = performance.now();
    if (!this.ready) return;
    if (this.socket.bufferedAmount > MOST_WAITING) {
      return this.stop("The connection is too slow for a live conversation.");
    }
    this.send({type: "input_audio_buffer.append", event_id: SOUND, audio: toBase64(pcm)});
  }

  send(event) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(event));
  }

  receive(event) {
    if (event.type !== "error") this.complaint = null;
    switch (event.type) {
      case "session.created":
        return this.configure();
      case "session.updated":
        this.ready = true;
        return this.hooks.state(this.native ? "live" : "turns");
      case "input_audio_buffer.speech_started":
        this.heardFrom.set(event.item_id, event.audio_start_ms);
        this.hearing = true;
        this.hooks.heardStart(event.item_id);
        // A native model hears for itself whether this is an interruption: "mm-hmm" is none.
        return this.native ? undefined : this.interrupt();
      case "input_audio_buffer.speech_stopped":
        this.hearing = false;
        return this.hooks.heardEnd(event.item_id,
          event.audio_end_ms - this.heardFrom.get(event.item_id));
      case "response.created":
        this.response = event.response.id;
        return;
      case "response.output_audio.delta":
        return this.sound(event.item_id, fromBase64(event.delta));
      case "response.output_audio_transcript.delta":
      case "response.output_text.delta":
        if (this.cut.has(event.item_id)) return;
        return this.hooks.words(event.item_id, event.delta, this.receivedMs(event.item_id));
      case "response.output_audio.done":
        return this.speaker.end(event.item_id);
      case "response.done":
        return this.done(event.response);
      case "error":
        return this.failed(event.error);
    }
  }

  configure() {
    const turns = {type: this.native ? "native" : "server_vad"};
    this.send({type: "session.update", session: session(turns)});
  }

  receivedMs(item) {
    return (this.received.get(item) ?? 0) * 1000 / RATE;
  }

  sound(item, pcm) {
    if (this.cut.has(item)) return;
    this.received.set(item, (this.received.get(item) ?? 0) + pcm.length);
    this.speaker.play(item, pcm);
  }

  // It was silent before: the first sound of an answer.
  started() {
    const heard = performance.now() + 1000 * (this.speaker.context.outputLatency || 0);
    if (this.lastLoud !== null) this.hooks.latency(heard - this.lastLoud);
    this.lastLoud = null;
  }

  // What is going on: "hearing", "speaking", or "listening" (silence).
  get phase() {
    if (this.hearing) return "hearing";
    return this.speaker?.busy ? "speaking" : "listening";
  }

  done(response) {
    this.response = null;
    if (response.status === "failed") this.complain(response.status_details?.error?.message);
    const cancelled = response.status === "cancelled";
    for (const {id} of response.output ?? []) {
      // All that came of it was played already, else `silence` says how much.
      if (cancelled && !this.speaker.busy && !this.cut.has(id)) {
        this.hooks.cut(id, this.receivedMs(id));
      } else this.hooks.spoken(id);
    }
    if (cancelled) this.silence();
  }

  // What is being said ends here and now, and the server learns how much of it was heard.
  interrupt() {
    if (!this.speaker?.busy) return;
    if (this.response) this.send({type: "response.cancel", event_id: CUT});
    return this.silence();
  }

  async silence() {
    if (!this.speaker?.busy) return;
    for (const item of this.speaker.unfinished) this.cut.add(item);
    for (const {item, ms} of await this.speaker.flush()) {
      this.send({type: "conversation.item.truncate", event_id: CUT, item_id: item,
                 content_index: 0, audio_end_ms: ms});
      this.hooks.cut(item, ms);
    }
  }

  // Words and pictures into the middle of the conversation. content: OpenAI's parts of an item.
  say(content) {
    this.lastLoud = null;  // its answer says nothing about how fast speech is answered
    if (!this.native) this.interrupt();
    this.send({type: "conversation.item.create", item: {type: "message", role: "user", content}});
    if (!this.native) this.send({type: "response.create"});
  }

  failed(error) {
    if (error.event_id === CUT) return;
    if (error.event_id === SOUND && error.code === "invalid_value") return this.takeTurns();
    this.complain(error.message);
  }

  // The model can't hear while it speaks: the server finds by loudness whose turn it is.
  takeTurns() {
    if (!this.native) return;  // of sound that was on its way
    this.native = false;
    this.hooks.state("turns");
    this.configure();
  }

  complain(message) {
    this.complaint = message ?? "The server failed without saying why.";
    this.hooks.problem(this.complaint);
    if (!this.ready) this.stop(this.complaint);
  }

  // A browser does not tell a page why a socket did not open; asking for the models may.
  async closed({code, reason}) {
    if (code === 1006 && !this.ready) {
      const refused = "The server refused the conversation. Perhaps all its places are "
        + "taken; its log says why.";
      return this.stop(await server.model().then(() => refused, (fault) => fault));
    }
    this.stop(this.complaint || reason || CLOSED[code] || `The server hung up (code ${code}).`);
  }

  // problem: a sentence or an Error for the user; null: as was wished.
  stop(problem = null) {
    if (this.over) return;
    this.over = true;
    this.release();
    this.hooks.ended(problem);
  }

  release() {
    this.microphone?.close();
    this.speaker?.close();
    if (this.socket) {
      this.socket.onmessage = this.socket.onclose = null;
      this.socket.close(1000);
    }
    this.microphone = this.speaker = this.socket = null;
  }
}
