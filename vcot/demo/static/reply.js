// One reply: its image with boxes, its text with mentions, and which of them are lit. Whatever a model says is text.

const SVG = "http://www.w3.org/2000/svg";
const COLOURS = 8;

// An object has one colour wherever it is named, in every reply to a question.
export class Palette {
  #known = new Map();
  of(label, reply, mention) {
    const key = label.trim().toLowerCase() || `${reply}/${mention}`;
    if (!this.#known.has(key)) this.#known.set(key, this.#known.size % COLOURS);
    return this.#known.get(key);
  }
}

export class Reply {
  constructor(event, image, palette) {
    Object.assign(this, { number: event.reply, way: event.way, draw: event.draw, blank: event.blank, image, palette });
    this.state = "waiting";
    this.kept = null; // number of the mention that a click keeps lit
    this.done = null; // the last event, with all of the reply
    this.root = document.querySelector("#reply").content.firstElementChild.cloneNode(true);
    const find = (name) => this.root.querySelector(name);
    [this.frame, this.svg, this.tags, this.pace, this.note] =
      [".frame", "svg", ".tags", ".pace", ".note"].map(find);
    [this.reasoning, this.answerBlock, this.after] = [".reasoning", ".answer", ".after"].map(find);
    this.answer = this.answerBlock.querySelector("p");
    find("h3").textContent = this.title;
    if (this.blank) find("img").remove();
    else find("img").src = image.url;
    if (!this.blank) find("img").alt = `The image that is asked about: ${image.name}`;
    this.frame.style.setProperty("--ratio", image.width / image.height);
    this.svg.setAttribute("viewBox", `0 0 ${image.width} ${image.height}`);
    this.root.classList.add("writing");
    this.#clear();
    this.#listen();
  }

  get title() {
    return [this.way, this.draw === null ? "" : `reply ${this.draw + 1}`, this.blank ? "blank image" : ""]
      .filter(Boolean).join(" · ");
  }

  #clear() {
    this.mentions = []; // {label, boxes, span, groups, colour}
    this.base = 0; // of the second turn's mentions, which count from 0 again
    this.into = this.reasoning;
    this.svg.replaceChildren();
    this.tags.replaceChildren();
    this.root.classList.remove("some-lit", "many");
    for (const part of [this.reasoning, this.answer, this.after]) part.replaceChildren();
    this.answerBlock.hidden = true;
  }

  on(event) {
    switch (event.on) {
      case "waiting": return this.#told(`waiting, ${event.before} before this`);
      case "begun": this.state = "writing"; return this.#told("asked, nothing yet");
      case "text": return this.#text(event.text);
      case "label": return this.#mention(event.text);
      case "box": return this.#box(this.mentions[this.base + event.mention], event.box);
      case "answer": return this.#answers();
      case "look": return this.#looks(event.box);
      case "pace": return this.#told(paceOf(event));
      case "done": return this.#ends(event);
      case "failed": return this.end("failed", event.message);
    }
  }

  end(state, message) {
    this.state = state;
    this.root.classList.remove("writing");
    this.note.textContent = message;
    this.note.classList.toggle("bad", state === "failed");
    if (state !== "done" && this.pace.textContent.startsWith("waiting")) this.pace.textContent = "";
  }

