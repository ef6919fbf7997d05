// The box: words, at most one picture (chosen, dropped or pasted), and the kind of answer wanted.

import {TINY} from "./transcript.js";

const LARGEST = 512;  // pixels a side that are sent

// The picture of a file as PNG in a data URL, made smaller if it is larger than LARGEST.
async function shrink(file) {
  const bitmap = await createImageBitmap(file).catch(() => {
    throw new Error(`${file.name || "This file"} is no picture that this browser can read. `
      + "Choose a PNG, JPEG, WebP or GIF.");
  });
  const scale = Math.min(1, LARGEST / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas.toDataURL("image/png");
}

const hasFiles = (event) => event.dataTransfer?.types.includes("Files");

export class Composer {
  // parts: the elements {form, text, file, choose, preview, thumbnail, remove, send}.
  // send({text, picture}): the message is complete. stop(): the answer is no longer wanted.
  // problem(message): the picture can't be used.
  constructor(parts, {send, stop, problem}) {
    Object.assign(this, parts);
    this.hooks = {send, stop, problem};
    this.picture = null;
    this.answering = false;
    this.form.onsubmit = (event) => {
      event.preventDefault();
      if (this.answering) stop();
      else this.submit();
    };
    this.text.onkeydown = (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (!this.answering) this.submit();
    };
    this.choose.onclick = () => this.file.click();
    this.file.onchange = () => this.take(this.file.files);
    this.thumbnail.onload = () =>
      this.thumbnail.classList.toggle("tiny", this.thumbnail.naturalWidth <= TINY);
    this.remove.onclick = () => {
      this.attach(null);
      this.text.focus();
    };
    document.addEventListener("paste", (event) => {
      const files = event.clipboardData.files;
      if (!files.length) return;
      event.preventDefault();
      this.take(files);
    });
    this.listenForDrops();
  }

  listenForDrops() {
    const mark = (on) => document.body.classList.toggle("dropping", on);
    document.addEventListener("dragover", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      mark(true);
    });
    document.addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) mark(false);
    });
    document.addEventListener("drop", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      mark(false);
      this.take(event.dataTransfer.files);
    });
  }

  async take([file]) {
    if (!file) return;
    try {
      this.attach(await shrink(file));
      this.text.focus();
    } catch (fault) {
      this.hooks.problem(fault.message);
    }
    this.file.value = "";  // so that the same file can be chosen again
  }

  attach(picture) {
    this.picture = picture;
    this.preview.hidden = !picture;
    if (picture) this.thumbnail.src = picture;
    else this.thumbnail.removeAttribute("src");
  }

  submit() {
    const message = {text: this.text.value.trim(), picture: this.picture};
    if (!message.text && !message.picture) return this.text.focus();
    if (!this.hooks.send(message)) return;
    this.text.value = "";
    this.attach(null);
  }

  // What could not be sent comes back, unless something else was begun.
  restore({text, picture}) {
    if (this.text.value || this.picture) return;
    this.text.value = text;
    this.attach(picture);
  }

  // While an answer comes the button stops it.
  setAnswering(answering) {
    this.answering = answering;
    this.send.textContent = answering ? "Stop" : "Send";
  }

  get answer() {
    return new FormData(this.form).get("answer");
  }
}
