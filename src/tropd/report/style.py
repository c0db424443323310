"""The look of the page, for a screen of any width."""

CSS = """
:root { color-scheme: light; --ink: #1c1c1c; --faint: #5d5d5d; --rule: #d8d8d8; --wash: #f6f6f4; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem 1rem 4rem; max-width: 78rem; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .6rem; }
h2 { font-size: 1.3rem; margin: 2.4rem 0 .4rem; padding-top: .8rem; border-top: 2px solid var(--ink); }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
p { margin: .4rem 0; max-width: 50rem; }
small, .note, .nothing { color: var(--faint); font-size: .875rem; font-weight: 400; }
nav a { margin-right: 1rem; display: inline-block; padding: .3rem 0; }
a { color: #0060a0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .8rem 0; font-size: .9rem; }
dt { color: var(--faint); } dd { margin: 0; }
.wide { overflow-x: auto; margin: .5rem 0; border: 1px solid var(--rule); width: fit-content; max-width: 100%; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .35rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); }
th { background: var(--wash); font-weight: 600; white-space: normal; min-width: 5.5rem; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--wash); }
tr:last-child td { border-bottom: 0; }
table.words th { text-align: left; }
table.words td { text-align: left; white-space: normal; min-width: 9rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  td:first-child { white-space: normal; max-width: 9rem; }
  th, td { padding: .35rem .5rem; }
}
.charts { margin-top: .8rem; display: grid; gap: .6rem 1.2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); }
figure { margin: 0; } figcaption { font-size: .9rem; font-weight: 600; margin-bottom: .1rem; }
.chart { width: 100%; height: auto; display: block; }
.chart text { font: 11.5px system-ui, "Liberation Sans", sans-serif; fill: var(--faint); }
.chart .grid { stroke: #e6e6e6; } .chart .axis { stroke: #8a8a8a; }
.chart .zero { stroke: #555; stroke-dasharray: 3 2; }
ul.legend, ul.regions { list-style: none; padding: 0; margin: .5rem 0; display: flex; flex-wrap: wrap;
  gap: .3rem 1.2rem; font-size: .9rem; }
ul.legend li { display: flex; align-items: center; gap: .4rem; }
.key { width: 40px; height: 12px; }
details { border: 1px solid var(--rule); margin: .4rem 0; }
summary { padding: .5rem .7rem; cursor: pointer; font-weight: 600; background: var(--wash); }
.rollout { padding: .7rem; white-space: pre-wrap; font: .875rem/1.9 ui-monospace, "Liberation Mono", Menlo, monospace; }
.prompt { color: var(--faint); }
.t, .o, .g, .x { padding: .1rem 1px; border-radius: 2px; margin-right: 1px; }
.t { background: #e2eef8; }
.o { background: #ffd8bd; font-weight: 700; border-bottom: 3px solid #a33c00; }
.g { background: #ececec; font-style: italic; border-bottom: 2px dotted #555; }
.x { color: var(--faint); text-decoration: line-through; }
"""
