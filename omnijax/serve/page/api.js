// The server's HTTP side: OpenAI's endpoints, and what can go wrong with them in words.

const KEY = "omnijax-key";
const url = (path) => new URL(path, document.baseURI);

export class ApiError extends Error {
  constructor(status, message, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

// The key stays in this tab: a closed tab has forgotten it.
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value),
};

// body: sent as JSON, by POST. Throws ApiError; status 0: there is no server.
async function request(path, {body, signal} = {}) {
  const headers = {};
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  if (body) headers["Content-Type"] = "application/json";
  const method = body ? "POST" : "GET";
  let answer;
  try {
    answer = await fetch(url(path), {method, headers, body: body && JSON.stringify(body), signal});
  } catch (fault) {
    if (fault.name === "AbortError") throw fault;
    throw new ApiError(0, "The server does not answer. See whether it still runs, then try again.");
  }
  if (answer.ok) return answer;
  throw failure(answer.status, await answer.json().catch(() => null));
}

function failure(status, body) {
  const said = body?.error ?? {};
  if (status === 401) return new ApiError(401, "The server wants an API key.", said.code);
  const message = said.message ?? `The server refused: HTTP status ${status}.`;
  return new ApiError(status, message, said.code);
}

// The id of the model that is served.
export async function model() {
  const {data} = await (await request("v1/models")).json();
  if (!data.length) throw new ApiError(0, "The server has no model.");
  return data[0].id;
}

export async function health() {
  return (await request("health")).json();
}

// Events of a text/event-stream, parsed, as they come.
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

// One answer, streamed. messages: OpenAI's. speech: spoken, else written. words(text) and
// sound(base64 of 24 kHz s16le) are called as they come. Gives the id of the spoken answer, if any,
// and why it ended.
export async function chat({model, messages, speech, signal, words, sound}) {
  const body = {model, messages, stream: true};
  if (speech) Object.assign(body, {modalities: ["text", "audio"],
                                   audio: {voice: "alloy", format: "pcm16"}});
  let id, reason;
  for await (const event of events(await request("v1/chat/completions", {body, signal}))) {
    if (event.error) throw failure(500, event);
    const choice = event.choices?.[0];
    if (!choice) continue;
    const {content, audio} = choice.delta ?? {};
    if (content) words(content);
    if (audio?.transcript) words(audio.transcript);
    if (audio?.data) sound(audio.data);
    id = audio?.id ?? id;
    reason = choice.finish_reason ?? reason;
  }
  return {id, reason};
}

// A picture of what the prompt says, as a data URL.
export async function picture({model, prompt, signal}) {
  const body = {model, prompt, response_format: "b64_json"};
  const {data} = await (await request("v1/images/generations", {body, signal})).json();
  return `data:image/png;base64,${data[0].b64_json}`;
}

// The socket of a live conversation. Browsers can't set headers there: the key is a subprotocol.
export function socket(model) {
  const address = url(`v1/realtime?model=${encodeURIComponent(model)}`);
  address.protocol = address.protocol.replace("http", "ws");
  const protocols = ["realtime"];
  if (key.get()) protocols.push(`openai-insecure-api-key.${key.get()}`);
  return new WebSocket(address, protocols);
}
