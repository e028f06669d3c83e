// The player of one recorded run. It looks for nothing outside the element it stands in, so any
// number of players share a page.
(() => {
  const root = document.currentScript.parentElement;
  const part = (name) => root.querySelector('[data-part="' + name + '"]');
  const shown = [...root.querySelectorAll('[data-frame]')];
  const slider = part('slider'), play = part('play'), pace = part('pace');
  let timer = null;
  const show = (at) => {
    at = Math.min(Math.max(at, 0), shown.length - 1);
    shown.forEach((frame, number) => { frame.hidden = number !== at; });
    slider.value = at;
    slider.setAttribute('aria-valuetext', shown[at].firstElementChild.textContent);
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    play.textContent = 'Play';
  };
  const start = () => {
    if (Number(slider.value) === shown.length - 1) show(0);
    play.textContent = 'Pause';
    timer = setInterval(() => {
      show(Number(slider.value) + 1);
      if (Number(slider.value) === shown.length - 1) stop();
    }, 1000 * Number(pace.value));
  };
  play.addEventListener('click', () => { if (timer) stop(); else start(); });
  part('back').addEventListener('click', () => { stop(); show(Number(slider.value) - 1); });
  part('on').addEventListener('click', () => { stop(); show(Number(slider.value) + 1); });
  slider.addEventListener('input', () => { stop(); show(Number(slider.value)); });
  pace.addEventListener('change', () => { if (timer) { stop(); start(); } });
  part('confidence').addEventListener('change', (event) => {
    part('body').classList.toggle('lad-by-confidence', event.target.checked);
  });
  root.addEventListener('keydown', (event) => {
    if (event.key !== ' ' || event.target.closest('a, button, select, [type=checkbox]')) return;
    event.preventDefault();
    play.click();
  });
  part('bar').hidden = false;
  show(shown.length - 1);
})();
