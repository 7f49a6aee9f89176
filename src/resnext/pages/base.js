const $ = (id) => document.getElementById(id);
{{ shared/el.js }}

function percent(p) {
  if (p > .995 && p < 1) return "> 99 %";
  return p > 0 && p < .005 ? "< 1 %" : `${Math.round(100 * p)} %`;
}

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}
