// Typed messages and their answers: text or speech as it comes, or a picture.

import * as server from "./api.js";
import {fromBase64, wav} from "./pcm.js";
import {Speaker} from "./speaker.js";

const ENDS = {
  length: "the answer is longer than may be written at once",
  content_filter: "the server held the rest back",
};

export class Typed {
  // level(RMS): of what is played. busy(whether an answer is being made).
  constructor(transcript, {level, busy}) {
    this.transcript = transcript;
    this.level = level;
    this.busy = busy;
    this.history = [];  // the conversation so far, as OpenAI's messages
    this.aborter = null;
    this.speaker = null;  // while a spoken answer is played
    this.drawn = 0;
  }

  // Answers a message {text, picture} as "text", "speech" or "picture". remember: whether the model
  // is told what was said before. Throws what the server says.
  async answer(model, {text, picture}, kind, remember) {
    this.stop();
    const aborter = this.aborter = new AbortController();
    this.busy(true);
    const turn = this.transcript.add("model");
    try {
      const request = {model, signal: aborter.signal};
      if (kind === "picture") await this.draw(turn, {...request, prompt: text});
      else await this.write(turn, request, message(text, picture), kind === "speech", remember);
    } catch (fault) {
      if (fault.name !== "AbortError") {
        turn.remove();
        throw fault;
      }
      turn.note("stopped");
    } finally {
      turn.done();
      if (this.aborter === aborter) {
        this.aborter = null;
        this.busy(false);
      }
    }
  }

  async draw(turn, request) {
    turn.note("drawing\u2026");
    const url = await server.picture(request);
    this.drawn += 1;
    turn.picture(url, `A picture of: ${request.prompt}`, `picture-${this.drawn}.png`);
    turn.note("click the picture to save it");
  }

  async write(turn, request, asked, speech, remember) {
    const pieces = [];
    const speaker = speech ? await this.openSpeaker() : null;
    try {
      const {id, reason} = await server.chat({
        ...request, speech, messages: remember ? [...this.history, asked] : [asked],
        words: (text) => turn.words(text),
        sound: (base64) => {
          const pcm = fromBase64(base64);
          pieces.push(pcm);
          speaker?.play("answer", pcm);
        },
      });
      this.history.push(asked, id ? {role: "assistant", audio: {id}}
        : {role: "assistant", content: turn.text});
      if (ENDS[reason]) turn.note(ENDS[reason]);
      if (!pieces.length && !turn.text) turn.note("an empty answer");
    } finally {
      if (pieces.length) turn.sound(wav(pieces));
      if (pieces.length) speaker?.end("answer");
      else this.hush(speaker);
    }
  }

  async openSpeaker() {
    const speaker = await Speaker.open({
      started() {},
      idle: () => this.hush(speaker),
      level: this.level,
    });
    this.speaker = speaker;
    return speaker;
  }

  hush(speaker = this.speaker) {
    if (!speaker || speaker !== this.speaker) return;  // closed already
    speaker.close();
    this.speaker = null;
  }

  // No more of the answer, neither words nor sound.
  stop() {
    this.aborter?.abort();
    this.hush();
  }

  forget() {
    this.stop();
    this.history = [];
  }
}

function message(text, picture) {
  if (!picture) return {role: "user", content: text};
  const content = text ? [{type: "text", text}] : [];
  content.push({type: "image_url", image_url: {url: picture}});
  return {role: "user", content};
}
