"""The page's stylesheet and script."""

from __future__ import annotations

CSS = """
:root {
  color-scheme: light dark;
  --font: ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "Liberation Mono", monospace;
  --page: #f6f7f9; --surface: #ffffff; --ink: #1b2230; --muted: #5b6577; --rule: #e2e6ec; --faint: #9aa5b5;
  --accent: #1f62c4; --wash: rgba(31, 98, 196, .10); --dense: #b4540a; --eight: #4079cf; --float: #a9b3c1;
  --track: #eef1f5; --bad: #b42318;
  --part-propose: #8a5fbf; --part-compress: #2f9e8f; --part-recover: #1f62c4; --part-export: #d98a1f;
  --part-measure: #c2477f; --part-orchestration: #b4bdca;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #11151b; --surface: #181d25; --ink: #e5e9f0; --muted: #9aa6b8; --rule: #2a323e; --faint: #66748a;
    --accent: #6ea8fe; --wash: rgba(110, 168, 254, .14); --dense: #f0a35e; --eight: #4f86d8; --float: #6b788d;
    --track: #222933; --bad: #f97066;
    --part-propose: #a987dc; --part-compress: #45b8a8; --part-recover: #5b97f0; --part-export: #e6a548;
    --part-measure: #de6a9d; --part-orchestration: #566173;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.55 var(--font); }
main { max-width: 1160px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 4px 0 8px; letter-spacing: -.015em; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 0 0 4px; letter-spacing: -.005em; }
h3 { font-size: 14px; margin: 20px 0 6px; }
p { margin: 0 0 10px; max-width: 76ch; }
.kicker { color: var(--muted); font-size: 13px; margin: 0; }
.lead { font-size: 17px; color: var(--ink); margin-bottom: 0; }
.note { color: var(--muted); font-size: 13.5px; max-width: 96ch; }
.bad { color: var(--bad); }
section { background: var(--surface); border: 1px solid var(--rule); border-radius: 10px; padding: 22px 24px;
  margin-top: 20px; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 12px; margin-top: 24px; }
.tile { background: var(--surface); border: 1px solid var(--rule); border-radius: 10px; padding: 16px 18px; }
.tile .label { color: var(--muted); font-size: 13px; }
.tile .value { font-size: 28px; line-height: 1.25; letter-spacing: -.02em; font-variant-numeric: tabular-nums; }
.tile .small { color: var(--muted); font-size: 13px; font-variant-numeric: tabular-nums; }
.plot { width: 100%; height: 470px; }
.plot.low { height: 290px; }
.scroll { overflow-x: auto; margin: 0 -24px; padding: 0 24px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 9px 14px 9px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
tbody tr:last-child > * { border-bottom: 0; }
thead th { color: var(--muted); font-weight: 500; font-size: 12.5px; white-space: nowrap; vertical-align: bottom; }
tbody th { font-weight: 600; }
table.tight { width: auto; }
table.tight th, table.tight td { padding-top: 4px; padding-bottom: 4px; padding-right: 22px; }
table.lines td .sub { display: inline-block; min-width: 9.5em; margin-left: 8px; text-align: left; }
.num { text-align: right; white-space: nowrap; }
td .sub, th .sub { display: block; color: var(--muted); font-size: 12px; font-weight: 400; white-space: nowrap; }
td .sub.bad { color: var(--bad); }
tbody th code, table.front tbody th, table.front td:last-child { white-space: nowrap; }
td.words { min-width: 210px; }
tr.dense th { color: var(--dense); }
code { font: 12.5px var(--mono); overflow-wrap: anywhere; }
.chips { max-width: 190px; white-space: normal; }
.chip { display: inline-block; border: 1px solid var(--accent); color: var(--accent); border-radius: 99px;
  font-size: 11.5px; line-height: 1.5;
  padding: 0 8px; margin: 2px 4px 0 0; white-space: nowrap; font-weight: 500; }
.chip.champion { background: var(--accent); color: var(--surface); }
.facts { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 5px 20px; margin: 0;
  font-size: 13.5px; }
.facts dt { color: var(--muted); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 0 40px; }
.pair > * { min-width: 0; }
.spans { display: grid; grid-template-columns: max-content 1fr max-content; gap: 6px 14px; align-items: center;
  font-size: 13.5px; font-variant-numeric: tabular-nums; }
.spans .length { height: 10px; background: var(--accent); border-radius: 3px; min-width: 2px; }
details { margin-top: 14px; font-size: 13.5px; }
summary { cursor: pointer; color: var(--accent); width: max-content; max-width: 100%; }
.pair > * > h3:first-child { margin-top: 8px; }
details > .scroll { margin-top: 10px; }
details > .facts { margin-top: 10px; }
.key { display: flex; flex-wrap: wrap; gap: 4px 20px; color: var(--muted); font-size: 13px; margin: 8px 0 14px; }
.key span::before { content: ""; display: inline-block; width: 11px; height: 11px; margin-right: 7px;
  border-radius: 2px;
  vertical-align: -1px; background: var(--swatch); border: 1px solid var(--edge, transparent); }
.key .zeros::before { background: repeating-linear-gradient(-45deg, var(--surface) 0 2px, var(--muted) 2px 4px); }
.strips { display: grid; grid-template-columns: 168px minmax(var(--least), 1fr); row-gap: 10px; align-items: end; }
.strips .who { position: sticky; left: -24px; background: var(--surface); padding: 0 14px 2px 24px; margin-left: -24px;
  z-index: 1; font-size: 13px; line-height: 1.35; align-self: stretch; display: flex; flex-direction: column;
  justify-content: end; }
.strips .who .sub { color: var(--muted); font-size: 12px; white-space: nowrap; }
.bars { display: flex; gap: 2px; height: 46px; align-items: end; }
.bars i { flex: 1 1 0; height: 100%; background: var(--track); border-radius: 2px; display: flex; align-items: end;
  overflow: hidden; }
.bars b { width: 100%; display: flex; align-items: start; background: var(--float); }
.bars b.q { background: var(--eight); }
.bars u { width: 100%; background: repeating-linear-gradient(-45deg, var(--surface) 0 2px, transparent 2px 4px);
  text-decoration: none; }
.stages { display: flex; gap: 2px; color: var(--muted); font-size: 12px; }
.stages span { border-top: 1px solid var(--faint); padding-top: 3px; min-width: 0; overflow: hidden;
  text-overflow: ellipsis; white-space: nowrap; text-align: center; flex: var(--n) 1 0; }
.stages .first { overflow: visible; text-align: left; }
.stages .last { overflow: visible; display: flex; justify-content: end; }
footer { color: var(--muted); font-size: 12.5px; margin-top: 24px; }
@media (max-width: 900px) { .tiles { grid-template-columns: 1fr 1fr; } .pair { grid-template-columns: minmax(0, 1fr);
  } }
@media (max-width: 560px) {
  main { padding: 24px 12px 40px; }
  section { padding: 18px 16px; }
  .scroll { margin: 0 -16px 0 0; padding: 0 16px 0 0; }
  h1 { font-size: 25px; }
  .tiles { gap: 8px; }
  .tile { padding: 12px 14px; }
  .tile .value { font-size: 23px; }
  .plot { height: 420px; }
  .strips { grid-template-columns: 124px minmax(var(--least), 1fr); }
  .strips .who { left: 0; margin-left: 0; padding-left: 0; padding-right: 10px; }
  .facts { grid-template-columns: minmax(84px, 34%) minmax(0, 1fr); gap: 5px 12px; }
  table.front tbody th, table.front thead th:first-child { position: sticky; left: 0; background: var(--surface); }
}
@media print { body { background: #fff; } section, .tile { break-inside: avoid; } }
"""

