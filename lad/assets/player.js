// One run, or several side by side, under one clock: steps, iterations, forward passes or seconds. A
// frame says when it comes by each clock. The script looks for nothing outside the element it stands
// in, so any number of players share a page.
(() => {
  const root = document.currentScript.parentElement;
  const part = (name, within = root) => within.querySelector('[data-part="' + name + '"]');
  const slider = part('slider'), play = part('play'), by = part('by');
  const lanes = [...root.querySelectorAll('[data-lane]')].map((element) => ({
    bar: element.querySelector('progress'),
    standing: part('standing', element),
    inside: window.ladInside(element),
    frames: [...element.querySelectorAll('[data-frame]')],
    at: [...element.querySelectorAll('[data-frame]')].map((f) => f.dataset.times.split(' ').map(Number)),
  }));
  let now = 0, last = 0, request = null;
  const clock = () => by.selectedOptions[0];
  const end = (lane) => lane.at[lane.at.length - 1][by.selectedIndex];
  const times = () => [...new Set(lanes.flatMap((lane) => lane.at.map((at) => at[by.selectedIndex])))]
    .sort((a, b) => a - b);
  const words = ([passes, seconds]) =>
    passes + (passes === 1 ? ' pass, ' : ' passes, ') + seconds.toFixed(2) + ' s';
  const show = (time) => {
    now = Math.min(Math.max(time, 0), last);
    slider.value = now;
    let said = (slider.step === '1' ? Math.floor(now) : now.toFixed(2)) + ' ' + clock().text;
    lanes.forEach((lane) => {
      const shown = lane.at.findLastIndex((at) => at[by.selectedIndex] <= now + 1e-9);
      lane.frames.forEach((frame, number) => { frame.hidden = number !== shown; });
      lane.inside(lane.frames[shown]);
      if (lanes.length === 1) said = lane.frames[shown].firstElementChild.textContent; // its caption
      if (!lane.bar) return;
      lane.bar.max = last;
      lane.bar.value = Math.min(now, end(lane));
      const done = shown === lane.at.length - 1;
      lane.standing.textContent = (done ? 'Done: ' : 'Running: ') + words(lane.at[shown]);
    });
    if (part('clock')) part('clock').textContent = said;
    slider.setAttribute('aria-valuetext', said);
  };
  const stop = () => {
    cancelAnimationFrame(request);
    request = null;
    play.textContent = 'Play';
    if (slider.step === '1') now = Math.floor(now + 1e-9);
  };
  const start = () => {
    if (now >= last) show(0);
    play.textContent = 'Pause';
    let before = performance.now();
    const tick = (time) => {
      const rate = Number(part('pace').value) * Number(clock().dataset.rate);
      show(now + Math.max(time - before, 0) / 1000 * rate);
      before = time;
      if (now >= last) stop(); else request = requestAnimationFrame(tick);
    };
    request = requestAnimationFrame(tick);
  };
  const choose = () => {
    stop();
    last = Math.max(...lanes.map(end));
    slider.max = last;
    slider.step = clock().dataset.step;
    show(last);
  };
  const go = (time) => { stop(); show(time()); };
  play.addEventListener('click', () => { if (request) stop(); else start(); });
  part('back').addEventListener('click', () => go(() => times().findLast((t) => t < now - 1e-9) ?? 0));
  part('on').addEventListener('click', () => go(() => times().find((t) => t > now + 1e-9) ?? last));
  slider.addEventListener('input', () => go(() => Number(slider.value)));
  by.addEventListener('change', choose);
  const colour = part('confidence');
  colour?.addEventListener('change', () => {
    window.ladByConfidence = colour.checked; // the next player of the page begins with it
    part('body').classList.toggle('lad-by-confidence', colour.checked);
  });
  if (window.ladByConfidence) colour?.click();
  root.addEventListener('keydown', (event) => {
    if (event.key !== ' ' || event.target.closest('a, button, select, [type=checkbox]')) return;
    event.preventDefault();
    play.click();
  });
  part('bar').hidden = false;
  const first = lanes[0].frames.findIndex((frame) => !frame.hidden);
  choose();
  if (lanes.length === 1) show(lanes[0].at[first][0]);
})();
