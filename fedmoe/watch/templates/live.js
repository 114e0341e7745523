"use strict";
// Asks for the state every two seconds, and takes the new page's `main` when its stamp has changed.
const lost = document.getElementById("lost");
async function get(address) {
  const answer = await fetch(address, { cache: "no-store" });
  return answer.text();
}
async function refresh() {
  const state = JSON.parse(await get("/state.json" + location.search));
  lost.textContent = "";
  const main = document.querySelector("main");
  if (state.stamp === main.dataset.stamp) {
    const line = document.getElementById("status-line");
    if (line && state.status_line) line.textContent = state.status_line;
    return;
  }
  const fresh = new DOMParser().parseFromString(await get(location.href), "text/html");
  const next = fresh.querySelector("main");
  const open = [...main.querySelectorAll("details[open] > summary")].map((s) => s.textContent);
  for (const summary of next.querySelectorAll("details > summary"))
    summary.parentElement.open = open.includes(summary.textContent);
  document.title = fresh.title;
  main.replaceWith(document.adoptNode(next));
}
async function watch() {
  try {
    if (!document.hidden) await refresh();
  } catch (error) {
    lost.textContent = "fedmoe watch does not answer: this page is no longer up to date.";
  }
  setTimeout(watch, 2000);
}
setTimeout(watch, 2000);
