// Fetches the page again, as often as it asks for, and puts in what has changed. A lab that does
// not answer is asked less and less often, and the page says so.
const MOST_S = 60;
const main = document.getElementById("main");
const connection = document.getElementById("connection");
let failures = 0;
let timer = 0;

function put(fresh) {
  for (const details of main.querySelectorAll("details[id]")) {
    const same = fresh.querySelector(`#${CSS.escape(details.id)}`);
    if (same) same.open = details.open;
  }
  const focused = main.contains(document.activeElement) ? document.activeElement : null;
  const writing = focused?.closest("form");
  const [before, after] = [[...main.children], [...fresh.children]];
  if (before.length !== after.length) {
    if (writing) return;
    main.replaceChildren(...after);
  } else {
    before.forEach((old, i) => {
      if (old.isEqualNode(after[i]) || (writing && old.contains(writing))) return;
      const scrolled = [...old.querySelectorAll(".scroll")].map((box) => box.scrollLeft);
      old.replaceWith(after[i]);
      after[i].querySelectorAll(".scroll").forEach((box, k) => { box.scrollLeft = scrolled[k] ?? 0; });
    });
  }
  if (focused && !focused.isConnected && focused.href) {
    main.querySelector(`a[href="${CSS.escape(focused.getAttribute("href"))}"]`)?.focus({ preventScroll: true });
  }
}

async function refresh() {
  try {
    const answer = await fetch(location.href, { cache: "no-store", signal: AbortSignal.timeout(15000) });
    if (answer.redirected) return location.reload();
    if (!answer.ok) throw new Error(answer.statusText);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.getElementById("main");
    failures = 0;
    document.title = page.title;
    main.dataset.refreshS = fresh.dataset.refreshS ?? "";
    put(fresh);
  } catch {
    failures += 1;
  }
  connection.hidden = failures < 2;
  plan();
}

function plan() {
  clearTimeout(timer);
  const asked = Number(main.dataset.refreshS);
  if (!asked || document.hidden) return;
  timer = setTimeout(refresh, 1000 * Math.min(asked * 2 ** failures, Math.max(asked, MOST_S)));
}

document.addEventListener("visibilitychange", plan);
plan();

// A link from another site arrives without the cookie, and ends where one signs in: this page's
// own request has it.
const wanted = document.querySelector("form.sign-in [name=next]")?.value;
if (wanted) {
  fetch(wanted, { redirect: "manual" })
    .then((answer) => { if (answer.ok) location.replace(wanted); })
    .catch(() => {});
}
