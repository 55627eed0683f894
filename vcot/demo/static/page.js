// The form, the stream of events that answers it, and what can be done with replies.
import { Palette, Reply } from "/reply.js";
import { drawn } from "/share.js";

const find = (name) => document.querySelector(name);
const [form, question, notice, status, go, stopButton] =
  ["#ask", "#question", "#notice", "#status", "#go", "#stop"].map(find);

let about = null; // what the server says of the model and of itself
let image = null; // {file, name, url, width, height}
let current = null; // {question, image, replies, votes, palette, abort}
let chosen = false; // ways, by hand

const say = (words) => { notice.textContent = words; };

// --- the server, and the model behind it

async function learn() {
  let waiting = 1500;
  try {
    const response = await fetch("/about");
    if (!response.ok) throw new Error();
    const first = about === null, gone = document.body.dataset.server === "gone", ready = about?.ready;
    about = await response.json();
    document.body.dataset.server = about.ready ? "ready" : "loading";
    if (first) offerExamples();
    if (first || about.ready !== ready) offer();
    if (!about.ready) say("The model is being loaded, or its server is down. The page asks again by itself.");
    else if (gone || ready === false) say("");
    waiting = about.ready ? 0 : 1500;
  } catch {
    document.body.dataset.server = "gone";
    say("The page's server cannot be reached. Trying again…");
  }
  if (waiting) setTimeout(learn, waiting);
}

function offer() {
  find("#model").textContent = about.model;
  find("#keeps").textContent = about.keeps
    ? "Images and replies are kept by whoever runs this page."
    : "Images and replies are not kept.";
  const checked = new Set(chosen ? [...form.querySelectorAll("#ways :checked")].map((input) => input.value) : []);
  if (!checked.size) checked.add((about.ways.find((way) => way.learned) ?? about.ways[0]).name);
  find("#ways").replaceChildren(find("#ways legend"), ...about.ways.map((way) => {
    const label = document.createElement("label"), input = document.createElement("input");
    Object.assign(input, { type: "checkbox", name: "ways", value: way.name, checked: checked.has(way.name) });
    label.append(input, way.name);
    label.title = way.about + (way.learned ? "" : " The model was not tuned to do so.");
    label.classList.toggle("unlearned", !way.learned);
    return label;
  }));
  const lines = flat(about.card);
  find("#card-open").disabled = false;
  find("#card-title").textContent = about.model;
  find("#card dl").replaceChildren(...lines.flatMap(([name, value]) => {
    const [term, told] = ["dt", "dd"].map((kind) => document.createElement(kind));
    [term.textContent, told.textContent] = [name, value];
    return [term, told];
  }));
}

function flat(value, name = "") {
  if (value === null || typeof value !== "object") return [[name, value === null ? "–" : String(value)]];
  return Object.entries(value).flatMap(([key, inner]) => flat(inner, name ? `${name}: ${key}` : key));
}

function offerExamples() {
  const tiles = (captioned) => about.examples.map((example, number) => {
    const button = document.createElement("button"), shown = document.createElement("img");
    Object.assign(shown, { src: `/examples/${number}`, alt: "" });
    Object.assign(button, { type: "button", title: example.question, ariaLabel: `Example: ${example.title}. ${example.question}` });
    button.append(shown);
    if (captioned) {
      const caption = document.createElement("span");
      caption.textContent = example.question;
      button.append(caption);
    }
    button.addEventListener("click", async () => {
      const data = await (await fetch(`/examples/${number}`)).blob();
      if (await take(new File([data], `${example.title} ${number + 1}`, { type: data.type }))) question.value = example.question;
    });
    return button;
  });
  find("#examples").replaceChildren(...tiles(false));
  find(".tiles").replaceChildren(...tiles(true));
}

// --- an image: from a file, the clipboard, a drag, the camera

async function take(file) {
  if (!file) return false;
  if (about && file.size > about.bytes) {
    say(`This file is too large: at most ${about.bytes / 2 ** 20} MiB are taken.`);
    return false;
  }
  const url = URL.createObjectURL(file), probe = new Image();
  const isImage = await new Promise((resolve) => {
    [probe.onload, probe.onerror] = [() => resolve(true), () => resolve(false)];
    probe.src = url;
  });
  const { naturalWidth: width, naturalHeight: height } = probe;
  const wrong = !isImage || !width ? "This file is no image that can be shown here."
    : about && width * height > about.pixels ? "This image has too many pixels." : "";
  if (wrong) {
    URL.revokeObjectURL(url);
    say(wrong);
    return false;
  }
  if (image && image.url !== current?.image.url) URL.revokeObjectURL(image.url);
  image = { file, name: file.name, url, width, height };
  find("#preview img").src = url;
  find("#preview").hidden = false;
  find("#invite").hidden = true;
  find("#choose").textContent = "Another file";
  if (document.body.dataset.server === "ready") say("");
  return true;
}

