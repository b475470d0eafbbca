"""Style sheet and script of the page. Colours are those of Okabe and Ito, which colour-blind readers can tell apart."""

STYLE = """
:root { color-scheme: light; --paper: #fdfdfc; --ink: #1c1e21; --soft: #5c6168; --rule: #dcdedf; --panel: #f4f4f2; --link: #005f96;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b8578f; --c4: #c98a00; --c5: #3d9bd6; --c6: #6b6f76; }
@media (prefers-color-scheme: dark) { :root:not([data-theme=light]) { DARK } }
:root[data-theme=dark] { DARK }
* { box-sizing: border-box; }
html { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; background: var(--paper); color: var(--ink);
  -webkit-text-size-adjust: 100%; }
body { max-width: 1280px; margin: 0 auto; padding: 1.5rem clamp(0.9rem, 3vw, 2.2rem) 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 0; font-weight: 650; }
h2 { font-size: 1.3rem; margin: 3rem 0 0.3rem; padding-top: 1rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1.05rem; margin: 2rem 0 0.4rem; } p { margin: 0.4rem 0; max-width: 75ch; } a { color: var(--link); }
header { display: flex; flex-wrap: wrap; gap: 0.6rem 1.5rem; align-items: center; justify-content: space-between; }
nav ul, ul.legend { list-style: none; padding: 0; margin: 0.7rem 0; display: flex; flex-wrap: wrap; gap: 0.3rem 1.2rem; }
.soft, figcaption, .note { color: var(--soft); font-size: 0.92rem; } .note { border-left: 3px solid var(--c4); padding-left: 0.7rem; }
button { font: inherit; font-size: 0.9rem; color: var(--ink); background: var(--panel); border: 1px solid var(--rule); border-radius: 6px;
  padding: 0.35rem 0.8rem; cursor: pointer; }
button[aria-pressed=true] { background: var(--ink); color: var(--paper); }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
.grid3 { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 1.2rem 1.6rem; }
.grid2 { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1rem 2rem; }
.grid4 { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 0.8rem 1.2rem; } .method { margin-top: 1.4rem; max-width: none; }
figure { margin: 0; min-width: 0; } figure > b { font-weight: 600; font-size: 0.95rem; display: block; margin-bottom: 0.2rem; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 12px; } svg.panel { color: var(--soft); }
svg.panel text { fill: currentColor; }
svg.panel * { stroke-linejoin: round; } .grid { stroke: var(--rule); } .axis { stroke: var(--soft); }
.level { stroke: var(--ink); stroke-dasharray: 5 4; } svg .name { fill: var(--ink); paint-order: stroke; stroke: var(--paper); stroke-width: 4px; }
.cursor { stroke: var(--soft); stroke-width: 0.8; } .band { fill: var(--c); opacity: 0.17; }
.curve polyline { fill: none; stroke: var(--c); stroke-width: 2.1; stroke-linejoin: round; }
.thin polyline { stroke-width: 1.4; opacity: 0.85; } .dashed polyline { stroke-dasharray: 7 3; } .curve circle, .bar circle { fill: var(--c); }
.bar { width: 180px; } .interval th[scope=row] { white-space: normal; min-width: 13.5em; }
.bar .range { stroke: var(--c); stroke-width: 3; opacity: 0.55; }
SERIES
.swatch { display: inline-block; width: 1.5em; height: 0; border-top: 3px solid var(--c); vertical-align: 0.25em; margin-right: 0.45em; }
.swatch.dashed { border-top-style: dashed; }
.scroll { overflow-x: auto; margin: 0.6rem 0; } table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.3rem 0.7rem 0.3rem 0; border-bottom: 1px solid var(--rule); vertical-align: middle;
  overflow-wrap: normal; white-space: nowrap; } td.wrap { white-space: normal; min-width: 16em; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
thead th.number { white-space: normal; max-width: 7.5em; }
td.number, th.number { text-align: right; } summary { cursor: pointer; font-weight: 600; margin: 0.8rem 0; }
video, img { max-width: 100%; border-radius: 4px; background: #888; }
html[data-axis=steps] .by-wall, html[data-axis=wall] .by-steps { display: none; }
#tip { position: fixed; z-index: 9; pointer-events: none; background: var(--paper); border: 1px solid var(--rule); border-radius: 6px;
  padding: 0.35rem 0.6rem; font-size: 0.82rem; box-shadow: 0 2px 10px #0003; max-width: min(22rem, 90vw); } #tip[hidden] { display: none; }
@media (max-width: 1000px) { .grid3, .grid4 { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
@media (max-width: 700px) { .grid4, .grid3, .grid2 { grid-template-columns: minmax(0, 1fr); } html { font-size: 15px; }
  .interval .bar { width: 70px; } .interval th[scope=row] { min-width: 0; } .interval th, .interval td { padding-right: 0.5rem; } }
@media print { button { display: none; } }
""".replace(
    "DARK",
    "color-scheme: dark; --paper: #15171a; --ink: #e8e8e6; --soft: #a3a8af; --rule: #33373c; --panel: #22252a; --link: #7cc4f2;"
    " --c0: #4aa3df; --c1: #ee7a2b; --c2: #1fbf8f; --c3: #e08fbc; --c4: #e69f00; --c5: #8fd0f5; --c6: #9aa0a8;",
).replace("SERIES", " ".join(f".s{i} {{ --c: var(--c{i}); }}" for i in range(7)))

