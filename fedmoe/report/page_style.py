"""The style sheet of the report page: one column on a phone, two on a desk, none of it fetched."""

STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --muted: #59636e; --line: #d1d9e0;
  --paper: #ffffff; --panel: #f6f8fa; --good: #1a7f37; --bad: #b35900; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --muted: #9aa4af; --line: #3a424b; --paper: #14181d; --panel: #1d2228;
    --good: #57ab5a; --bad: #e0913f; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.75rem 1.25rem 3rem; max-width: 70rem; color: var(--ink);
  background: var(--paper); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
header { border-bottom: 1px solid var(--line); padding-bottom: 1.25rem; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.25rem 0 .6rem; }
.status { font-size: .85rem; font-weight: 600; color: var(--good); }
.status.interrupted { color: var(--bad); }
.headline { font-size: 1.15rem; margin: .6rem 0 1.1rem; max-width: 46rem; }
dl { display: flex; flex-wrap: wrap; gap: .6rem 2rem; margin: 0; }
dt { color: var(--muted); font-size: .8rem; }
dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums;
  min-width: 50%; }
th, td { padding: .32rem .5rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child { padding-left: 0; }
thead th { color: var(--muted); font-weight: 600; vertical-align: bottom; white-space: normal; }
tbody th { font-weight: 600; }
.word { text-align: left; }
td.word:last-child { white-space: normal; overflow-wrap: anywhere; min-width: 14rem; }
.note, figcaption { color: var(--muted); font-size: .85rem; margin: .4rem 0 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
  gap: 1.5rem; align-items: start; }
figure { margin: 0; break-inside: avoid; }
figure img { display: block; width: 100%; height: auto; background: #ffffff; padding: .5rem;
  border: 1px solid var(--line); border-radius: 6px; }
details { margin-top: 1rem; background: var(--panel); border-radius: 6px; padding: .6rem .9rem; }
summary { cursor: pointer; font-weight: 600; }
details .scroll { margin-top: .6rem; }
@media (max-width: 40rem) { body { padding: 1.1rem .9rem 2rem; } th, td { padding: .3rem .5rem; } }
@media print {
  :root { --ink: #000000; --muted: #444444; --line: #bbbbbb; --paper: #ffffff; --panel: #ffffff; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .plots { grid-template-columns: 1fr 1fr; }
  table { font-size: 7.5pt; } th, td { padding: .15rem .3rem; }
  .scroll { overflow: visible; } tr { break-inside: avoid; } h2 { break-after: avoid; }
}
"""