find("#choose").addEventListener("click", () => find("#file").click());
find("#file").addEventListener("change", (event) => {
  take(event.target.files[0]);
  event.target.value = "";
});
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file) {
    event.preventDefault();
    take(file);
  }
});
for (const [kind, over] of [["dragover", true], ["dragleave", false], ["drop", false]])
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.toggle("dragging", over);
    if (kind === "drop" && event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
  });

const camera = find("#camera-dialog"), video = camera.querySelector("video");
find("#camera").addEventListener("click", async () => {
  if (!navigator.mediaDevices?.getUserMedia) { // not over plain http from elsewhere; a phone's file chooser has one
    find("#file").capture = "environment";
    find("#file").click();
    find("#file").removeAttribute("capture");
    return;
  }
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    camera.showModal();
    await video.play();
  } catch {
    camera.close();
    say("The camera cannot be used: there is none, or the browser does not allow it.");
  }
});
find("#take").addEventListener("click", () => {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((data) => data && take(new File([data], "camera", { type: "image/png" })), "image/png");
  camera.close();
});
find("#camera-close").addEventListener("click", () => camera.close());
camera.addEventListener("close", () => video.srcObject?.getTracks().forEach((track) => track.stop()));

// --- asking

find("#ways").addEventListener("change", () => { chosen = true; });
form.addEventListener("submit", (event) => {
  event.preventDefault();
  const ways = [...form.querySelectorAll("#ways :checked")].map((input) => input.value);
  const samples = Number(find("#samples").value), asked = question.value.trim();
  const wrong = !about ? "The page's server cannot be reached yet."
    : !image ? "Put an image in first."
    : !asked ? "What do you want to know? The question is empty."
    : asked.length > about.question ? `The question is too long: at most ${about.question} characters are taken.`
    : !ways.length ? "Choose at least one way to ask."
    : ways.length * samples > about.most_replies ? `At most ${about.most_replies} replies at a time; these are ${ways.length * samples}.` : "";
  if (wrong) return say(wrong);
  current?.abort.abort();
  if (current && current.image.url !== image.url) URL.revokeObjectURL(current.image.url);
  current = { question: asked, image, ways, samples, replies: [], votes: [], palette: new Palette(), abort: null };
  document.body.classList.add("asked");
  find("#empty").hidden = true;
  find("#asked").hidden = false;
  find("#asked h2").textContent = asked;
  find("#cards").replaceChildren();
  find("#votes").replaceChildren();
  ask(current, false);
});
question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    form.requestSubmit();
  }
});
stopButton.addEventListener("click", () => stop());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !stopButton.hidden && !document.querySelector("dialog[open]")) stop();
});

function stop() {
  current?.abort.abort();
  go.focus();
}

async function ask(run, blank) {
  const data = new FormData();
  data.set("question", run.question);
  data.set("ways", run.ways.join(","));
  data.set("samples", blank ? 1 : run.samples);
  data.set("blank", blank ? "yes" : "no");
  data.set("image", run.image.file);
  const base = run.replies.length, mine = [], aborter = run.abort = new AbortController();
  say("");
  status.textContent = "Asked.";
  busy(true);
  const last = () => current === run && run.abort === aborter; // nothing else was asked meanwhile
  const unfinished = (state, words) => mine.forEach((reply) => {
    if (["waiting", "writing"].includes(reply.state)) reply.end(state, words);
  });
  try {
    const response = await fetch("/ask", { method: "POST", body: data, signal: aborter.signal });
    if (!response.ok) {
      say(await response.json().then(({ message }) => message, () => "The question did not reach the page's server."));
      if (response.status === 503) learn();
      return;
    }
    let ended = false;
    for await (const event of events(response.body)) {
      if (event.on === "image") Object.assign(run.image, { width: event.width, height: event.height });
      else if (event.on === "reply") {
        const reply = new Reply(event, run.image, run.palette);
        mine.push(reply);
        run.replies.push(reply);
        find("#cards").append(reply.root);
        find("#cards").classList.toggle("one", run.replies.length === 1);
        find("#cards").classList.toggle("several", run.replies.length > 2);
        if (run.replies.length === base + 1 && innerWidth <= 900) find("#asked").scrollIntoView({ block: "start" });
      } else if (event.on === "vote") voted(run, event, mine);
      else if (event.on === "end") ended = true;
      else if ("reply" in event) mine[event.reply].on(event);
    }
    if (!ended) throw new TypeError("cut off");
    status.textContent = mine.map((reply) => `${reply.title}: ${reply.done?.stated ?? reply.note.textContent}`).join(". ");
  } catch (error) {
    if (error.name === "AbortError") {
      unfinished("stopped", "Stopped.");
      if (last()) status.textContent = "Stopped.";
    } else {
      unfinished("failed", "The connection broke.");
      learn();
    }
  } finally {
    if (last()) busy(false);
  }
}

