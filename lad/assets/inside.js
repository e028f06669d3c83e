// What stands inside a token. A click on a token, or the arrow keys in the box below the draft, choose
// a position; the box then shows the likeliest tokens there, the entropy, and the history. Its numbers
// are in the box (lad.viz.html.inside_html). A function of a lane of a player; what it returns is
// called with each frame that comes on show.
window.ladInside ??= (lane) => {
  const box = lane.querySelector('[data-inside]');
  if (!box) return () => {};
  const hint = box.textContent, data = JSON.parse(box.dataset.inside);
  const {length, steps, alternatives: m, tokens, first, settled} = data;
  const make = (tag, name, ...children) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    made.append(...children);
    return made;
  };
  const read = () => {
    const bytes = Uint8Array.from(atob(data.numbers), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'));
    return new Response(stream).arrayBuffer();
  };
  const number = (mille) => (mille > 0 && mille < 10 ? '< 0.01' : (mille / 1000).toFixed(2));
  const positions = (token) => token.dataset.at.split(',').map((part) => part.split('-').map(Number));
  const holds = (token, at) => positions(token).some(([low, high = low]) => low <= at && at <= high);
  const name = (index) => make('bdi', 'lad-name', tokens[index]);

  const words = (numbers, step, at) => {
    const value = (column, when) => numbers[(column * steps + when) * length + at];
    const drawn = value(0, step), confidence = number(value(m + 1, step));
    const parts = [make('div', '', make('b', '', `Position ${at}, iteration ${step + first}: `),
      name(drawn), ` drawn with confidence ${confidence}.`)];
    const rows = [...Array(m).keys()].map((k) => [value(1 + k, step), value(m + 2 + k, step)]);
    if (m && !rows.some(([index]) => index === drawn)) rows.push([drawn, value(m + 1, step)]);
    if (m) {
      const list = make('ol', 'lad-likely');
      for (const [index, mille] of rows) {
        const bar = make('span', 'lad-share', make('i'));
        bar.firstChild.style.width = `${mille / 10}%`;
        const mark = index === drawn ? ' drawn' : '';
        list.append(make('li', '', name(index), bar, `${number(mille)}${mark}`));
      }
      const nats = value(2 * m + 2, step) / 1000;
      parts.push(list, make('div', '', `Entropy ${nats.toFixed(2)} nats, as of ` +
        `${Math.exp(nats).toFixed(1)} equally likely tokens: of the denoiser’s probabilities of all ` +
        'tokens but MASK, after the EOS bias, before temperature, top-k and top-p.'));
    } else {
      parts.push(make('div', '', 'This run was recorded without alternatives: only its history is ' +
        'known. A new run has them.'));
    }
    const history = make('div', '', make('b', '', 'History: '));
    for (let from = 0; from < steps;) {
      let to = from;
      while (to + 1 < steps && value(0, to + 1) === value(0, from)) to += 1;
      const when = from === to ? `${from + first}` : `${from + first} to ${to + first}`;
      const one = make('span', '', name(value(0, from)), ` ${number(value(m + 1, to))} (${when})`);
      if (from <= step && step <= to) one.setAttribute('aria-current', 'step');
      history.append(one, to + 1 < steps ? ', ' : '. ');
      from = to + 1;
    }
    if (settled) history.append(`Settled at iteration ${settled[at] + first}.`);
    return [...parts, history];
  };

  let at = null, draft = null, numbers = null;
  const show = async (byReader) => {
    lane.querySelectorAll('.lad-chosen').forEach((token) => token.classList.remove('lad-chosen'));
    const now = [draft, at];
    const token = [...draft.querySelectorAll('[data-at]')].find((one) => at !== null && holds(one, at));
    token?.classList.add('lad-chosen');
    if (at !== null) numbers ??= new Uint32Array(await read());
    if (now[0] !== draft || now[1] !== at) return; // another was chosen meanwhile
    box.setAttribute('aria-live', byReader ? 'polite' : 'off');
    box.replaceChildren(...(at === null ? [hint] : words(numbers, Number(draft.dataset.step), at)));
  };
  const choose = (to) => { at = to; show(true); };
  lane.addEventListener('click', (event) => {
    const token = event.target.closest('.lad-draft [data-at]');
    if (token) choose(at !== null && holds(token, at) ? null : positions(token)[0][0]);
  });
  box.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const moves = {ArrowRight: at === null ? 0 : Math.min(at + 1, length - 1),
      ArrowLeft: at === null ? length - 1 : Math.max(at - 1, 0), Home: 0, End: length - 1, Escape: null};
    if (!(event.key in moves)) return;
    event.preventDefault();
    event.stopPropagation();
    choose(moves[event.key]);
  });
  return (frame) => {
    if (draft === (draft = frame.querySelector('.lad-draft'))) return;
    show(false);
  };
};
