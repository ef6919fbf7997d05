// The page: wires its parts to the server. Talk is in talk.js, typing in typed.js.

import * as server from "./api.js";
import {Composer} from "./composer.js";
import {Talk} from "./talk.js";
import {seconds, Transcript} from "./transcript.js";
import {Typed} from "./typed.js";
import {Waves} from "./waves.js";

const $ = (id) => document.getElementById(id);
const REFRESH_MS = 10_000;

const touched = matchMedia("(pointer: coarse)").matches;
const STATES = {
  idle: touched ? "Press Talk, then speak." : "Press Talk or the space bar, then speak.",
  asking: "Waiting for leave to use the microphone\u2026",
  connecting: "Connecting\u2026",
  live: "Speak whenever you like, also while it speaks."
    + (touched ? "" : " Esc silences it."),
  turns: "This model takes turns: speak, then wait. Speaking interrupts it.",
};
const PHASES = {
  listening: "Listening",
  hearing: "Hearing you",
  speaking: "Speaking",
};
const BUTTONS = {idle: "Talk", asking: "Cancel", connecting: "Cancel", live: "End", turns: "End"};
const connected = () => ["live", "turns"].includes(document.body.dataset.state);

const transcript = new Transcript($("log"), $("empty"));
const waves = new Waves($("waves"));
let talk = null;
let model = null;
let speaker = null;  // the last that played
const latencies = [];

// ---- what goes wrong, in words -----------------------------------------------------------------

// problem: a sentence, or an Error. action: {label, run} of a button that may help.
function complain(problem, action = null) {
  if (problem.status === 401) return askForKey();
  const text = problem.message ?? problem;
  $("notice").hidden = false;
  // The same again is no news to a screen reader.
  if ($("notice-text").textContent !== text) $("notice-text").textContent = text;
  $("notice-action").hidden = !action;
  if (!action) return;
  $("notice-action").textContent = action.label;
  $("notice-action").onclick = () => {
    $("notice").hidden = true;
    action.run();
  };
}

$("notice-close").onclick = () => {
  $("notice").hidden = true;
  $("talk").focus();
};

function askForKey() {
  $("key-help").textContent = server.key.get()
    ? "The server does not accept this API key." : "This server asks for an API key.";
  $("key-form").hidden = false;
  $("key").focus();
}

$("key-form").onsubmit = (event) => {
  event.preventDefault();
  server.key.set($("key").value.trim());
  $("key-form").hidden = true;
  $("talk").focus();
  refresh();
};

// ---- talk --------------------------------------------------------------------------------------

function show(state) {
  document.body.dataset.state = state;
  $("status").textContent = STATES[state];
  $("talk-label").textContent = BUTTONS[state];
  $("talk").setAttribute("aria-pressed", String(state !== "idle"));
  $("answers").disabled = $("remembering").hidden = state !== "idle";
  $("spoken-hint").hidden = state === "idle";
}

function hooks() {
  const turns = new Map();
  const turn = (who, item) => {
    if (!turns.has(item)) turns.set(item, transcript.add(who));
    return turns.get(item);
  };
  return {
    state: show,
    levels: (side, level) => waves.add(side, level),
    heardStart: (item) => turn("user", item).note("speaking\u2026"),
    heardEnd: (item, ms) => turn("user", item).note(`spoke for ${seconds(ms)}`).done(),
    words: (item, text, atMs) => turn("model", item).words(text, atMs),
    spoken: (item) => turns.get(item)?.done(),
    cut: (item, ms) => {
      turns.get(item)?.cut(ms);
      waves.cut();
    },
    latency: showLatency,
    problem: (message) => complain(message),
    ended(problem) {
      const label = connected() ? "Reconnect" : "Try again";
      talk = null;
      show("idle");
      for (const open of turns.values()) open.done();
      if (problem) complain(problem, {label, run: toggleTalk});
      refresh();
    },
  };
}

