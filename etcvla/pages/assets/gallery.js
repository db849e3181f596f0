// Filters, hover and review of the gallery page.

const selectAll = (selector, root = document) => [...root.querySelectorAll(selector)];

// ---- Filters ----

const FILTERS = ['grade', 'kind', 'verdict'];
const hiddenNames = Object.fromEntries(FILTERS.map(filter => [filter, new Set()]));
const search = document.getElementById('search');

function applyFilters() {
  let frameCount = 0;
  let itemCount = 0;
  const query = search.value.toLowerCase();
  for (const card of selectAll('article')) {
    const cardText = card.querySelector('header').textContent;
    let shownItems = 0;
    for (const row of selectAll('li[data-item]', card)) {
      const filtered = FILTERS.some(filter => hiddenNames[filter].has(row.dataset[filter]));
      const matches = `${cardText} ${row.textContent}`.toLowerCase().includes(query);
      row.hidden = filtered || !matches;
      shapesOf(row).toggleAttribute('hidden', row.hidden);
      if (!row.hidden) shownItems += 1;
    }
    for (const heading of selectAll('li.grade', card)) {
      const grade = heading.dataset.grade;
      heading.hidden = !card.querySelector(`li[data-item][data-grade="${grade}"]:not([hidden])`);
    }
    card.hidden = shownItems === 0;
    if (!card.hidden) frameCount += 1;
    itemCount += shownItems;
  }
  document.getElementById('count').textContent = `${frameCount} frames, ${itemCount} items`;
}

function shapesOf(row) {
  return row.closest('article').querySelector(`g[data-item="${row.dataset.item}"]`);
}

// The first click on a name shows it alone, further clicks show or hide others. A click on the
// only name that is shown shows all names again.
function toggleName(filter, name, names) {
  const hidden = hiddenNames[filter];
  const onlyThisShown = hidden.size === names.length - 1 && !hidden.has(name);
  if (onlyThisShown) hidden.clear();
  else if (hidden.size === 0) names.filter(other => other !== name).forEach(other => hidden.add(other));
  else if (hidden.has(name)) hidden.delete(name);
  else hidden.add(name);
}

for (const filter of FILTERS) {
  const buttons = selectAll(`nav button[data-${filter}]`);
  const names = buttons.map(button => button.dataset[filter]);
  for (const button of buttons) {
    button.onclick = () => {
      toggleName(filter, button.dataset[filter], names);
      for (const other of buttons)
        other.setAttribute('aria-pressed', !hiddenNames[filter].has(other.dataset[filter]));
      applyFilters();
    };
  }
}
search.oninput = applyFilters;

// ---- Hover: show the shapes of one item alone ----

let hovered = null;
for (const row of selectAll('li[data-item]')) {
  const card = row.closest('article');
  row.onmouseenter = () => {
    hovered = row;
    card.classList.add('focus');
    shapesOf(row).classList.add('highlighted');
  };
  row.onmouseleave = () => {
    hovered = null;
    card.classList.remove('focus');
    shapesOf(row).classList.remove('highlighted');
  };
}

const annotationButton = document.getElementById('annotation');
annotationButton.onclick = () => {
  const shown = document.body.classList.toggle('annotation-shown');
  annotationButton.setAttribute('aria-pressed', shown);
};
annotationButton.hidden = !document.querySelector('svg .annotation');

// ---- Review ----
// Verdicts are kept in the browser's storage and saved as a file (format: etcvla/etc/review.py).

const review = JSON.parse(document.getElementById('review-data').textContent);
const storageKey = `${review.format} ${review.dataset} ${review.split}`;
let otherVerdicts = [];  // verdicts of a loaded file on items that this page does not show

function keyOf(row) {
  const key = review.keys[row.dataset.key];
  return Object.fromEntries(review.fields.map((field, i) => [field, key[i]]));
}

function setVerdict(row, verdict) {
  row.dataset.verdict = verdict;
  for (const button of selectAll('.verdict button', row))
    button.setAttribute('aria-pressed', button.dataset.choice === verdict);
}

function reviewDocument() {
  const reviewedRows = selectAll('li[data-key]').filter(row => row.dataset.verdict !== 'open');
  const verdicts = reviewedRows.map(row => ({...keyOf(row), verdict: row.dataset.verdict}));
  const {format, version, dataset, split} = review;
  return {format, version, dataset, split, items: [...otherVerdicts, ...verdicts]};
}

function updateCounts() {
  for (const button of selectAll('nav button[data-verdict]')) {
    const rows = selectAll(`li[data-verdict=${button.dataset.verdict}]`);
    button.querySelector('small').textContent = rows.length;
  }
}

function store() {
  updateCounts();
  try {
    localStorage.setItem(storageKey, JSON.stringify(reviewDocument()));
  } catch { /* Some browsers forbid storage for local files. */ }
}

function loadReview(saved) {
  const sameDataset = ['format', 'version', 'dataset', 'split'].every(field => saved[field] === review[field]);
  if (!sameDataset) {
    alert(`This file is a review of ${saved.dataset} (${saved.split}), but the page shows ${review.dataset} (${review.split}).`);
    return;
  }
  const rows = new Map();
  for (const row of selectAll('li[data-key]')) rows.set(JSON.stringify(review.keys[row.dataset.key]), row);
  otherVerdicts = [];
  for (const item of saved.items) {
    const row = rows.get(JSON.stringify(review.fields.map(field => item[field])));
    if (row) setVerdict(row, item.verdict);
    else otherVerdicts.push(item);
  }
  store();
}

function saveReview() {
  const content = JSON.stringify(reviewDocument(), null, 1);
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([content], {type: 'application/json'}));
  link.download = review.file;
  link.click();
  URL.revokeObjectURL(link.href);
}

if (review.dataset) {
  for (const button of selectAll('.verdict button')) {
    button.onclick = () => {
      const row = button.closest('li');
      const choice = button.dataset.choice;
      setVerdict(row, row.dataset.verdict === choice ? 'open' : choice);
      store();
    };
  }
  document.onkeydown = event => {
    const choice = {a: 'accept', r: 'reject'}[event.key];
    if (!choice || !hovered || event.target === search || event.ctrlKey || event.metaKey) return;
    hovered.querySelector(`[data-choice=${choice}]`).click();
  };
  const fileInput = document.getElementById('file');
  document.getElementById('save').onclick = saveReview;
  document.getElementById('load').onclick = () => fileInput.click();
  fileInput.onchange = async () => loadReview(JSON.parse(await fileInput.files[0].text()));
  try {
    const saved = localStorage.getItem(storageKey);
    if (saved) loadReview(JSON.parse(saved));
  } catch { /* Some browsers forbid storage for local files. */ }
  updateCounts();
}
