const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const AXES = ['grade', 'kind', 'verdict'];
const off = Object.fromEntries(AXES.map(axis => [axis, new Set()]));

// Filters.
const find = document.getElementById('find');
function apply() {
  let frames = 0, items = 0;
  const wanted = find.value.toLowerCase();
  for (const card of all('article')) {
    let shown = 0;
    const about = card.querySelector('header').textContent;
    for (const row of all('li[data-item]', card)) {
      row.hidden = AXES.some(axis => off[axis].has(row.dataset[axis]))
        || !`${about} ${row.textContent}`.toLowerCase().includes(wanted);
      card.querySelector(`g[data-item="${row.dataset.item}"]`).toggleAttribute('hidden', row.hidden);
      shown += !row.hidden;
    }
    for (const heading of all('li.grade', card))
      heading.hidden = !card.querySelector(`li[data-item][data-grade="${heading.dataset.grade}"]:not([hidden])`);
    card.hidden = !shown;
    frames += shown > 0; items += shown;
  }
  document.getElementById('count').textContent = `${frames} frames, ${items} items`;
}
for (const axis of AXES) {
  const buttons = all(`nav button[data-${axis}]`), names = buttons.map(button => button.dataset[axis]);
  for (const button of buttons) button.onclick = () => {
    // The first click keeps this one alone, a click on the last one left brings all back.
    const name = button.dataset[axis], alone = off[axis].size === names.length - 1 && !off[axis].has(name);
    if (alone) off[axis].clear();
    else if (!off[axis].size) off[axis] = new Set(names.filter(other => other !== name));
    else if (!off[axis].delete(name)) off[axis].add(name);
    for (const other of buttons) other.setAttribute('aria-pressed', !off[axis].has(other.dataset[axis]));
    apply();
  };
}
find.oninput = apply;
let hovered = null;
for (const row of all('li[data-item]')) {
  const card = row.closest('article'), shape = card.querySelector(`g[data-item="${row.dataset.item}"]`);
  row.onmouseenter = () => { hovered = row; card.classList.add('focus'); shape.classList.add('lit'); };
  row.onmouseleave = () => { hovered = null; card.classList.remove('focus'); shape.classList.remove('lit'); };
}
const facts = document.getElementById('facts');
facts.onclick = () => facts.setAttribute('aria-pressed', document.body.classList.toggle('facts'));
facts.hidden = !document.querySelector('svg .facts');

// Verdicts: kept in the browser while one works, saved as a file that the builders read (etcvla/etc/review.py).
const review = JSON.parse(document.getElementById('reviewed').textContent);
const keyOf = row => Object.fromEntries(review.fields.map((field, i) => [field, review.keys[row.dataset.key][i]]));
const memory = `${review.format} ${review.dataset} ${review.split}`;
let elsewhere = [];  // verdicts of a loaded file about items that this page does not show

function judge(row, verdict) {
  row.dataset.verdict = verdict;
  for (const button of all('.judge button', row))
    button.setAttribute('aria-pressed', button.dataset.say === verdict);
}
function reviewed() {
  const here = all('li[data-key]').filter(row => row.dataset.verdict !== 'open')
    .map(row => ({...keyOf(row), verdict: row.dataset.verdict}));
  const {format, version, dataset, split} = review;
  return {format, version, dataset, split, items: [...elsewhere, ...here]};
}
function tally() {
  const count = verdict => all(`li[data-verdict=${verdict}]`).length;
  for (const button of all('nav button[data-verdict]'))
    button.querySelector('small').textContent = count(button.dataset.verdict);
}
function keep() {
  tally();
  try { localStorage.setItem(memory, JSON.stringify(reviewed())); } catch { /* a browser that forbids it for files */ }
}
function load(saved) {
  if (['format', 'version', 'dataset', 'split'].some(field => saved[field] !== review[field]))
    return alert(`This is a review of ${saved.dataset}, ${saved.split}; the page shows ${review.dataset}, ${review.split}.`);
  const rows = new Map(all('li[data-key]').map(row => [JSON.stringify(review.keys[row.dataset.key]), row]));
  elsewhere = [];
  for (const item of saved.items) {
    const row = rows.get(JSON.stringify(review.fields.map(field => item[field])));
    if (row) judge(row, item.verdict); else elsewhere.push(item);
  }
  keep();
}
if (review.dataset) {
  for (const button of all('.judge button')) button.onclick = () => {
    const row = button.closest('li');
    judge(row, row.dataset.verdict === button.dataset.say ? 'open' : button.dataset.say);
    keep();
  };
  document.onkeydown = event => {
    const say = {a: 'accept', r: 'reject'}[event.key];
    if (say && hovered && event.target !== find && !event.ctrlKey && !event.metaKey) hovered.querySelector(`[data-say=${say}]`).click();
  };
  document.getElementById('save').onclick = () => {
    const link = document.createElement('a');
    link.href = URL.createObjectURL(new Blob([JSON.stringify(reviewed(), null, 1)], {type: 'application/json'}));
    link.download = review.file;
    link.click();
    URL.revokeObjectURL(link.href);
  };
  const file = document.getElementById('file');
  document.getElementById('load').onclick = () => file.click();
  file.onchange = async () => load(JSON.parse(await file.files[0].text()));
  try { const saved = localStorage.getItem(memory); if (saved) load(JSON.parse(saved)); } catch { /* as above */ }
  tally();
}
