// Filter buttons of the cards: a click shows only the cards with this value, a second click shows
// all cards again.
for (const filters of document.querySelectorAll('.filters')) {
  const buttons = [...filters.querySelectorAll('button')];
  const cards = [...filters.parentElement.querySelectorAll('article')];
  const isPressed = button => button.getAttribute('aria-pressed') === 'true';

  function applyFilters() {
    const pressed = buttons.filter(isPressed);
    for (const card of cards)
      card.hidden = pressed.some(button => card.dataset[button.dataset.axis] !== button.dataset.value);
  }

  for (const button of buttons) {
    button.onclick = () => {
      const press = !isPressed(button);
      for (const other of buttons) {
        if (other.dataset.axis !== button.dataset.axis) continue;
        other.setAttribute('aria-pressed', press && other === button);
      }
      applyFilters();
    };
  }
  applyFilters();
}