function showLatency(ms) {
  latencies.push(ms);
  const sorted = latencies.toSorted((a, b) => a - b);
  const median = sorted[sorted.length >> 1];
  const inSeconds = (value) => `${(value / 1000).toFixed(2)} s`;
  $("latency").textContent = inSeconds(ms);
  $("latency-median").textContent =
    latencies.length > 1 ? `median of ${latencies.length}: ${inSeconds(median)}` : "";
  document.body.dataset.latencyMs = Math.round(ms);
}

async function toggleTalk() {
  if (talk) return talk.stop();
  $("notice").hidden = true;
  typed.stop();
  talk = new Talk(hooks());
  const mine = talk;
  try {
    model ??= await server.model();
  } catch (problem) {
    return mine.stop(problem);
  }
  if (!mine.over) await mine.start(model);
}

$("talk").onclick = toggleTalk;

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === "Escape") {
    talk?.interrupt();
    typed.stop();
  }
  const taken = "a, button, input, textarea, select, audio, [tabindex]";
  if (event.key !== " " || event.repeat || event.target.closest(taken)) return;
  event.preventDefault();
  toggleTalk();
});

// ---- typing ------------------------------------------------------------------------------------

const composer = new Composer({
  form: $("composer"), text: $("text"), file: $("file"), choose: $("choose"),
  preview: $("preview"), thumbnail: $("thumbnail"), remove: $("remove"), send: $("send"),
}, {send, stop: () => typed.stop(), problem: complain});

const typed = new Typed(transcript, {
  level: (level) => waves.add("model", level),
  busy: (busy) => composer.setAnswering(busy),
});

// Whether the message was taken.
function send(message) {
  if (talk && !connected()) return false;
  $("notice").hidden = true;
  const {text, picture} = message;
  if (!talk && composer.answer === "picture" && picture) {
    complain("Pictures are drawn from words alone. Remove the picture, or choose another answer.");
    return false;
  }
  const turn = transcript.add("user");
  if (picture) turn.picture(picture, "The picture you sent", "sent.png");
  turn.words(text).done();
  if (talk) {
    const parts = text ? [{type: "input_text", text}] : [];
    if (picture) parts.push({type: "input_image", image_url: picture});
    talk.say(parts);
  } else {
    answer(message, turn);
  }
  return true;
}

async function answer(message, turn) {
  try {
    model ??= await server.model();
    await typed.answer(model, message, composer.answer, $("remember").checked);
  } catch (problem) {
    turn.remove();
    composer.restore(message);
    complain(problem);
  }
}

$("clear").onclick = () => {
  typed.forget();
  transcript.clear();
  $("text").focus();
};

// ---- the server's state, and what moves --------------------------------------------------------

const FAULTS = {0: "does not answer", 401: "wants an API key", 503: "takes nobody new"};

function places({slots, talk: talks, write, queued}) {
  const busy = `${talks + write} of ${slots} places in use`;
  return queued ? `${busy}, ${queued} waiting` : busy;
}

async function refresh() {
  try {
    model ??= await server.model();
    const found = await server.health();
    if (found.model !== model) model = await server.model();  // another server by now
    $("model").textContent = model;
    $("health").textContent = `${found.status}, ${places(found.active)}`;
    document.body.dataset.server = "up";
  } catch (problem) {
    document.body.dataset.server = "down";
    $("health").textContent = FAULTS[problem.status] ?? problem.message;
    if (problem.status === 401 && $("key-form").hidden) askForKey();
  }
}

setInterval(() => document.hidden || refresh(), REFRESH_MS);
document.addEventListener("visibilitychange", () => document.hidden || refresh());

function frame() {
  speaker = talk?.speaker ?? typed.speaker ?? speaker;
  if (speaker) document.body.dataset.playedMs = speaker.playedMs;
  const phase = talk && connected() ? talk.phase : "";
  if (document.body.dataset.phase !== phase) {
    document.body.dataset.phase = phase;
    $("phase").textContent = PHASES[phase] ?? "";
  }
  waves.draw();
  requestAnimationFrame(frame);
}

show("idle");
refresh();
frame();
