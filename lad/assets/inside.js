// What stands inside a token. A click on a token of a player, or the arrow keys in the box below it,
// choose a position; the box then shows the likeliest tokens there, the entropy, and the history.
// The numbers are in the box (lad.viz.html.inside_html). Listens on the document, since widgets come
// and go, and follows the draft on show.
(() => {
  if (window.ladInside) return;
  window.ladInside = true;
  const players = new WeakMap();
  const make = (tag, name, ...children) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    made.append(...children);
    return made;
  };
  const number = (mille) => (mille > 0 && mille < 10 ? '< 0.01' : (mille / 1000).toFixed(2));
  const read = async (box) => {
    const data = JSON.parse(box.dataset.inside);
    const bytes = Uint8Array.from(atob(data.numbers), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'));
    data.values = new Uint32Array(await new Response(stream).arrayBuffer());
    return data;
  };
  const rootOf = (part) => part.closest('[data-lane]');
  const positions = (token) => token.dataset.at.split(',').map((part) => part.split('-').map(Number));
  const holds = (token, at) => positions(token).some(([low, high = low]) => low <= at && at <= high);

  const words = (data, step, at) => {
    const {length, steps, alternatives: m, tokens} = data;
    const value = (column, when) => data.values[(column * steps + when) * length + at];
    const name = (index) => make('bdi', 'lad-name', tokens[index]);
    const drawn = value(0, step), confidence = number(value(m + 1, step));
    const parts = [make('div', '', make('b', '', `Position ${at}, iteration ${step + data.first}: `),
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
      const when = from === to ? `${from + data.first}` : `${from + data.first} to ${to + data.first}`;
      const one = make('span', '', name(value(0, from)), ` ${number(value(m + 1, to))} (${when})`);
      if (from <= step && step <= to) one.setAttribute('aria-current', 'step');
      history.append(one, to + 1 < steps ? ', ' : '. ');
      from = to + 1;
    }
    const settled = data.settled && data.settled[at];
    if (data.settled) history.append(`Settled at iteration ${settled + data.first}.`);
    return [...parts, history];
  };

  const show = (root, byReader) => {
    const player = players.get(root), box = root.querySelector('[data-inside]');
    if (!player || !box) return;
    const drafts = [...root.querySelectorAll('.lad-draft')];
    const draft = drafts.find((one) => !one.closest('[hidden]'));
    const key = [draft, box, box.dataset.inside, player.at];
    if (!draft || key.every((part, n) => part === player.key[n])) return;
    player.key = key;
    root.querySelectorAll('.lad-chosen').forEach((token) => token.classList.remove('lad-chosen'));
    const token = [...draft.querySelectorAll('[data-at]')].find((one) => holds(one, player.at));
    if (token && player.at !== null) token.classList.add('lad-chosen');
    if (player.hint === undefined) player.hint = box.textContent;
    if (player.box !== box.dataset.inside) {
      player.box = box.dataset.inside;
      player.data = read(box);
    }
    player.data.then((data) => {
      if (player.key !== key) return;
      box.setAttribute('aria-live', byReader ? 'polite' : 'off');
      const step = Number(draft.dataset.step);
      const known = player.at !== null && player.at < data.length && step < data.steps;
      box.replaceChildren(...(known ? words(data, step, player.at) : [player.hint]));
    });
  };
  const choose = (root, at) => {
    if (!players.has(root)) {
      players.set(root, {at: null, key: []});
      const watch = {subtree: true, childList: true, attributes: true, attributeFilter: ['hidden']};
      new MutationObserver(() => show(root, false)).observe(root, watch);
    }
    players.get(root).at = at;
    show(root, true);
  };
  document.addEventListener('click', (event) => {
    const token = event.target.closest('.lad-draft [data-at]'), root = token && rootOf(token);
    if (!root || !root.querySelector('[data-inside]')) return;
    const player = players.get(root), [[first]] = positions(token);
    choose(root, player && player.at !== null && holds(token, player.at) ? null : first);
  });
  document.addEventListener('keydown', (event) => {
    const box = event.target.closest && event.target.closest('[data-inside]');
    if (!box || event.ctrlKey || event.metaKey || event.altKey) return;
    const root = rootOf(box), last = JSON.parse(box.dataset.inside).length - 1;
    const at = players.has(root) ? players.get(root).at : null;
    const moves = {ArrowRight: at === null ? 0 : Math.min(at + 1, last),
      ArrowLeft: at === null ? last : Math.max(at - 1, 0), Home: 0, End: last, Escape: null};
    if (!(event.key in moves)) return;
    event.preventDefault();
    event.stopPropagation();
    choose(root, moves[event.key]);
  }, true);
})();
