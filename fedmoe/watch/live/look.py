"""The style sheet and the script of the page of `fedmoe watch`; both are part of the page."""

STYLE = """
:root { --c0: #0072b2; --c1: #b34a00; --c2: #00795a; --c3: #a8447f; --c4: #6b4fbb; --c5: #6b6100;
  --less: #2b6cb0; --more: #c75b12; }
@media (prefers-color-scheme: dark) {
  :root { --c0: #58b4f0; --c1: #f0975a; --c2: #3fc79a; --c3: #e59bc4; --c4: #b3a0f5; --c5: #d8c945;
    --less: #4f9be0; --more: #f08a3c; }
}
nav { margin-bottom: .8rem; font-size: .9rem; } a { color: var(--c0); }
.status.running { color: var(--c0); } .status.silent { color: var(--bad); }
progress { width: 100%; height: .7rem; margin: .5rem 0 .9rem; accent-color: var(--c0); }
#pace { margin: .2rem 0 0; font-variant-numeric: tabular-nums; }
#lost { color: var(--bad); font-weight: 600; margin: .4rem 0 0; } #lost:empty { display: none; }
.advice { border-left: 3px solid var(--bad); padding-left: .8rem; max-width: 46rem; }
svg { display: block; width: 100%; height: auto; background: var(--panel); border-radius: 6px; }
svg text { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; fill: var(--muted); }
svg text.side { text-anchor: end; } svg text.below { text-anchor: middle; }
svg line { stroke: var(--line); stroke-width: 1; }
svg polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
g.c0 { stroke: var(--c0); fill: var(--c0); } svg text.c0 { fill: var(--c0); }
g.c1 { stroke: var(--c1); fill: var(--c1); } svg text.c1 { fill: var(--c1); }
g.c2 { stroke: var(--c2); fill: var(--c2); } svg text.c2 { fill: var(--c2); }
g.c3 { stroke: var(--c3); fill: var(--c3); } svg text.c3 { fill: var(--c3); }
g.c4 { stroke: var(--c4); fill: var(--c4); } svg text.c4 { fill: var(--c4); }
g.c5 { stroke: var(--c5); fill: var(--c5); } svg text.c5 { fill: var(--c5); }
rect.less { fill: var(--less); } rect.more { fill: var(--more); } rect.none { fill: var(--line); }
rect.starved { fill: var(--less); stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 3 2; }
tbody th { white-space: normal; overflow-wrap: break-word; max-width: 26rem; }
td.word:nth-child(3) { white-space: normal; min-width: 7.5rem; max-width: 26rem; }
.plots { margin-top: .4rem; }
@media (max-width: 40rem) { svg text { font-size: 14px; } }
"""

SCRIPT = """
"use strict";
const lost = document.getElementById("lost");
async function get(address) {
  const answer = await fetch(address, { cache: "no-store" });
  return answer.text();
}
async function look() {
  const state = JSON.parse(await get("/state.json" + location.search));
  lost.textContent = "";
  const main = document.querySelector("main");
  if (state.stamp === main.dataset.stamp) {
    const pace = document.getElementById("pace");
    if (pace && state.pace) pace.textContent = state.pace;
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
    if (!document.hidden) await look();
  } catch (error) {
    lost.textContent = "fedmoe watch does not answer: this page is no longer up to date.";
  }
  setTimeout(watch, 2000);
}
setTimeout(watch, 2000);
"""
