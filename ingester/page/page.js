// Keeps the page fresh without loading it anew: what changed is changed in place, so scroll, focus and selection stay.
"use strict";
const every = 1000 * Number(document.currentScript.dataset.seconds);
const stale = document.getElementById("stale");

function become(old, next) {
  if (old.nodeType !== next.nodeType || old.nodeName !== next.nodeName || old.id !== next.id) {
    old.replaceWith(next);
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== next.data) old.data = next.data;
    return;
  }
  for (const { name } of [...old.attributes]) if (!next.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of next.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  const before = [...old.childNodes];
  const after = [...next.childNodes];
  before.slice(after.length).forEach((node) => node.remove());
  after.forEach((node, place) => (place < before.length ? become(before[place], node) : old.append(node)));
}

async function refresh() {
  if (document.hidden) return;
  try {
    const answer = await fetch("/", { signal: AbortSignal.timeout(2 * every) });
    if (!answer.ok) throw new Error(String(answer.status));
    const next = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const part of ["header", "main", "footer"]) become(document.querySelector(part), next.querySelector(part));
    if (document.title !== next.title) document.title = next.title;
    if (!stale.hidden) stale.hidden = true;
  } catch {
    if (stale.hidden) stale.textContent = `The service does not answer. This is how it was ${document.getElementById("as-of").textContent}.`;
    stale.hidden = false;
  }
}

(async () => {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, every));
    await refresh();
  }
})();
document.addEventListener("visibilitychange", refresh);
