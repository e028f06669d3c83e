// Names for what ipywidgets leaves nameless: slider handles, the buttons of Play, progress bars. The
// head of an Accordion gets what a button has, so that the keyboard reaches and opens it. The script
// watches the page, since widgets come and go.
(() => {
  if (window.ladNames) return;
  const described = (part) => {
    for (let box = part; box && box !== document.body; box = box.parentElement) {
      const label = box.querySelector(':scope > .widget-label');
      if (label) return label.textContent.trim();
    }
    return '';
  };
  const setName = (part, words) => {
    if (words && part.getAttribute('aria-label') !== words) part.setAttribute('aria-label', words);
  };
  const plays = {play: 'play', pause: 'pause', stop: 'back to the start', retweet: 'repeat'};
  const fold = (head) => {
    const open = () => head.parentElement.classList.contains('jupyter-widget-Collapse-open');
    head.setAttribute('aria-expanded', open());
    if (head.getAttribute('role') === 'button') return;
    head.setAttribute('role', 'button');
    head.tabIndex = 0;
    head.addEventListener('keydown', (event) => {
      if (event.key !== 'Enter' && event.key !== ' ') return;
      event.preventDefault();
      head.click();
    });
  };
  const name = () => {
    document.querySelectorAll('.noUi-handle').forEach((handle) => setName(handle, described(handle)));
    document.querySelectorAll('.widget-play button i').forEach((icon) => {
      const kind = Object.keys(plays).find((one) => icon.classList.contains('fa-' + one));
      if (kind) setName(icon.parentElement, plays[kind]);
    });
    document.querySelectorAll('button[title]').forEach((button) => {
      if (!button.textContent.trim()) setName(button, button.title);
    });
    document.querySelectorAll('.widget-hprogress .progress').forEach((bar) => {
      bar.setAttribute('role', 'progressbar');
      setName(bar, described(bar) || 'progress of the run');
    });
    document.querySelectorAll('.jupyter-widget-Collapse-header').forEach(fold);
  };
  let waiting = null;
  const schedule = () => {
    if (!waiting) waiting = setTimeout(() => { waiting = null; name(); }, 200);
  };
  window.ladNames = new MutationObserver(schedule);
  window.ladNames.observe(document.body, {childList: true, subtree: true,
    attributes: true, attributeFilter: ['class']});
  name();
})();
