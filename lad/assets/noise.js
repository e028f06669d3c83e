// The explorers of `lad.widgets.noise`: the formulas of lad/diffusion/schedule.py and corruption.py,
// which a test compares, and what they show. Where no page asks for an explorer, only the formulas
// are there, as `ladNoise`.
(() => {
  const range = (length, item) => Array.from({length}, (_, i) => item(i));

  // -- the schedule ---------------------------------------------------------------------------------

  const noiseLevel = (iteration, iterations, sharpness) => {
    const end = Math.expm1(-sharpness);
    return (Math.expm1(-sharpness * (iteration / iterations)) - end) / -end;
  };
  const maskCounts = (s) => range(s.iterations, (i) => (i === s.iterations - 1 ? 0
    : Math.floor(noiseLevel(i, s.iterations, s.sharpness) * s.answer_length * s.noise_start)));
  const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);
  const scheduleWords = (masks, length) => {
    const last = masks.findLastIndex((n) => n > 0);
    if (last < 0) return `Nothing is masked again in ${masks.length} iterations: a noiseless run.`;
    return `${masks[0]} of ${length} tokens masked after iteration 0, the last ${masks[last]} after `
      + `iteration ${last} of ${masks.length}; ${sum(masks)} in all.`;
  };
  const countWords = (masks) => {
    const shown = masks.findLastIndex((n) => n > 0) + 1;
    const rest = shown < masks.length ? [`none from iteration ${shown} on`] : [];
    return `Masks after each iteration: ${[...masks.slice(0, shown), ...rest].join(', ')}.`;
  };

  // -- the corruption -------------------------------------------------------------------------------

  // The Mersenne Twister of torch, so that a seed gives the same draw here and there.
  const generator = (seed) => {
    const state = new Uint32Array(624);
    state[0] = seed;
    for (let i = 1; i < 624; i++) {
      state[i] = Math.imul(1812433253, state[i - 1] ^ (state[i - 1] >>> 30)) + i;
    }
    let at = 624;
    return () => {
      if (at === 624) {
        for (let i = 0; i < 624; i++) {
          const y = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
          state[i] = state[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
        }
        at = 0;
      }
      let y = state[at++];
      y ^= y >>> 11;
      y ^= (y << 7) & 0x9d2c5680;
      y ^= (y << 15) & 0xefc60000;
      return (y ^ (y >>> 18)) >>> 0;
    };
  };

  // `draw_plan` for answers that fill the window: b rows of t positions, at severity p.
  const drawPlan = (b, t, size, seed, config, p) => {
    const random = generator(seed), single = Math.fround;
    const uniform = () => (random() & 0xffffff) / 0x1000000;
    const one = () => range(b, uniform), each = () => range(b, () => range(t, uniform));
    const [low, high] = config.mask_fraction, acts = (kind) => config.kinds.includes(kind);
    one(); // the severity, which is given
    const whole = one().map((u) => u < config.all_masked);
    const partly = one().map((u, r) => u < config.mask_probability && !whole[r]);
    const count = one().map((u, r) => partly[r] * Math.floor(single(single(low + (high - low) * u) * t)));
    const mask = each().map((scores, r) => {
      const lowest = range(t, (i) => i).sort((i, j) => scores[i] - scores[j]).slice(0, count[r]);
      return range(t, (i) => whole[r] || lowest.includes(i));
    });
    const q = one().map((u, r) => (u < config.structural_probability && !whole[r]
      ? single(single(p) * config.rate) : 0));
    const [swap, copy, side, replace] = range(4, each);
    const word = range(b, () => range(t, () => 1 + random() % (size - 1))); // 0 is MASK
    const span = one().map((u) => Math.min(1 + Math.floor(single(u * 3)), 3, t));
    const from = one().map((u, r) => Math.min(Math.floor(single(u * (t - span[r] + 1))), t - span[r]));
    const far = one().map((u) => Math.min(1 + Math.floor(u * 4), 4));
    const to = one().map((u, r) => (u < 0.5 ? from[r] - far[r] : from[r] + far[r]));
    const shifts = one().map((u, r) => u < q[r] && acts('shift'));
    return range(b, (r) => {
      const copies = (i) => copy[r][i] < q[r] && acts('duplicate');
      return {
        mask: mask[r],
        swap: range(t, (i) => swap[r][i] < q[r] && i < t - 1 && acts('swap')),
        copy_left: range(t, (i) => copies(i) && side[r][i] < 0.5 && i > 0),
        copy_right: range(t, (i) => copies(i) && side[r][i] >= 0.5 && i < t - 1),
        replace: range(t, (i) => replace[r][i] < q[r] && acts('replace')),
        replacement: word[r],
        shift_from: from[r],
        shift_to: Math.min(Math.max(to[r], 0), t - span[r]),
        shift_length: shifts[r] ? span[r] : 0,
      };
    });
  };
  const applyPlan = (tokens, plan) => {
    let noisy = tokens.map((token, i) => (plan.mask[i] ? 0 : token));
    plan.swap.forEach((swapped, i) => {
      if (swapped) [noisy[i], noisy[i + 1]] = [noisy[i + 1], noisy[i]];
    });
    noisy = noisy.map((token, i) => (plan.copy_left[i] ? noisy[i - 1] : token));
    noisy = noisy.map((token, i) => (plan.copy_right[i] ? noisy[i + 1] : token));
    noisy = noisy.map((token, i) => (plan.replace[i] ? plan.replacement[i] : token));
    const copied = noisy.slice(plan.shift_from, plan.shift_from + plan.shift_length);
    noisy.splice(plan.shift_to, copied.length, ...copied);
    return noisy;
  };
  const positions = (plan) => ({ // in the order in which they are applied
    mask: plan.mask,
    swap: plan.swap.map((swapped, i) => swapped || Boolean(plan.swap[i - 1])),
    duplicate: plan.copy_left.map((copied, i) => copied || plan.copy_right[i]),
    replace: plan.replace,
    shift: plan.mask.map((_, i) => i >= plan.shift_to && i < plan.shift_to + plan.shift_length),
  });
  const share = (marked) => sum(marked.map(Number)) / marked.length;
  const expectedRates = (config, p) => {
    const q = p * config.rate;
    const rates = {swap: 1 - (1 - q) ** 2, duplicate: q, replace: q, shift: q};
    const acting = Object.entries(rates).filter(([kind]) => config.kinds.includes(kind));
    const mask = config.mask_probability * (config.mask_fraction[0] + config.mask_fraction[1]) / 2;
    return {...Object.fromEntries(acting), mask};
  };
  const drawnRates = (config, p, length, rows, seed) => {
    const drawn = drawPlan(rows, length, 1000, seed, config, p).map(positions);
    return ['mask', ...config.kinds].map((kind) => {
      const shares = drawn.map((d) => (kind === 'shift' ? Number(d.shift.includes(true)) : share(d[kind])));
      const mean = sum(shares) / rows;
      const deviation = Math.sqrt(sum(shares.map((s) => (s - mean) ** 2)) / (rows - 1));
      const half = 1.96 * deviation / Math.sqrt(rows);
      return {kind, mean, low: mean - half, high: mean + half};
    });
  };
  const corrupt = (text, ends, everyday, config, p, seed) => {
    const words = text.match(/[\p{L}\p{N}_]+|[^\p{L}\p{N}_\s]/gu) ?? [];
    if (words.length < 1 || words.length > 200) {
      throw new Error(`${words.length} words: expected a text of 1 to 200`);
    }
    const vocabulary = ['MASK', ...new Set([...everyday, ...words]), 'END'];
    const number = new Map(vocabulary.slice(1, -1).map((word, i) => [word, i + 1]));
    const before = [...words, ...Array(ends).fill('END')];
    const ids = before.map((word, i) => (i < words.length ? number.get(word) : vocabulary.length - 1));
    const [plan] = drawPlan(1, ids.length, vocabulary.length - 1, seed, config, p);
    const after = applyPlan(ids, plan), where = positions(plan);
    const last = (i) => Object.keys(where).findLast((kind) => where[kind][i]) ?? '';
    return {
      before,
      after: after.map((id) => vocabulary[id]),
      masked: after.map((id) => id === 0),
      shown: after.map((id, i) => (id === 0 ? 'mask' : vocabulary[id] === before[i] ? '' : last(i))),
      shares: Object.fromEntries(Object.entries(where).map(([kind, marked]) => [kind, share(marked)])),
    };
  };

  const root = globalThis.document?.currentScript?.parentElement;
  if (!root) {
    globalThis.ladNoise = {maskCounts, scheduleWords, countWords, expectedRates, drawnRates, corrupt};
    return;
  }

  // -- what a page shows ----------------------------------------------------------------------------

  const make = (tag, attributes = {}, ...children) => {
    const svg = ['svg', 'path', 'text', 'line', 'pattern'].includes(tag);
    const made = svg ? document.createElementNS('http://www.w3.org/2000/svg', tag)
      : document.createElement(tag);
    Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
    made.append(...children);
    return made;
  };
  const curve = (masks, length, words) => {
    const width = Math.max(300, part('screen').clientWidth), height = 230, left = 50, top = 30, bottom = 45;
    const x = (i) => left + i * (width - left - 10) / masks.length;
    const y = (n) => height - bottom - n * (height - top - bottom) / length;
    const ticks = (most, room) => {
      const step = [1, 2, 5, 10, 20, 50].find((one) => most / one <= room);
      return range(Math.floor(most / step) + 1, (i) => i * step);
    };
    const write = (text, attributes) => make('text', {fill: 'currentColor', ...attributes}, text);
    const middle = {'text-anchor': 'middle'}, grid = {stroke: 'currentColor', 'stroke-opacity': 0.25};
    const area = masks.map((n, i) => `V${y(n)}H${x(i + 1)}`).join('');
    const stripes = make('pattern', {id: 'lad-stripes', width: 6, height: 6, patternUnits: 'userSpaceOnUse'},
      make('path', {d: 'M0 6L6 0', stroke: '#D55E00', 'stroke-width': 1.5}));
    return make('svg', {viewBox: `0 0 ${width} ${height}`, width, role: 'img', 'aria-label': words, 'font-size': 12},
      stripes,
      write(`${sum(masks)} masks in ${masks.length} iterations`, {x: left, y: 16, 'font-weight': 'bold'}),
      ...ticks(length, 7).flatMap((n) => [make('line', {x1: left, x2: x(masks.length), y1: y(n), y2: y(n), ...grid}),
        write(n, {x: left - 6, y: y(n) + 4, 'text-anchor': 'end'})]),
      ...ticks(masks.length - 1, width / 60).map((i) => write(i, {x: x(i + 0.5), y: height - bottom + 16, ...middle})),
      make('path', {d: `M${x(0)} ${y(0)}${area}V${y(0)}Z`, fill: 'url(#lad-stripes)', stroke: '#D55E00'}),
      write('iteration (0 is the first)', {x: (left + width) / 2, y: height - 8, ...middle}),
      write('tokens masked again', {transform: `translate(12 ${(height + top - bottom) / 2}) rotate(-90)`, ...middle}));
  };
  const row = (pieces, kinds, name) => make('div', {class: 'lad-tokens', dir: 'auto', role: 'group', 'aria-label': name},
    ...pieces.map((piece, i) => make('span', {class: kinds[i] ? `lad-token lad-${kinds[i]}` : 'lad-token'},
      make(kinds[i] === 'mask' ? 'bdi' : 'span', {}, piece), make('small', {dir: 'ltr'}, kinds[i]))));
  const percent = (part, digits = 1) => (100 * part).toFixed(digits);
  const table = (config, p, rates, shares, rows) => {
    const expected = expectedRates(config, p);
    const heads = ['', 'expected', 'this draw', `mean of ${rows} draws (95 % interval)`];
    const line = (rate) => {
      const isShift = rate.kind === 'shift', one = shares[rate.kind];
      const cells = [`${percent(expected[rate.kind])} %`,
        isShift ? (one ? 'yes' : 'no') : `${percent(one, 0)} %`,
        `${percent(rate.mean)} % (${percent(Math.max(rate.low, 0))} to ${percent(rate.high)})`];
      const name = rate.kind + (isShift ? ' (share of sentences)' : '');
      return make('tr', {}, make('th', {scope: 'row'}, name), ...cells.map((cell) => make('td', {}, cell)));
    };
    return make('table', {}, make('caption', {}, `Tokens touched at p = ${p}`),
      make('thead', {}, make('tr', {}, ...heads.map((head) => make('th', {scope: 'col'}, head)))),
      make('tbody', {}, ...rates.map(line)));
  };

  const part = (name) => root.querySelector(`[data-part="${name}"]`);
  const given = JSON.parse(part('data').textContent);
  const inputs = [...part('controls').querySelectorAll('input')];
  const value = (input) => (input.type === 'checkbox' ? input.checked
    : input.type === 'text' ? input.value : Number(input.value));
  const explorers = {
    schedule: (settings) => {
      const masks = maskCounts(settings), words = scheduleWords(masks, settings.answer_length);
      return [curve(masks, settings.answer_length, words), make('p', {}, words), make('p', {}, countWords(masks))];
    },
    corruption: ({sentence, severity, seed, mask, ...ticked}) => {
      const config = {...given.config, kinds: given.config.kinds.filter((kind) => ticked[kind])};
      config.mask_probability *= mask;
      const drawn = corrupt(sentence, given.ends, given.everyday, config, severity, seed);
      const length = drawn.before.length, plain = Array(length).fill('');
      const rates = drawnRates(config, severity, length, given.draws, seed);
      const changed = drawn.after.filter((piece, i) => piece !== drawn.before[i]).length;
      const words = `${changed} of ${length} tokens differ from the original, `
        + `${sum(drawn.masked.map(Number))} of them hidden behind MASK.`;
      return ['before', row(drawn.before, plain, 'the sentence before'),
        'after', row(drawn.after, drawn.shown, 'the sentence after'), words,
        table(config, severity, rates, drawn.shares, given.draws), given.note];
    },
  };
  let drawnAt = 0; // this width
  const draw = () => {
    drawnAt = part('screen').clientWidth;
    inputs.filter((input) => input.type === 'range').forEach((input) => {
      input.nextElementSibling.textContent = input.value;
    });
    try {
      const settings = Object.fromEntries(inputs.map((input) => [input.name, value(input)]));
      part('screen').replaceChildren(...explorers[given.explorer](settings));
    } catch (error) {
      part('screen').replaceChildren(make('div', {role: 'alert'}, `Error: ${error.message}`));
    }
  };
  inputs.forEach((input) => input.addEventListener('input', draw));
  part('again')?.addEventListener('click', () => {
    const seed = inputs.find((input) => input.name === 'seed');
    seed.value = (Number(seed.value) + 1) % 2 ** 31;
    draw();
  });
  part('controls').hidden = false;
  draw();
  new ResizeObserver(() => { // the curve has the width of the page, which may change
    if (part('screen').clientWidth !== drawnAt) requestAnimationFrame(draw);
  }).observe(part('screen'));
})();
