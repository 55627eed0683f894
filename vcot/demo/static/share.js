// Replies as one PNG, drawn here: nothing leaves the page unless somebody sends it.

const FONT = "system-ui, sans-serif", PAD = 28, GAP = 24, WIDE = 2;

export async function drawn(question, model, replies) {
  const columns = replies.length > 4 ? 3 : Math.min(replies.length, 2), column = columns === 1 ? 760 : 420;
  const canvas = document.createElement("canvas"), pen = canvas.getContext("2d");
  const style = getComputedStyle(document.documentElement), colour = (name) => style.getPropertyValue(name).trim();
  const image = await loaded(replies.find((reply) => !reply.blank)?.image.url);
  const width = 2 * PAD + columns * column + (columns - 1) * GAP;

  // Once to measure, once to draw.
  const paint = (draw) => {
    let y = PAD + text(pen, [{ text: question, bold: true }], PAD, PAD, width - 2 * PAD, 22, colour("--ink"), draw) + 14;
    for (let first = 0; first < replies.length; first += columns) {
      const row = replies.slice(first, first + columns);
      y += Math.max(...row.map((reply, n) => cell(pen, reply, image, PAD + n * (column + GAP), y, column, colour, draw))) + GAP;
    }
    return y + text(pen, [{ text: `${model} · made with vcot` }], PAD, y, width - 2 * PAD, 13, colour("--soft"), draw) + PAD;
  };
  const height = paint(false);
  Object.assign(canvas, { width: WIDE * width, height: WIDE * height });
  pen.scale(WIDE, WIDE);
  pen.fillStyle = colour("--ground");
  pen.fillRect(0, 0, width, height);
  paint(true);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

function cell(pen, reply, image, x, y, width, colour, draw) {
  const { image: { width: across, height: down } } = reply;
  const scale = Math.min(width / across, 560 / down), top = y + 24;
  text(pen, [{ text: reply.title }], x, y, width, 13, colour("--soft"), draw);
  if (draw) {
    pen.fillStyle = "#808080";
    pen.fillRect(x, top, across * scale, down * scale);
    if (!reply.blank && image) pen.drawImage(image, x, top, across * scale, down * scale);
    const boxes = reply.mentions.flatMap(({ label, boxes, groups }) => boxes.map(([x1, y1, x2, y2], n) => ({
      label: label.trim(), ink: getComputedStyle(groups[n]).getPropertyValue("--c").trim(),
      place: [x + x1 * scale, top + y1 * scale, (x2 - x1) * scale, (y2 - y1) * scale],
    })));
    for (const { ink, place } of boxes)
      for (const [line, stroke] of [[5, "#ffffffd9"], [2.5, ink]]) {
        Object.assign(pen, { lineWidth: line, strokeStyle: stroke });
        pen.strokeRect(...place);
      }
    pen.font = `12px ${FONT}`;
    for (const { label, ink, place } of boxes) if (label) {
      const wide = Math.min(pen.measureText(label).width + 12, width), up = Math.max(place[1] - 18, top);
      const left = Math.min(place[0], x + across * scale - wide);
      pen.fillStyle = ink;
      pen.fillRect(left, up, wide, 18);
      pen.fillStyle = "#fff";
      pen.fillText(label, left + 6, up + 13, wide - 12);
    }
  }
  let below = top + down * scale + 14;
  below += text(pen, runs(reply.reasoning), x, below, width, 16, colour("--ink"), draw);
  if (!reply.answerBlock.hidden)
    below += text(pen, [{ text: "Answer: " }, { text: reply.answer.textContent.trim(), bold: true }], x, below + 10, width, 20, colour("--ink"), draw) + 10;
  return below - y;
}

function runs(element) {
  return [...element.childNodes].map((node) => ({
    text: node.textContent,
    ink: node.classList?.contains("boxed") ? getComputedStyle(node).getPropertyValue("--c").trim() : null,
  }));
}

// Wraps; returns the height.
function text(pen, parts, x, y, width, size, ink, draw) {
  let at = 0, line = 0;
  const high = Math.round(size * 1.5);
  for (const part of parts) {
    pen.font = `${part.bold ? "600 " : ""}${size}px ${FONT}`;
    for (const word of part.text.split(/(\n|\s+)/)) {
      if (!word) continue;
      const wide = pen.measureText(word).width;
      if (word.includes("\n") || (at && at + wide > width)) {
        [at, line] = [0, line + 1];
        if (!word.trim()) continue;
      }
      if (draw) {
        pen.fillStyle = ink;
        pen.fillText(word, x + at, y + line * high + size, width);
        if (part.ink) {
          pen.fillStyle = part.ink;
          pen.fillRect(x + at, y + line * high + size + 4, wide, 2.5);
        }
      }
      at += wide;
    }
  }
  return at || line ? (line + 1) * high : 0;
}

function loaded(url) {
  if (!url) return null;
  return new Promise((resolve) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => resolve(null);
    image.src = url;
  });
}
