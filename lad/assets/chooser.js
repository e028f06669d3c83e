// Menus over pages: each is HTML, gzip in base64, unpacked when chosen.
(() => {
  const root = document.currentScript.parentElement;
  const part = (name) => root.querySelector('[data-part="' + name + '"]');
  const runs = JSON.parse(part('runs').textContent);
  const menus = [...part('menus').querySelectorAll('select')];
  const keyNow = () => menus.map((menu) => menu.selectedIndex).join(' ');
  const unpack = (text) => {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
    return new Response(stream).text();
  };
  const choose = async (event) => {
    const key = keyNow(), html = await unpack(runs[key]);
    if (key !== keyNow()) return; // another was chosen meanwhile
    // Unlike those of innerHTML, the scripts of such a fragment run.
    if (event) part('run').replaceChildren(document.createRange().createContextualFragment(html));
    URL.revokeObjectURL(part('save').href);
    const page = '<!DOCTYPE html><meta charset="utf-8"><title>A run of LAD</title>' + html;
    part('save').href = URL.createObjectURL(new Blob([page], {type: 'text/html'}));
  };
  menus.forEach((menu) => menu.addEventListener('change', choose));
  part('menus').hidden = false;
  choose();
})();