function busy(on) {
  if (!on && document.activeElement === stopButton) go.focus();
  stopButton.hidden = !on;
  document.body.classList.toggle("busy", on);
  for (const name of ["#blank", "#copy", "#share"]) find(name).disabled = on;
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  while (true) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) if (block.startsWith("data: ")) yield JSON.parse(block.slice(6));
  }
}

// --- several samples: the vote

const METHODS = { cisc: "weighted by how likely each reply is", best_of_n: "the likeliest reply" };

function voted(run, vote, mine) {
  run.votes.push(vote);
  const block = document.createElement("div"), title = document.createElement("h3"), list = document.createElement("ol");
  const all = mine.filter((reply) => reply.way === vote.way).length;
  block.className = "vote";
  title.textContent = vote.groups.length ? `Vote of ${all} (${vote.way})` : `No reply of ${all} comes to an answer (${vote.way})`;
  for (const { answer, replies } of vote.groups) {
    const [line, name, bar, filled, count] = ["li", "span", "div", "i", "span"].map((kind) => document.createElement(kind));
    name.textContent = answer;
    bar.className = "bar";
    filled.style.width = `${100 * replies.length / all}%`;
    bar.append(filled);
    count.textContent = `${replies.length} of ${all}`;
    line.append(name, bar, count);
    list.append(line);
  }
  const said = Object.entries(METHODS).filter(([method]) => method in vote.chosen)
    .map(([method, words]) => `${words}: ${mine[vote.chosen[method]].done.stated ?? "none"}`);
  const more = document.createElement("p");
  more.textContent = said.length ? said.join(" · ") : "The endpoint gives no log-probabilities, so each reply counts alike.";
  block.append(title, ...(vote.groups.length ? [list, more] : []));
  find("#votes").append(block);
  for (const number of vote.groups[0]?.replies ?? []) mine[number].root.classList.add("chosen");
}

// --- what can be done with replies

find("#blank").addEventListener("click", () => ask(current, true));

find("#copy").addEventListener("click", async () => {
  const { image: { name, width, height }, replies, votes } = current;
  const made = { model: about.model, question: current.question, image: { name, width, height }, replies: replies.map((reply) => reply.json) };
  const text = JSON.stringify(votes.length ? { ...made, votes: votes.map(({ on, ...vote }) => vote) } : made, null, 1);
  try {
    await navigator.clipboard.writeText(text);
  } catch { // over plain http from elsewhere
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  flash("#copy", "Copied");
});

find("#share").addEventListener("click", async () => {
  const data = await drawn(current.question, about.model, current.replies);
  if (!data) return say("This is too much for one image here. Ask for fewer replies.");
  const file = new File([data], "vcot.png", { type: "image/png" });
  if (navigator.canShare?.({ files: [file] }) && matchMedia("(pointer: coarse)").matches) {
    await navigator.share({ files: [file] }).catch(() => {});
    return;
  }
  const link = document.createElement("a");
  Object.assign(link, { href: URL.createObjectURL(file), download: file.name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  flash("#share", "Saved");
});

function flash(name, words) {
  const button = find(name), before = button.textContent;
  if (before === words) return;
  button.textContent = status.textContent = words;
  setTimeout(() => { button.textContent = before; }, 1500);
}

find("#card-open").addEventListener("click", () => find("#card").showModal());

learn();