#: Draws every figure in the theme's colours, and again when the theme changes.
SCRIPT = """
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const narrow = matchMedia("(max-width: 560px)");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const themed = (value) => {
    if (typeof value === "string" && value.startsWith("@")) {
      return getComputedStyle(document.documentElement).getPropertyValue("--" + value.slice(1)).trim() || value;
    }
    if (Array.isArray(value)) return value.map(themed);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, themed(inner)]));
    }
    return value;
  };
  const fitted = (layout) => {
    if (!narrow.matches) return layout;
    layout.margin = {...layout.margin, l: 44, r: 8};
    layout.font.size = 12;
    layout.dragmode = false;
    return layout;
  };
  // The upper axis says the same lengths relative to the dense model, whatever part is in view.
  const follow = (node) => {
    const {meta, xaxis, xaxis2} = node.layout;
    if (!meta || !xaxis2 || !xaxis.range) return;
    const range = xaxis.range.map((x) => x / meta.dense);
    if (range.some((x, i) => Math.abs(x - xaxis2.range[i]) > 1e-9)) Plotly.relayout(node, {"xaxis2.range": range});
  };
  const draw = () => {
    for (const [id, figure] of Object.entries(figures)) {
      const node = document.getElementById(id);
      const copy = themed(figure);
      const options = {responsive: true, displayModeBar: false};
      Plotly.react(node, copy.data, fitted(copy.layout), options).then(() => {
        if (!node.dataset.following) {
          node.dataset.following = "yes";
          node.on("plotly_relayout", () => follow(node));
        }
      });
    }
  };
  draw();
  dark.addEventListener("change", draw);
  narrow.addEventListener("change", draw);
})();
"""
