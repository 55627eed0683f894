// Follows a reply one box at a time. Without this the page shows all of them.
for (const card of document.querySelectorAll(".follow")) {
  const bar = card.querySelector(".steps"), told = bar.querySelector("output"), reply = card.querySelector(".reply");
  const [previous, next, all] = bar.querySelectorAll("button");
  const parts = card.querySelectorAll("[data-steps]"), titles = card.querySelectorAll("svg title"), last = titles.length;
  let at = 0; // 0: all
  const show = (step) => {
    at = step;
    card.classList.toggle("one", at > 0);
    for (const part of parts) {
      const steps = part.dataset.steps.split(" ").map(Number);
      part.classList.toggle("now", steps.includes(at));
      part.classList.toggle("past", Math.max(...steps) < at);
      part.classList.toggle("later", at > 0 && Math.min(...steps) > at);
    }
    told.textContent = at ? `${at} of ${last}: ${titles[at - 1].textContent}` : `all ${last}`;
    const now = reply.querySelector(".now");
    reply.scrollTop = now ? now.offsetTop - reply.clientHeight / 3 : 0;
  };
  const back = () => show(at ? Math.max(at - 1, 1) : last), on = () => show(Math.min(at + 1, last));
  previous.onclick = back;
  next.onclick = on;
  all.onclick = () => show(0);
  bar.onkeydown = (event) => {
    const move = { ArrowLeft: back, ArrowRight: on }[event.key];
    if (move) {
      event.preventDefault();
      move();
    }
  };
  bar.hidden = false;
  show(0);
}