  #told(words) {
    this.pace.textContent = words;
  }

  #text(text) {
    const last = this.into.lastChild;
    if (last?.nodeType === Node.TEXT_NODE) last.appendData(text);
    else this.into.append(text);
  }

  #mention(label) {
    const span = document.createElement("span");
    span.className = `mention c${this.palette.of(label, this.number, this.mentions.length)}`;
    span.textContent = label;
    this.mentions.push({ label, span, boxes: [], groups: [], colour: span.className.split(" ")[1] });
    this.into.append(span);
  }

  #box(mention, [x1, y1, x2, y2]) {
    const { span, label, colour } = mention, { width, height } = this.image;
    const number = this.mentions.indexOf(mention);
    if (!mention.boxes.length) {
      span.classList.add("boxed");
      span.classList.toggle("nameless", !label.trim());
      Object.assign(span, { tabIndex: 0, role: "button", ariaPressed: "false" });
      if (!label.trim()) span.ariaLabel = "box without a name";
      span.dataset.mention = number;
    }
    mention.boxes.push([x1, y1, x2, y2]);
    const group = document.createElementNS(SVG, "g");
    group.setAttribute("class", `box ${colour}`);
    for (const [name, value] of [["tabindex", "0"], ["role", "img"], ["aria-label", label.trim() || "box without a name"]])
      group.setAttribute(name, value);
    group.dataset.mention = number;
    for (const name of ["halo", "edge"]) {
      const rect = document.createElementNS(SVG, "rect");
      rect.setAttribute("class", name);
      for (const [side, value] of [["x", x1], ["y", y1], ["width", x2 - x1], ["height", y2 - y1]])
        rect.setAttribute(side, value);
      group.append(rect);
    }
    this.svg.append(group);
    mention.groups.push(group);
    if (label.trim()) {
      const tag = document.createElement("span"), right = (x1 + x2) / 2 > width * 0.6;
      tag.className = `tag ${colour}${y1 < height * 0.08 ? " inside" : ""}${right ? " from-right" : ""}`;
      tag.textContent = label;
      if (right) tag.style.right = `${100 - 100 * x2 / width}%`;
      else tag.style.left = `${100 * x1 / width}%`;
      tag.style.top = `${100 * y1 / height}%`;
      tag.dataset.mention = number;
      this.tags.append(tag);
    }
    this.root.classList.toggle("many", this.svg.querySelectorAll(".box").length > 6);
  }

  #answers() {
    // A later line may mark the answer again; what was taken for it was reasoning then.
    if (this.into === this.answer) this.reasoning.append(...this.answer.childNodes);
    this.into = this.answer;
    this.answerBlock.hidden = false;
  }

  #looks([x1, y1, x2, y2]) {
    const rect = document.createElementNS(SVG, "rect");
    rect.setAttribute("class", "looked");
    for (const [side, value] of [["x", x1], ["y", y1], ["width", x2 - x1], ["height", y2 - y1]]) rect.setAttribute(side, value);
    this.svg.append(rect);
    this.answer.replaceChildren();
    this.answerBlock.hidden = true;
    this.into = this.reasoning;
    this.base = this.mentions.length;
    this.#told("looks again at what the dashed line holds");
  }

  #ends(event) {
    this.done = event;
    const looked = this.svg.querySelector(".looked"), at = document.activeElement;
    const focused = this.root.contains(at) ? [at.tagName, at.dataset.mention] : null;
    this.#clear();
    for (const [parts, into] of [[event.reasoning, this.reasoning], [event.answer, this.answer], [event.after, this.after]]) {
      this.into = into;
      for (const part of parts) {
        if (typeof part === "string") this.#text(part);
        else {
          this.#mention(part.label);
          for (const box of part.boxes) this.#box(this.mentions.at(-1), box);
        }
      }
    }
    if (looked) this.svg.append(looked);
    this.#light(this.kept);
    if (focused) // what had it was replaced by its like
      [...this.root.querySelectorAll(`[data-mention="${focused[1]}"]`)].find(({ tagName }) => tagName === focused[0])?.focus();
    this.answerBlock.hidden = event.stated === null;
    this.#told(paceOf(event));
    const unread = event.faults.map(({ kind, text }) => `${text || "…"} (${kind.replaceAll("_", " ")})`);
    const notes = [
      event.text.trim() ? "" : "It said nothing.",
      event.finish === "length" ? "Cut off: the longest reply is reached." : "",
      unread.length ? `Not read: ${unread.join("; ")}` : "",
    ];
    this.end("done", notes.filter(Boolean).join("\n"));
  }

  // --- a mention and its boxes light each other; a click keeps them lit

  #listen() {
    const over = (event) => event.target.closest?.("[data-mention]")?.dataset.mention;
    for (const [kind, lit] of [["mouseover", over], ["mouseout", () => undefined], ["focusin", over], ["focusout", () => undefined]])
      this.root.addEventListener(kind, (event) => this.#light(lit(event) ?? this.kept));
    const keep = (event) => {
      const number = over(event) ?? null;
      if (event.type === "click" || number !== null) {
        this.kept = this.kept === number ? null : number;
        this.#light(this.kept);
      }
    };
    this.root.addEventListener("click", keep);
    this.root.addEventListener("keydown", (event) => {
      if ((event.key === "Enter" || event.key === " ") && over(event) !== undefined) {
        event.preventDefault();
        keep(event);
      }
    });
  }

  #light(number) {
    const some = number !== null && number !== undefined;
    this.root.classList.toggle("some-lit", some);
    for (const part of this.root.querySelectorAll("[data-mention]"))
      part.classList.toggle("lit", some && part.dataset.mention === String(number));
    for (const { span } of this.mentions)
      if (span.role === "button") span.ariaPressed = String(span.dataset.mention === this.kept);
  }

  // What is copied: what was said, and where; boxes in pixels of the original image.
  get json() {
    const { way, draw, blank, state, done } = this;
    const mentions = this.mentions.filter(({ boxes }) => boxes.length).map(({ label, boxes }) => ({ label, boxes }));
    const said = done === null
      ? { text: null, answer: null }
      : { text: done.text, answer: done.stated, tokens: done.tokens, seconds_to_first_token: done.first, tokens_per_second: done.rate };
    return { way, draw, blank, state, ...said, mentions };
  }
}

function paceOf({ first, rate, tokens }) {
  if (first === null) return "";
  const pace = rate === null ? `${tokens} token${tokens === 1 ? "" : "s"}` : `${rate.toFixed(rate < 10 ? 1 : 0)} tokens/s`;
  return `first token ${first.toFixed(2)} s · ${pace}`;
}
