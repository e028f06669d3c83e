// Names for what ipywidgets leaves nameless: slider handles and progress bars. The head of an
// Accordion gets what a button has, so that the keyboard reaches and opens it. The script watches the
// page, since widgets come and go. Then keys: Ctrl-Enter runs, space plays. And what only a page can
// do: copying a text, and telling the demo's kernel what the link says.
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
    document.querySelectorAll('.widget-hprogress .progress').forEach((bar) => {
      bar.setAttribute('role', 'progressbar');
      setName(bar, described(bar) || 'progress of the run');
    });
    document.querySelectorAll('.jupyter-widget-Collapse-header').forEach(fold);
    document.querySelectorAll(RUN).forEach((button) => {
      button.title = 'Ctrl-Enter';
      button.setAttribute('aria-keyshortcuts', 'Control+Enter');
    });
    const link = document.querySelector('.lad-query input');
    if (link && location.search && !link.value) {
      link.value = location.search;
      link.dispatchEvent(new Event('input', {bubbles: true}));
    }
  };
  // The first of these that can be pressed, in the nearest box of widgets that has one.
  const RUN = 'button.mod-primary', PLAY = '[data-part=play]';
  const nearest = (target, buttons) => {
    const start = target === document.body ? target : target.closest('.jupyter-widgets');
    for (let box = start; box; box = box.parentElement && box.parentElement.closest('.jupyter-widgets')) {
      const found = [...box.querySelectorAll(buttons)].find((one) => one.offsetParent && !one.disabled);
      if (found) return found;
    }
    return null;
  };
  const press = (event, buttons) => {
    const button = nearest(event.target, buttons);
    if (!button) return;
    event.preventDefault();
    event.stopPropagation();
    button.click();
  };
  // Before JupyterLab, which would run the cell again.
  window.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) press(event, RUN);
  }, true);
  const USES_SPACE = 'a, button, input, select, summary, textarea, [contenteditable=true], [role=button], [role=tab]';
  document.addEventListener('keydown', (event) => {
    if (event.key !== ' ' || event.defaultPrevented || event.target.closest(USES_SPACE)) return;
    press(event, PLAY);
  });
  document.addEventListener('click', (event) => {
    const button = event.target.closest('[data-copy]');
    if (!button) return;
    const from = button.previousElementSibling;
    document.addEventListener('copy', (copy) => {
      copy.clipboardData.setData('text/plain', from.href || from.textContent);
      copy.preventDefault();
      copy.stopPropagation();
    }, {once: true, capture: true});
    getSelection().selectAllChildren(from);
    document.execCommand('copy'); // the clipboard's newer interface is there over https alone
    button.textContent = 'Copied';
    setTimeout(() => { button.textContent = 'Copy'; }, 2000);
  });
  let waiting = null;
  const schedule = () => {
    if (!waiting) waiting = setTimeout(() => { waiting = null; name(); }, 200);
  };
  window.ladNames = new MutationObserver(schedule);
  window.ladNames.observe(document.body, {childList: true, subtree: true,
    attributes: true, attributeFilter: ['class']});
  name();
})();
