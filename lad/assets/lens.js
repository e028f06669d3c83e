// The table of the logit lens at one position, chosen with a slider. It looks for nothing outside
// the element it stands in, and makes text only.
(() => {
  const root = document.currentScript.parentElement;
  const data = JSON.parse(root.querySelector('[type="application/json"]').textContent);
  const part = (name) => root.querySelector('[data-part="' + name + '"]');
  const slider = part('slider');
  const cell = (kind, text, title = '') => {
    const made = document.createElement(kind);
    made.textContent = text;
    made.title = title;
    return made;
  };
  const row = (cells) => {
    const made = document.createElement('tr');
    made.append(...cells);
    return made;
  };
  const show = () => {
    const one = data.positions[Number(slider.value)];
    const label = slider.value + ': ' + data.texts[one.final];
    slider.setAttribute('aria-valuetext', label);
    part('token').textContent = label;
    part('words').textContent = one.words;
    const heads = data.iterations.map((iteration, column) =>
      cell('th', iteration + ' ' + (one.masked[column] ? 'MASK' : 'visible'), 'in the input'));
    root.querySelector('thead').replaceChildren(row([cell('th', 'layer'), ...heads]));
    const rows = one.tokens.map((tokens, layer) => row([
      cell('th', layer + 1),
      ...tokens.map((token, column) => {
        const percent = one.percent[layer][column];
        const made = cell('td', data.texts[token], percent + ' %');
        made.style.background = data.colors[Math.round(percent / 10)];
        made.classList.toggle('lad-final', token === one.final);
        return made;
      }),
    ]));
    root.querySelector('tbody').replaceChildren(...rows.reverse());
  };
  slider.addEventListener('input', show);
  part('bar').hidden = false;
  show();
})();
