"use strict";
(() => {
  const main = () => document.getElementById("main");
  document.documentElement.classList.add("js");

  // Charts: the table stays, behind "Data"; the drawing takes its place.
  const options = {
    ast: true, defaultStyle: false, renderer: "svg", actions: false,
    tooltip: { disableDefaultStyle: true },
  };
  function draw(root) {
    for (const figure of root.querySelectorAll("figure.chart:not([data-drawn])")) {
      const plot = figure.querySelector(".plot");
      figure.dataset.drawn = "";
      if (!window.vegaEmbed) continue;
      const details = figure.querySelector("details");
      plot.hidden = false;
      details.open = false;
      window.vegaEmbed(plot, JSON.parse(figure.querySelector(".spec").textContent), options).catch((error) => {
        plot.hidden = true;
        details.open = true;
        console.error("chart not drawn:", error.message);
      });
    }
  }

  function prepare(root) {
    for (const button of root.querySelectorAll("button.copy")) button.hidden = false;
    for (const element of root.querySelectorAll("[data-submit]")) element.hidden = true;
    draw(root);
  }

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button.copy");
    if (!button) return;
    await navigator.clipboard.writeText(button.dataset.copy);
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1200);
  });

  document.addEventListener("change", (event) => {
    if (event.target.matches("form.filter select")) event.target.form.requestSubmit();
  });

  // Keys: '/' filters, 'g' and a letter goes somewhere.
  let going = 0;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
    if (event.key === "/") {
      const filter = document.querySelector("form.filter input");
      if (filter) { event.preventDefault(); filter.focus(); filter.select(); }
    } else if (event.key === "g") {
      going = Date.now();
    } else if (Date.now() - going < 1500) {
      const link = document.querySelector(`nav a[data-key="${CSS.escape(event.key)}"]`);
      if (link) link.click();
      going = 0;
    }
  });

  // Live: when the event log has grown, the page is asked for again; never while somebody is typing or reading details.
  let seen = null;
  const busy = () => {
    const on = document.activeElement;
    return (on && on.matches("input, select, textarea")) || main().querySelector("details.action[open]") ||
      String(getSelection()).length > 0 || new URLSearchParams(location.search).has("after");
  };
  async function look() {
    if (document.hidden || busy()) return;
    const answer = await fetch(`${document.body.dataset.root}/timeline?limit=1&format=json`);
    if (!answer.ok) return;
    const items = (await answer.json()).items;
    const newest = items.length ? items[0].event.seq : 0;
    if (seen !== null && newest !== seen) {
      const page = await fetch(location.href, { headers: { Accept: "text/html" } });
      if (page.ok && !busy()) {
        const fresh = new DOMParser().parseFromString(await page.text(), "text/html").getElementById("main");
        const open = [...main().querySelectorAll("details")].map((d) => d.open);
        const at = scrollY;
        main().replaceWith(document.adoptNode(fresh));
        const now = main().querySelectorAll("details");
        if (now.length === open.length) now.forEach((d, i) => { d.open = open[i]; });
        prepare(main());
        scrollTo(0, at);
      }
    }
    seen = newest;
  }

  prepare(document);
  document.querySelector(".keys").hidden = false;
  setInterval(() => { look().catch(() => {}); }, 5000);
  look().catch(() => {});
})();