SCRIPT = """
(() => {
  const root = document.documentElement, tip = document.getElementById('tip');
  const kept = { get: k => { try { return localStorage.getItem('saddlepoint-' + k) } catch (e) { return null } },
                 set: (k, v) => { try { localStorage.setItem('saddlepoint-' + k, v) } catch (e) { /* a file opened from disk may have no storage */ }
} };
  const dark = () => root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
  const theme = document.getElementById('theme'), axes = [...document.querySelectorAll('button[data-axis]')];
  const useTheme = v => { if (v) root.dataset.theme = v; theme.textContent = dark() ? 'Light page' : 'Dark page' };
  const useAxis = v => { root.dataset.axis = v; axes.forEach(b => b.setAttribute('aria-pressed', b.dataset.axis === v)) };
  theme.addEventListener('click', () => { const v = dark() ? 'light' : 'dark'; kept.set('theme', v); useTheme(v) });
  axes.forEach(b => b.addEventListener('click', () => { kept.set('axis', b.dataset.axis); useAxis(b.dataset.axis) }));
  useTheme(kept.get('theme')); useAxis(kept.get('axis') === 'wall' ? 'wall' : 'steps');

  const hide = svg => { tip.hidden = true; const c = svg.querySelector('.cursor'); c.setAttribute('x1', -9); c.setAttribute('x2', -9) };
  const show = (svg, x) => {
    const lines = [...svg.querySelectorAll('.curve')].map(g => {
      const points = g.querySelector('polyline').getAttribute('points').split(' ').map(p => +p.split(',')[0]);
      let best = 0; points.forEach((p, i) => { if (Math.abs(p - x) < Math.abs(points[best] - x)) best = i });
      const text = g.dataset.label + ' \\u00b7 ' + g.dataset.values.split('|')[best];
      return { far: Math.abs(points[best] - x), style: g.getAttribute('class').match(/s\\d/)[0], text };
    }).filter(l => l.far < 40);
    if (!lines.length) return hide(svg);
    tip.replaceChildren(...lines.map(l => {
      const row = document.createElement('div'), mark = document.createElement('span');
      mark.className = 'swatch ' + l.style; row.append(mark, l.text); return row }));
    tip.hidden = false;
    const cursor = svg.querySelector('.cursor'), box = svg.getBoundingClientRect(), size = tip.getBoundingClientRect();
    cursor.setAttribute('x1', x); cursor.setAttribute('x2', x);
    const left = box.left + x * box.width / svg.viewBox.baseVal.width;
    tip.style.left = Math.max(4, Math.min(left + 12, innerWidth - size.width - 4)) + 'px';
    tip.style.top = Math.max(4, box.top - size.height - 4) + 'px';
  };
  document.querySelectorAll('svg.chart').forEach(svg => {
    let at = 229;
    svg.addEventListener('pointermove', e => {
      const box = svg.getBoundingClientRect();
      show(svg, at = (e.clientX - box.left) * svg.viewBox.baseVal.width / box.width);
    });
    for (const leave of ['pointerleave', 'blur']) svg.addEventListener(leave, () => hide(svg));
    svg.addEventListener('keydown', e => {
      const way = { ArrowLeft: -8, ArrowRight: 8 }[e.key];
      if (way) { e.preventDefault(); at = Math.max(56, Math.min(402, at + way)); show(svg, at) } else if (e.key === 'Escape') hide(svg);
    });
  });
})();
"""
