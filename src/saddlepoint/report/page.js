// The page's few controls. Everything that is shown stands in the page already; this only hides, shows and points.
(() => {
  const root = document.documentElement, tip = document.getElementById('tip');
  const all = (words, within = document) => [...within.querySelectorAll(words)];
  const kept = {  // a file opened from disk may have no storage
    get: name => { try { return localStorage.getItem('saddlepoint-' + name) } catch (e) { return null } },
    set: (name, value) => { try { localStorage.setItem('saddlepoint-' + name, value) } catch (e) { /* none */ } },
  };

  // Theme, and the choices of policy, axis and seeds.
  const theme = document.getElementById('theme');
  const dark = () => root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
  const useTheme = value => { if (value) root.dataset.theme = value; theme.textContent = dark() ? 'Light page' : 'Dark page' };
  theme.addEventListener('click', () => { const value = dark() ? 'light' : 'dark'; kept.set('theme', value); useTheme(value) });
  useTheme(kept.get('theme'));
  const choices = all('.choice button');
  const use = (name, value) => {
    root.dataset[name] = value;
    choices.filter(b => b.dataset.name === name).forEach(b => b.setAttribute('aria-pressed', b.dataset.value === value));
  };
  choices.forEach(b => b.addEventListener('click', () => { use(b.dataset.name, b.dataset.value); hideAll() }));
  ['axis', 'policy', 'seeds'].forEach(name => use(name, root.dataset[name]));

  // The legend: a click hides a method, pointing at it fades the others.
  all('.legend button').forEach(b => {
    const own = 'm' + b.dataset.method;
    b.addEventListener('click', () => {
      const shown = b.getAttribute('aria-pressed') !== 'true';
      b.setAttribute('aria-pressed', shown);
      all('main .' + own).forEach(e => e.classList.toggle('off', !shown));
    });
    const fade = on => all('.curve, .band, .dot, .seedname').forEach(e => e.classList.toggle('faded', on && !e.classList.contains(own)));
    for (const name of ['pointerenter', 'focus']) b.addEventListener(name, () => fade(b.getAttribute('aria-pressed') === 'true'));
    for (const name of ['pointerleave', 'blur']) b.addEventListener(name, () => fade(false));
  });

  // The crosshair stands where the nearest value is, with a dot on every line.
  const hide = svg => {
    tip.hidden = true;
    all('.here', svg).forEach(dot => dot.remove());
    const cursor = svg.querySelector('.cursor');
    cursor.setAttribute('x1', -9); cursor.setAttribute('x2', -9);
  };
  const charts = all('svg.chart'), hideAll = () => charts.forEach(hide);
  const points = g => g.querySelector('polyline').getAttribute('points').split(' ').map(p => p.split(',').map(Number));
  const nearest = (list, x) => list.reduce((best, p, i) => Math.abs(p[0] - x) < Math.abs(list[best][0] - x) ? i : best, 0);
  const show = (svg, x) => {
    hide(svg);
    const shown = all('.curve', svg).filter(g => getComputedStyle(g).display !== 'none').map(g => ({ g, list: points(g) }));
    if (!shown.length) return x;
    const near = shown.map(line => line.list[nearest(line.list, x)][0]);
    const at = near.reduce((best, p) => Math.abs(p - x) < Math.abs(best - x) ? p : best);
    const lines = shown.map(({ g, list }) => {
      const i = nearest(list, at);
      return { g, point: list[i], step: g.dataset.steps.split('|')[i], text: g.dataset.values.split('|')[i] };
    }).filter(line => Math.abs(line.point[0] - at) < 12);
    lines.sort((a, b) => a.g.classList.contains('beside') - b.g.classList.contains('beside'));  // means first
    const head = document.createElement('b');
    head.textContent = (root.dataset.axis === 'wall' ? 'at ' : 'step ') + lines.find(line => line.point[0] === at).step;
    tip.replaceChildren(head, ...lines.map(line => {
      const row = document.createElement('div'), mark = document.createElement('span');
      const style = line.g.getAttribute('class').match(/\bs\d+/)[0];
      mark.className = 'swatch ' + style;
      row.append(mark, line.g.dataset.label + ': ' + line.text);
      const dot = document.createElementNS('http://www.w3.org/2000/svg', 'circle');
      for (const [name, value] of [['class', 'here ' + style], ['cx', line.point[0]], ['cy', line.point[1]], ['r', 3.4]]) dot.setAttribute(name, value);
      svg.append(dot);
      return row;
    }));
    tip.hidden = false;
    const cursor = svg.querySelector('.cursor'), box = svg.getBoundingClientRect(), size = tip.getBoundingClientRect();
    cursor.setAttribute('x1', at); cursor.setAttribute('x2', at);
    const left = box.left + at * box.width / svg.viewBox.baseVal.width;
    tip.style.left = Math.max(4, Math.min(left + 12, innerWidth - size.width - 4)) + 'px';
    tip.style.top = (box.top > size.height + 60 ? box.top - size.height - 4 : Math.min(box.bottom + 4, innerHeight - size.height - 4)) + 'px';
    return at;
  };
  charts.forEach(svg => {
    let at = 229;
    svg.addEventListener('pointermove', e => {
      const box = svg.getBoundingClientRect();
      at = show(svg, (e.clientX - box.left) * svg.viewBox.baseVal.width / box.width);
    });
    for (const leave of ['pointerleave', 'blur']) svg.addEventListener(leave, () => hide(svg));
    svg.addEventListener('keydown', e => {
      const way = { ArrowLeft: -1, ArrowRight: 1 }[e.key];
      if (way) {
        e.preventDefault();
        const stops = [...new Set(all('.curve', svg).flatMap(points).map(p => p[0]))].sort((a, b) => a - b);
        const next = way > 0 ? stops.find(p => p > at + 0.05) : stops.reverse().find(p => p < at - 0.05);
        at = show(svg, next ?? at);
      } else if (e.key === 'Escape') hide(svg);
    });
  });
})();
