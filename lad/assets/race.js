// Runs side by side under one clock, in forward passes or in seconds. It looks for nothing outside
// the element it stands in.
(() => {
  const root = document.currentScript.parentElement;
  const part = (name, within = root) => within.querySelector('[data-part="' + name + '"]');
  const slider = part('slider'), play = part('play'), by = part('by'), pace = part('pace');
  const PASSES_A_SECOND = 10;  // at the middle pace; of seconds that is the pace of the run
  const lanes = [...root.querySelectorAll('[data-lane]')].map((element) => ({
    bar: element.querySelector('progress'),
    standing: part('standing', element),
    frames: [...element.querySelectorAll('[data-frame]')],
    at: [...element.querySelectorAll('[data-frame]')].map((f) => f.dataset.at.split(' ').map(Number)),
  }));
  let now = 0, last = 0, request = null;
  const which = () => by.selectedIndex;
  const end = (lane) => lane.at[lane.at.length - 1][which()];
  const times = () => [...new Set(lanes.flatMap((lane) => lane.at.map((at) => at[which()])))]
    .sort((a, b) => a - b);
  const words = ([passes, seconds]) =>
    passes + (passes === 1 ? ' pass, ' : ' passes, ') + seconds.toFixed(2) + ' s';
  const show = (time) => {
    now = Math.min(Math.max(time, 0), last);
    slider.value = now;
    lanes.forEach((lane) => {
      const shown = lane.at.findLastIndex((at) => at[which()] <= now + 1e-9);
      const done = shown === lane.at.length - 1;
      lane.frames.forEach((frame, number) => { frame.hidden = number !== shown; });
      lane.bar.max = last;
      lane.bar.value = Math.min(now, end(lane));
      lane.standing.textContent = (done ? 'Done: ' : 'Running: ') + words(lane.at[shown]);
    });
    const clock = which() ? now.toFixed(2) + ' s' : Math.floor(now) + ' passes';
    part('clock').textContent = clock;
    slider.setAttribute('aria-valuetext', clock);
  };
  const stop = () => {
    cancelAnimationFrame(request);
    request = null;
    play.textContent = 'Play';
  };
  const start = () => {
    if (now >= last) show(0);
    play.textContent = 'Pause';
    let before = performance.now();
    const tick = (time) => {
      const rate = Number(pace.value) * (which() ? 1 : PASSES_A_SECOND);
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
    slider.step = which() ? 'any' : 1;
    show(last);
  };
  play.addEventListener('click', () => { if (request) stop(); else start(); });
  part('back').addEventListener('click', () => {
    stop();
    show(times().findLast((time) => time < now - 1e-9) ?? 0);
  });
  part('on').addEventListener('click', () => {
    stop();
    show(times().find((time) => time > now + 1e-9) ?? last);
  });
  slider.addEventListener('input', () => { stop(); show(Number(slider.value)); });
  by.addEventListener('change', choose);
  part('bar').hidden = false;
  choose();
})();
