"use strict";
// The page of a review. All texts of the data become text nodes, never markup.
(() => {
  const CHUNK = 60;
  const KEPT_CHUNKS = 60;
  const MOST_TRIES = 3;
  const VERDICTS = { belongs: "belongs", does_not_belong: "does not belong", skip: "skipped", disputed: "disputed" };
  const KEYS = { b: "belongs", n: "does_not_belong", s: "skip" };
  const $ = (id) => document.getElementById(id);
  const whole = new Intl.NumberFormat("en");
  const images = (n) => `${whole.format(n)} ${n === 1 ? "image" : "images"}`;
  const filters = $("filters");

  // The token was for the first request; a cookie has it now.
  history.replaceState(null, "", location.pathname + location.hash);

  let facts = null;
  let view = { view: "", shown: 0 };
  let chunks = new Map(); // of rows: an array, or {tries} where they are asked for
  let focus = 0;
  let anchor = 0;
  let extending = false;

  // Control characters, and those that turn the direction of what follows, are shown as such.
  const readable = (text) => text.replace(/[\p{Cc}\u2028-\u202e\u2066-\u2069\u200e\u200f]/gu, "\ufffd");

  const make = (kind, text = "", className = "") => {
    const element = document.createElement(kind);
    element.textContent = readable(text);
    element.className = className;
    return element;
  };

  const ask = async (name, values = {}, post = false) => {
    let address = name;
    const how = {};
    if (post) {
      how.method = "POST";
      how.headers = { "Content-Type": "application/json" };
      how.body = JSON.stringify(values);
    } else {
      const given = Object.entries(values).filter(([, value]) => value !== "" && value !== null);
      address += `?${new URLSearchParams(given)}`;
    }
    let answer;
    try {
      answer = await fetch(address, how);
    } catch {
      throw Object.assign(new Error("the server does not answer"), { again: true });
    }
    const type = answer.headers.get("content-type") || "";
    const said = type.startsWith("application/json") ? await answer.json() : { error: await answer.text() };
    if (!answer.ok) {
      throw Object.assign(new Error(said.error || `status ${answer.status}`), { status: answer.status });
    }
    return said;
  };

  // What went wrong stays on the page until it works; nothing is tried again by itself.
  let again = null;
  const problem = (error, retry = null) => {
    $("problem").hidden = !error;
    $("problem-text").textContent = error ? error.message : "";
    again = retry;
    $("retry").hidden = !retry;
  };
  $("retry").addEventListener("click", () => {
    const retry = again;
    problem(null);
    if (retry) {
      retry();
    }
  });

  // Rows

  const rowAt = (place) => {
    const chunk = chunks.get(Math.floor(place / CHUNK));
    return Array.isArray(chunk) ? chunk[place % CHUNK] : undefined;
  };

  const wanted = new Set();
  let remade = 0; // times that the view was made again without getting rows
  let waiting = 0;
  const want = (place) => {
    const number = Math.floor(place / CHUNK);
    const chunk = chunks.get(number);
    if (Array.isArray(chunk) || (chunk && (chunk.asked || chunk.tries >= MOST_TRIES))) {
      return;
    }
    wanted.add(number);
    clearTimeout(waiting);
    waiting = setTimeout(fetchWanted, 30); // what was only scrolled through is not asked for
  };

  const fetchWanted = () => {
    const inSight = new Set([...grid.tiles.keys(), focus].map((place) => Math.floor(place / CHUNK)));
    for (const number of wanted) {
      wanted.delete(number);
      if (inSight.has(number)) {
        fetchChunk(number);
      }
    }
  };

  const fetchChunk = async (number) => {
    const of = view.view;
    const tries = (chunks.get(number)?.tries || 0) + 1;
    chunks.set(number, { asked: true, tries });
    try {
      const rows = await ask("rows", { view: of, first: number * CHUNK, count: CHUNK });
      if (of !== view.view) {
        return;
      }
      remade = 0;
      chunks.delete(number);
      chunks.set(number, rows);
      for (const [old, chunk] of chunks) {
        if (chunks.size <= KEPT_CHUNKS) {
          break;
        }
        if (Array.isArray(chunk) && old !== Math.floor(focus / CHUNK)) {
          chunks.delete(old);
        }
      }
      grid.refill();
      if (number === Math.floor(focus / CHUNK)) {
        showImage();
      }
    } catch (error) {
      if (of !== view.view) {
        return;
      }
      chunks.set(number, { asked: false, tries });
      if (error.status === 410 && remade < MOST_TRIES) {
        remade += 1;
        await makeView(focus);
      } else {
        problem(error, () => {
          chunks.delete(number);
          want(number * CHUNK);
        });
      }
    }
  };

  // Tiles

  // A number is that of an image of these scores; the browser may have kept pictures of others.
  const pictureOf = (id, size = "small") => `picture?${new URLSearchParams({ of: facts.catalogue, id, size })}`;

  const selection = () => [Math.min(anchor, focus), Math.min(Math.max(anchor, focus) + 1, view.shown)];

  const mark = (tile, place) => {
    const [first, end] = selection();
    const several = end - first > 1;
    tile.classList.toggle("focus", place === focus);
    tile.classList.toggle("selected", several && place >= first && place < end);
    tile.setAttribute("aria-selected", place >= first && place < end);
    const row = rowAt(place);
    if (!row) {
      return;
    }
    const saving = row.saving;
    tile.classList.toggle("saving", Boolean(saving));
    const verdict = saving || row.verdict;
    tile.dataset.verdict = saving ? "" : verdict;
    const badge = tile.querySelector(".verdict");
    if (badge) {
      badge.textContent = VERDICTS[verdict] ? VERDICTS[verdict] + (saving ? " …" : "") : "";
      badge.hidden = !badge.textContent;
    }
  };

  const fill = (tile, place) => {
    const row = rowAt(place);
    if (!row) {
      if (!tile.dataset.image) { // else it is only asked for again
        tile.replaceChildren(make("div", "…", "picture"));
      }
      want(place);
    } else if (tile.dataset.image !== String(row.id)) {
      tile.dataset.image = row.id;
      const picture = make("div", "", "picture");
      if (facts.pictures) {
        const image = make("img");
        image.alt = readable(row.key);
        image.draggable = false;
        image.onerror = () => picture.replaceChildren(make("span", "no picture"));
        image.src = pictureOf(row.id);
        picture.append(image);
      } else {
        picture.textContent = "no folder of images";
      }
      const caption = make("div", "", "caption");
      caption.append(make("div", row.key));
      const score = row.score === null ? row.status : row.score.toFixed(3);
      caption.append(make("div", row.group ? `${score} · ${row.group}` : `${score} · ${row.nearest || ""}`, "more"));
      tile.title = readable(row.key);
      tile.replaceChildren(picture, caption, make("span", "", "verdict"));
      if (row.copies > 1) {
        tile.append(make("span", `× ${row.copies}`, "copies"));
      }
    }
    mark(tile, place);
  };

  const empty = (tile) => {
    const image = tile.querySelector("img");
    if (image) {
      image.onerror = null;
      image.removeAttribute("src"); // a picture that was not loaded yet need not be
    }
  };

  const grid = new Grid($("grid"), $("sheet"), fill, empty);
  const markAll = () => {
    grid.tiles.forEach(mark);
    const [first, end] = selection();
    $("selected").textContent = view.shown ? `${images(end - first)} selected` : "";
  };

  const moveTo = (place, extend) => {
    if (!view.shown) {
      return;
    }
    focus = Math.min(Math.max(0, place), view.shown - 1);
    if (!extend) {
      anchor = focus;
    }
    grid.bringIntoSight(focus);
    markAll();
    showImage();
  };

  // Views

  const filterValues = () =>
    Object.fromEntries([...new FormData(filters)].map(([name, value]) => [name, String(value).trim()])
      .filter(([, value]) => value !== ""));

  const setFilters = (values) => {
    for (const field of filters.elements) {
      if (field.name) {
        field.value = values[field.name] ?? (field.name === "order" ? "score" : "");
      }
    }
  };

  let making = 0;
  const makeView = async (place = 0, all = false) => {
    const values = filterValues();
    history.replaceState(null, "", `#${new URLSearchParams(values)}`);
    making += 1;
    const mine = making;
    $("says").textContent = "looking …";
    let made;
    try {
      made = await ask("view", values.word || !values.pull ? values : { ...values, pull: "" });
    } catch (error) {
      if (mine === making) {
        $("says").textContent = "";
        problem(error, () => makeView(place, all));
      }
      return;
    }
    if (mine !== making) {
      return;
    }
    problem(null);
    view = made;
    chunks = new Map();
    focus = Math.min(place, Math.max(0, view.shown - 1));
    anchor = focus;
    if (all && view.shown) {
      anchor = view.shown - 1;
    }
    const copies = view.images > view.shown ? `, ${images(view.images)} with their copies` : "";
    const judged = Object.entries(VERDICTS).filter(([name]) => view.counts[name])
      .map(([name, text]) => `${whole.format(view.counts[name])} ${text}`).join(", ");
    const groups = view.groups.map(([name, count]) => `${readable(name)} ${whole.format(count)}`).join(", ");
    const kinds = groups && !values.group ? ` (${groups}${facts.groups.length > view.groups.length ? ", …" : ""})` : "";
    $("says").textContent = `${images(view.shown)} shown${copies}, ${whole.format(view.flagged)} flagged${kinds}; at first ${judged || "none judged"}` +
      (values.draw ? `; in the order of the draw ${values.draw}` : "");
    grid.show(view.shown, focus);
    markAll();
    showImage();
  };

  let typing = 0;
  filters.addEventListener("input", (event) => {
    filters.elements.draw.value = "";
    clearTimeout(typing);
    typing = setTimeout(() => makeView(), event.target.tagName === "SELECT" ? 0 : 400);
  });
  filters.addEventListener("submit", (event) => event.preventDefault());
  const filterBy = (values, all = false) => {
    setFilters(values);
    return makeView(0, all);
  };
  $("clear").addEventListener("click", () => filterBy({}));

  // Verdicts: one after another, each shown as saved only when the server says that it is on disk

  const queue = [];
  let sending = false;
  const showSaved = (text = "") => {
    const bad = Boolean(again);
    $("saved").classList.toggle("bad", bad);
    $("saved").textContent = queue.length ? `${bad ? "NOT SAVED" : "saving"}: ${queue.length}` : text || "all saved";
  };

  const showCounts = (counts) => {
    facts.counts = counts;
    const others = facts.people.filter((name) => name !== facts.person);
    $("counts").textContent = `${images(facts.rows)}: ` +
      Object.entries(VERDICTS).map(([name, text]) => `${whole.format(counts[name])} ${text}`)
        .filter((text) => !text.startsWith("0 disputed")).join(", ") +
      `; you are ${facts.person}${others.length ? `, with ${others.join(", ")}` : ""}`;
  };

  const eachLoaded = (ranges, change) => {
    for (const [number, chunk] of chunks) {
      if (Array.isArray(chunk)) {
        chunk.forEach((row, at) => {
          const place = number * CHUNK + at;
          if (ranges.some(([first, end]) => place >= first && place < end)) {
            change(row);
          }
        });
      }
    }
  };

  const send = async () => {
    if (sending) {
      return;
    }
    sending = true;
    while (queue.length) {
      showSaved();
      const action = queue[0];
      try {
        const done = await ask(action.name, action.values, true);
        queue.shift();
        showCounts(done.counts);
        action.done(done);
      } catch (error) {
        if (error.again) {
          sending = false;
          problem(error, send);
          showSaved();
          return;
        }
        queue.shift();
        action.failed(error);
        problem(error);
        showSaved();
      }
    }
    sending = false;
  };

  const judge = (verdict) => {
    if (!view.shown) {
      return;
    }
    const [first, end] = selection();
    const ranges = [[first, end]];
    const of = view.view;
    eachLoaded(ranges, (row) => { row.saving = verdict; });
    queue.push({
      name: "judge",
      values: { view: of, ranges, verdict },
      done: (answer) => {
        if (of === view.view) {
          eachLoaded(ranges, (row) => { row.saving = ""; row.verdict = verdict; });
          if (facts.people.length > 1 || end - first > 1) {
            reloadRows();
          }
        }
        showSaved(`saved: ${images(answer.images)}, ${VERDICTS[verdict]}`);
        markAll();
        showImage();
        showDraws();
      },
      failed: () => {
        eachLoaded(ranges, (row) => { row.saving = ""; });
        markAll();
      },
    });
    send();
    if (end - first === 1 && focus + 1 < view.shown) {
      moveTo(focus + 1, false);
    } else {
      markAll();
    }
  };

  const reloadRows = () => {
    for (const [number, chunk] of chunks) {
      if (!Array.isArray(chunk) || !chunk.some((row) => row.saving)) {
        chunks.delete(number);
      }
    }
    grid.refill();
    want(focus);
  };

  const undo = () => {
    queue.push({
      name: "undo",
      values: {},
      done: (answer) => {
        showSaved(answer.images ? `undone: ${images(answer.images)}, ${VERDICTS[answer.verdict]}` : "nothing to undo");
        reloadRows();
        showDraws();
      },
      failed: () => {},
    });
    send();
  };

  window.addEventListener("beforeunload", (event) => {
    if (queue.length) {
      event.preventDefault();
    }
  });

  // One image

  let shownImage = null;
  let looking = 0;
  const showImage = () => {
    const row = view.shown ? rowAt(focus) : undefined;
    if (!row) {
      want(focus);
      return;
    }
    const mark = `${row.id} ${row.verdict}`;
    if (shownImage === mark) {
      return;
    }
    shownImage = mark;
    clearTimeout(looking);
    looking = setTimeout(() => loadImage(row), 120); // not for what is only passed by
  };

  const fact = (name, value) => {
    const said = make("dd");
    const inner = make("bdi", value);
    said.append(inner);
    $("facts").append(make("dt", name), said);
  };

  const loadImage = async (row) => {
    const large = $("large");
    large.hidden = !facts.pictures;
    if (facts.pictures) {
      large.alt = readable(row.key);
      large.src = pictureOf(row.id, "large");
      $("no-picture").hidden = true;
    }
    let found;
    try {
      found = await ask("image", { id: row.id });
    } catch (error) {
      problem(error);
      return;
    }
    if (rowAt(focus)?.id !== row.id) {
      return;
    }
    $("facts").replaceChildren();
    fact("key", found.key);
    if (found.anomaly_score === null) {
      fact("status", `${found.status}: ${found.error || ""}`);
    } else {
      fact("score", `${found.anomaly_score.toFixed(4)} = internal ${found.internal_score.toFixed(4)} + ${facts.lam} × external ${found.external_score.toFixed(4)}`);
      fact("nearest class", found.nearest_class);
    }
    if (row.group) {
      fact("group", row.group);
    }
    if (typeof found.p_value === "number") {
      fact("p-value", found.p_value.toPrecision(3));
    }
    for (const [person, verdict] of Object.entries(found.people)) {
      fact(person, VERDICTS[verdict]);
    }
    if (found.calibrated) {
      fact("note", "it calibrated the scores, and counts in no sample");
    }
    if (row.copies > 1) {
      fact(`${row.copies} copies`, found.copies.join(", ") + (row.copies > found.copies.length ? ", …" : ""));
    }
    const body = $("entries").tBodies[0];
    body.replaceChildren();
    (found.entries || []).map((word, at) => [word, found.similarities[at], found.contributions[at]])
      .sort((one, other) => Math.abs(other[2]) - Math.abs(one[2]))
      .forEach(([word, similarity, pull]) => {
        const line = body.insertRow();
        const button = make("button", word);
        button.type = "button";
        button.title = "show all images that have this word";
        button.addEventListener("click", () => filterBy({ word }));
        line.insertCell().append(button);
        line.insertCell().textContent = similarity.toFixed(3);
        line.insertCell().textContent = (pull < 0 ? "" : "+") + pull.toFixed(3);
      });
    $("entries").hidden = !body.rows.length;
  };
  $("large").addEventListener("error", () => {
    $("large").hidden = true;
    $("no-picture").hidden = false;
    const row = rowAt(focus);
    if (row) {
      ask("picture", { of: facts.catalogue, id: row.id, size: "large" }).catch((error) => {
        $("no-picture").textContent = `no picture: ${error.message}`;
      });
    }
  });

  // Budget, samples, words

  const showBudget = () => {
    const steps = facts.budget || [];
    $("budget-box").hidden = !steps.length;
    $("budget-none").hidden = Boolean(steps.length);
    const slider = $("budget");
    slider.max = Math.max(0, steps.length - 1);
    const show = () => {
      const step = steps[slider.value];
      if (step) {
        $("budget-says").textContent = `At most ${(100 * step.rate).toPrecision(2)} % of normal images are flagged: ` +
          `${images(step.images)} of ${whole.format(facts.scored)} to look at, from ${step.threshold.toFixed(4)} on.`;
      }
    };
    const near = facts.threshold === null ? 0 : steps.findIndex((step) => step.threshold <= facts.threshold + 1e-9);
    slider.value = Math.max(0, near);
    slider.oninput = show;
    show();
    $("budget-look").onclick = () => filterBy({ least: String(steps[slider.value].threshold) });
  };

  const showDraws = async () => {
    if (!$("draw-panel").open) {
      return;
    }
    let found;
    try {
      found = await ask("draws");
    } catch (error) {
      problem(error);
      return;
    }
    $("draws").replaceChildren(...found.map((draw) => {
      const item = make("li");
      const what = draw.of === "unflagged"
        ? `${whole.format(draw.population)} images below ${draw.threshold.toFixed(4)} that nobody had judged`
        : `all ${whole.format(draw.population)} images with a score`;
      item.append(make("div", `${draw.drawn} of ${what}: ${draw.judged} judged, ${draw.do_not_belong} do not belong` +
        (draw.undecided ? `, ${draw.undecided} undecided` : "")));
      if (draw.low !== null) {
        item.append(make("strong", `${whole.format(draw.low)} to ${whole.format(draw.high)} of them do not belong ` +
          `(${100 * draw.confidence} %${draw.judged < draw.drawn ? ", so far" : ""})`));
      }
      const button = make("button", draw.judged < draw.drawn ? "Go on judging" : "Look at it");
      button.type = "button";
      button.addEventListener("click", async () => {
        setFilters({ draw: draw.draw });
        await makeView(Math.min(draw.judged, draw.drawn - 1));
      });
      item.append(make("div"), button);
      return item;
    }));
  };
  $("draw-panel").addEventListener("toggle", showDraws);

  const draw = async (of) => {
    const size = Math.round(Number($("draw-size").value));
    const step = facts.budget?.[$("budget").value];
    const threshold = of === "unflagged" && facts.threshold === null && step ? step.threshold : null;
    try {
      const made = await ask("draw", { of, size, threshold }, true);
      await showDraws();
      setFilters({ draw: made.draw });
      await makeView();
    } catch (error) {
      problem(error);
    }
  };
  $("draw-unflagged").addEventListener("click", () => draw("unflagged"));
  $("draw-scored").addEventListener("click", () => draw("scored"));

  const showWords = () => {
    $("pulls").replaceChildren(...facts.words.map(([word, count, sum]) => {
      const item = make("li");
      const button = make("button", word);
      button.type = "button";
      button.addEventListener("click", () => filterBy({ word, pull: "0" }));
      item.append(button, make("span", `${whole.format(count)} flagged, ${sum < 0 ? "" : "+"}${sum.toFixed(2)}`));
      return item;
    }));
    $("words").replaceChildren(...facts.words.map(([word]) => {
      const option = make("option");
      option.value = word;
      return option;
    }));
  };

  // A group that is normal, too

  let watching = 0;
  const strip = (element, listed) => element.replaceChildren(...listed.length ? listed.map(({ id, key }) => {
    if (!facts.pictures) {
      return make("span", key);
    }
    const image = make("img");
    image.alt = readable(key);
    image.title = readable(key);
    image.src = pictureOf(id);
    return image;
  }) : [make("span", "none")]);

  const showProposal = (found) => {
    clearTimeout(watching);
    const done = found.state === "done" || found.state === "accepted";
    $("normal-try").disabled = found.state === "working" || !facts.extendable || !facts.groups.length;
    $("normal-changes").hidden = !done;
    $("normal-accept").disabled = found.state === "accepted";
    if (found.state === "working") {
      $("normal-says").textContent = `${found.step} …`;
      watching = setTimeout(watchProposal, 1000); // until it is made, or the server does not answer
    } else if (found.state === "failed") {
      $("normal-says").textContent = found.error;
    } else if (!done) {
      $("normal-says").textContent = facts.extendable ? "" : "Needs a run of bliss-index screen.";
    } else {
      const contradicted = found.contradicted ? ` ${images(found.contradicted)} judged not to belong would no longer be flagged.` : "";
      $("normal-says").textContent = found.state === "accepted"
        ? `Accepted. Go on with: bliss-index review ${readable(found.folder)}`
        : `${readable(found.name)} of ${images(found.images)}: ${whole.format(found.flagged[0])} flagged now, ` +
          `${whole.format(found.flagged[1])} then (${whole.format(found.no_longer)} no longer, ${whole.format(found.newly)} newly); ` +
          `the threshold ${found.threshold[0].toFixed(3)} becomes ${found.threshold[1].toFixed(3)}.${contradicted}`;
      $("normal-groups").tBodies[0].replaceChildren(...found.groups.map(([name, was, is]) => {
        const line = make("tr");
        line.append(make("td", name), make("td", whole.format(was)), make("td", whole.format(is)));
        return line;
      }));
      strip($("normal-gone"), found.examples.no_longer);
      strip($("normal-come"), found.examples.newly);
    }
  };
  const watchProposal = async () => {
    try {
      showProposal(await ask("proposal"));
    } catch (error) {
      problem(error, watchProposal);
    }
  };
  const change = async (name, values) => {
    try {
      showProposal(await ask(name, values, true));
    } catch (error) {
      $("normal-says").textContent = error.message;
    }
  };
  $("normal-panel").addEventListener("toggle", watchProposal);
  $("normal-group").addEventListener("change", () => { $("normal-name").value = $("normal-group").value; });
  $("normal-try").addEventListener("click", () =>
    change("propose", { group: $("normal-group").value, name: $("normal-name").value.trim() }));
  $("normal-accept").addEventListener("click", () => change("accept", {}));

  // Keys and buttons

  const selectWhole = () => {
    if (view.shown) {
      anchor = view.shown - 1;
      focus = 0;
      grid.bringIntoSight(0);
      markAll();
      showImage();
    }
  };
  const selectGroup = () => {
    const row = rowAt(focus);
    if (row?.group) {
      filterBy({ group: row.group }, true);
    }
  };

  document.addEventListener("keydown", (event) => {
    const control = event.ctrlKey || event.metaKey;
    if (event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) {
      return;
    }
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const sight = Math.max(1, Math.floor(grid.box.clientHeight / grid.height) - 1) * grid.columns;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -grid.columns, ArrowDown: grid.columns,
      PageUp: -sight, PageDown: sight, Home: -Infinity, End: Infinity };
    if (control && key !== "z" && key !== "a") {
      return;
    }
    if (key in steps) {
      const to = focus + steps[key];
      moveTo(key.startsWith("Arrow") && (to < 0 || to >= view.shown) && grid.columns > 1 && Math.abs(steps[key]) > 1 ? focus : to, event.shiftKey);
    } else if (key in KEYS && !control && !event.repeat) {
      judge(KEYS[key]);
    } else if (key === "u" || (control && key === "z")) {
      undo();
    } else if (key === "a") {
      selectWhole();
    } else if (key === "g") {
      selectGroup();
    } else if (key === "Escape") {
      moveTo(focus, false);
    } else {
      return;
    }
    event.preventDefault();
  });

  $("sheet").addEventListener("click", (event) => {
    const tile = event.target.closest(".tile");
    if (tile) {
      moveTo(Number(tile.dataset.place), event.shiftKey || extending);
      $("grid").focus({ preventScroll: true });
    }
  });
  document.querySelectorAll("footer [data-verdict]").forEach((button) =>
    button.addEventListener("click", () => judge(button.dataset.verdict)));
  $("undo").addEventListener("click", undo);
  $("whole").addEventListener("click", selectWhole);
  $("range").addEventListener("click", () => {
    extending = !extending;
    $("range").setAttribute("aria-pressed", extending);
  });

  // The beginning

  const options = (name, listed, none) => {
    const select = filters.elements[name];
    const all = make("option", "all");
    all.value = "";
    select.replaceChildren(all, ...listed.map(([value, count]) => {
      const option = make("option", `${value} (${whole.format(count)})`);
      option.value = value;
      return option;
    }));
    select.disabled = !listed.length && !none;
  };

  $("filter-box").open = innerWidth > 800;

  const start = async () => {
    try {
      facts = await ask("facts");
    } catch (error) {
      problem(error, start);
      return;
    }
    $("name").textContent = readable(facts.name);
    document.title = `${readable(facts.name)}: review`;
    $("notices").hidden = !facts.notices.length;
    $("notices").replaceChildren(...facts.notices.map((text) => make("li", text)));
    options("group", facts.groups);
    options("nearest_class", facts.classes);
    $("normal-group").replaceChildren(...facts.groups.map(([name, count]) => {
      const option = make("option", `${name} (${whole.format(count)})`);
      option.value = name;
      return option;
    }));
    $("normal-names").replaceChildren(...facts.groups.map(([name]) => {
      const option = make("option");
      option.value = name;
      return option;
    }));
    $("normal-name").value = facts.groups.length ? facts.groups[0][0] : "";
    showCounts(facts.counts);
    showBudget();
    showWords();
    const before = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
    setFilters(before);
    await makeView();
    $("grid").focus({ preventScroll: true });
  };
  start();
})();
