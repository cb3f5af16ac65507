// Shows the document of `data.py`. What it says comes from strangers: it becomes text nodes, never markup.
"use strict";
(() => {
  const REPORT = JSON.parse(document.getElementById("data").textContent);
  const STUDIES = REPORT.studies;
  const SEVERAL = STUDIES.length > 1;
  const SCORE = STUDIES[0].objectives[0];
  const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8a00"]; // Okabe and Ito
  const SHOWN_LIMIT = 200; // positions of the slider
  const $ = (id) => document.getElementById(id);

  // --- elements and words ---

  function el(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""));
    return node;
  }
  const replace = (id, ...children) => $(id).replaceChildren(...children.flat(Infinity).filter((child) => child !== ""));
  const known = (value) => value !== null && value !== undefined;
  const count = (value) => Math.round(value).toLocaleString("en-US");
  const score = (value) => (known(value) ? value.toFixed(4) : "");
  const percent = (value) => (!known(value) ? "" : value < 10 ? value.toFixed(3) : value.toFixed(1));
  const amount = (value) =>
    !known(value) ? "" : value >= 100 || Number.isInteger(value) ? count(value) : String(Number(value.toPrecision(3)));
  const brief = (value) => {
    for (const [size, unit] of [[1e9, "B"], [1e6, "M"], [1e3, "k"]])
      if (value >= size) return `${Number((value / size).toPrecision(3))}${unit}`;
    return String(Number(value.toPrecision(3)));
  };
  const costText = (name, value) => (name === "stored_percent" ? `${percent(value)} %` : amount(value));
  const label = (trial) => trial.name || trial.design || "the model as it is";
  const designOf = (trial) => [trial.name, trial.design].filter(Boolean).join(": ") || "the model as it is";
  const titleOf = (study, trial) =>
    `${SEVERAL ? `${study.study}, ` : ""}${trial.reference ? "reference" : "trial"} ${trial.number}`;
  const better = (a, b) => (SCORE.higher_is_better ? a > b : a < b);
  const last = (trial) => (trial.curve.length ? trial.curve[trial.curve.length - 1][1] : null);
  const shown = (trial) => (known(trial.score) ? trial.score : last(trial));

  for (const study of STUDIES) {
    study.byNumber = new Map(study.trials.map((trial) => [trial.number, trial]));
    study.members = study.front.map((row) => study.byNumber.get(row.trial)).filter(Boolean);
    study.onFront = new Set(study.members.map((trial) => trial.number));
    study.intervals = new Map(study.luck.intervals.map((one) => [one.trial, one]));
  }
  const COSTS = new Map(STUDIES.flatMap((study) => study.costs).map((cost) => [cost.name, cost]));

  // --- state, kept in the address so that a page that loads itself again shows the same ---

  const state = { study: 0, trial: null, limit: null, cost: STUDIES[0].objectives[1].name, kept: null };
  function remember() {
    const where = new URLSearchParams();
    if (state.trial !== null) where.set("trial", `${state.study}.${state.trial}`);
    if (state.limit !== null) where.set("limit", `${$("limit-cost").value}.${state.limit}`);
    try {
      history.replaceState(null, "", where.size ? `#${where}` : location.pathname + location.search);
    } catch { /* a page inside another one has no address of its own */ }
  }

  // --- charts ---

  const charts = {};
  const token = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  function chart(id) {
    if (!charts[id]) {
      charts[id] = echarts.init($(id), null, { renderer: "canvas", devicePixelRatio: Math.max(2, devicePixelRatio) });
      new ResizeObserver(() => {
        const { clientWidth: width, clientHeight: height } = $(id);
        if (width && (width !== charts[id].getWidth() || height !== charts[id].getHeight())) charts[id].resize();
      }).observe($(id));
    }
    return charts[id];
  }
  function axisStyle() {
    return {
      nameTextStyle: { color: token("quiet") }, nameLocation: "middle",
      axisLabel: { color: token("quiet"), hideOverlap: true }, axisLine: { lineStyle: { color: token("line") } },
      axisTick: { lineStyle: { color: token("line") } }, splitLine: { lineStyle: { color: token("line"), opacity: 0.6 } },
    };
  }
  const tip = (...lines) =>
    el("div", { style: "max-width:20rem;white-space:normal;overflow-wrap:anywhere" }, lines.filter(Boolean).map((line, i) =>
      el("div", i ? {} : { style: "font-weight:600" }, line)));
  function tooltip(formatter) {
    return {
      trigger: "item", confine: true, backgroundColor: token("paper"), borderColor: token("line"),
      textStyle: { color: token("ink"), fontSize: 13 }, formatter,
    };
  }
  const colour = (index) => (SEVERAL ? COLOURS[index % COLOURS.length] : token("front"));

  // A logarithmic axis has no 0, and head_only stores 0: so positions are ours, and 0 stands left of the smallest.
  function scale(name) {
    const cost = COSTS.get(name);
    const values = STUDIES.flatMap((study) => study.trials).map((trial) => trial.measured[name]).filter(known);
    const positive = values.filter((value) => value > 0);
    const logarithmic = cost.logarithmic && positive.length > 0;
    if (!logarithmic) return { at: (value) => value, text: amount, options: { scale: true } };
    const low = Math.floor(Math.log10(Math.min(...positive)) + 1e-9);
    const top = Math.max(Math.log10(Math.max(...positive)), low + 1), high = Math.floor(top + 1e-9);
    const zero = values.some((value) => value <= 0);
    const first = zero ? low - 1 : low;
    const at = (value) => (value > 0 ? Math.log10(value) : first);
    const text = (place) => (zero && Math.abs(place - first) < 1e-9 ? "0" : brief(10 ** place));
    const customValues = Array.from({ length: high - first + 1 }, (_, i) => first + i);
    return { at, text, options: { min: first - 0.25, max: top + 0.2, splitLine: { show: false },
      axisTick: { ...axisStyle().axisTick, customValues }, axisLabel: { ...axisStyle().axisLabel, customValues, formatter: text } } };
  }

  function scoreRange() {
    const all = STUDIES.flatMap((study) => study.trials.map(shown)).filter(known);
    if (!all.length) return [0, 1];
    if ($("front-all").checked || !STUDIES.some((study) => study.members.length)) return [Math.min(...all), Math.max(...all)];
    const near = STUDIES.flatMap((study) => [
      ...study.members.map((trial) => trial.score),
      ...study.luck.intervals.flatMap((one) => [one.center - one.half, one.center + one.half]),
      ...study.trials.filter((trial) => trial.reference).map((trial) => trial.score).filter(known),
    ]);
    const members = STUDIES.flatMap((study) => study.members.map((trial) => trial.score));
    const best = SCORE.higher_is_better ? Math.max(...near) : Math.min(...near);
    const worst = SCORE.higher_is_better ? Math.min(...members) : Math.max(...members);
    const edge = worst - 0.5 * (best - worst || 0.1 * Math.abs(best)) ;
    const inside = [...near, ...all].filter((value) => !better(edge, value));
    return [Math.min(...inside), Math.max(...inside)];
  }

  function stairs(study) {
    let best = null;
    return study.members.filter((trial) => {
      const improves = best === null || better(trial.score, best);
      if (improves) best = trial.score;
      return improves;
    });
  }

  function drawFront() {
    const name = state.cost, place = scale(name), cost = COSTS.get(name);
    const [low, high] = scoreRange(), margin = 0.06 * (high - low || Math.abs(high) || 1);
    const bounds = [low - margin, high + margin];
    const point = (study, trial, value) => ({
      value: [place.at(trial.measured[name]), value], study: STUDIES.indexOf(study), trial: trial.number,
    });
    const has = (trial) => known(trial.measured[name]) && known(shown(trial));
    const series = [];
    let below = 0;
    STUDIES.forEach((study, index) => {
      const prefix = SEVERAL ? `${study.study}: ` : "";
      const rest = study.trials.filter((trial) => has(trial) && !trial.reference && !study.onFront.has(trial.number));
      const seen = rest.filter((trial) => shown(trial) >= bounds[0] && shown(trial) <= bounds[1]);
      below += rest.length - seen.length;
      for (const [what, symbol, own] of [
        ["trained in full", "circle", seen.filter((trial) => trial.eligible)],
        ["beyond a limit of the study", "triangle", seen.filter((trial) => known(trial.score) && !trial.eligible)],
        ["stopped early, at its last rung", "emptyCircle", seen.filter((trial) => !known(trial.score))],
      ])
        if (own.length)
          series.push({
            name: prefix + what, type: "scatter", data: own.map((trial) => point(study, trial, shown(trial))),
            symbol, symbolSize: symbol === "emptyCircle" ? 5 : 7,
            itemStyle: { color: SEVERAL ? colour(index) : token(symbol === "emptyCircle" ? "stopped" : "full"), opacity: SEVERAL ? 0.15 : 0.75 },
          });
      const members = study.members.filter(has);
      const own = name === study.objectives[1].name;
      const line = own ? stairs(study).filter(has) : [];
      series.push({
        name: `${prefix}front`, type: "line", step: "end", showSymbol: false, silent: true, z: 4,
        data: line.map((trial) => [place.at(trial.measured[name]), trial.score]),
        lineStyle: { color: colour(index), width: 2 }, itemStyle: { color: colour(index) },
        markLine: index === 0 ? limitLine(name, place) : undefined,
      });
      series.push({
        name: `${prefix}front`, type: "scatter", z: 6, symbolSize: 11, cursor: "pointer",
        data: members.map((trial) => point(study, trial, trial.score)),
        itemStyle: { color: colour(index), borderColor: token("paper"), borderWidth: 1 },
      });
      series.push(whiskers(study, members, place, name, colour(index), prefix));
      const references = study.trials.filter((trial) => trial.reference && known(trial.score) && !study.onFront.has(trial.number));
      series.push({
        name: `${prefix}references`, type: "scatter", z: 5, symbol: "diamond", symbolSize: 12,
        data: references.map((trial) => ({
          ...point(study, trial, trial.score),
          value: [place.at(trial.measured[name] ?? 0), Math.min(Math.max(trial.score, bounds[0]), bounds[1])],
          ...(trial.score < bounds[0] ? { symbol: "triangle", symbolRotate: 180 } : trial.score > bounds[1] ? { symbol: "triangle" } : {}),
        })),
        itemStyle: { color: SEVERAL ? colour(index) : token("reference"), borderColor: token("paper"), borderWidth: 1 },
        label: { show: true, position: "right", color: token("quiet"), fontSize: 11,
          formatter: ({ data }) => {
            const trial = STUDIES[data.study].byNumber.get(data.trial);
            return label(trial).slice(0, 24) + (data.symbol ? ` ${score(trial.score)}` : "");
          } },
        labelLayout: (item) => ({ hideOverlap: true,
          ...(item.labelRect.x + item.labelRect.width > $("front-chart").clientWidth - 8
            ? { x: item.rect.x - 4, align: "right" } : {}) }),
      });
    });
    const picked = state.trial === null ? null : STUDIES[state.study].byNumber.get(state.trial);
    if (picked && has(picked))
      series.push({
        type: "scatter", silent: true, z: 7, symbol: "circle", symbolSize: 20, data: [point(STUDIES[state.study], picked, shown(picked))],
        itemStyle: { color: "transparent", borderColor: token("ink"), borderWidth: 2 },
      });
    const style = axisStyle();
    chart("front-chart").setOption({
      animation: false, textStyle: { color: token("ink") },
      grid: { left: 62, right: 16, top: 16, bottom: 84 },
      tooltip: tooltip(({ data }) => (data && known(data.trial) ? trialTip(data) : "")),
      legend: { bottom: 0, type: "scroll", textStyle: { color: token("quiet") }, pageTextStyle: { color: token("quiet") },
        itemWidth: 16, data: [...new Set(series.filter((one) => one.name && one.data.length
          && (!SEVERAL || one.name.endsWith(": front"))).map((one) => one.name))] },
      xAxis: { type: "value", ...style, ...place.options, name: cost.title, nameGap: 28 },
      yAxis: { type: "value", ...style, name: `${SCORE.title} (${SCORE.higher_is_better ? "higher" : "lower"} is better)`,
        nameGap: 46, min: bounds[0], max: bounds[1],
        axisLabel: { ...style.axisLabel, showMinLabel: false, showMaxLabel: false, formatter: (value) => Number(value.toPrecision(4)).toString() } },
      series,
    }, true);
    $("front-note").textContent = below
      ? `${count(below)} ${below > 1 ? "trials score" : "trial scores"} beyond the lower edge of the picture.` : "";
    const members = STUDIES.map((study) => `${study.study}: ${study.members.length} members`).join("; ");
    $("front-chart").setAttribute("aria-label", `Scatter of ${SCORE.title} over ${cost.title}; front of ${members}`);
  }

  function whiskers(study, members, place, name, stroke, prefix) {
    return {
      name: `${prefix}front`, type: "custom", silent: true, z: 5,
      data: members.filter((trial) => study.intervals.has(trial.number)).map((trial) => {
        const one = study.intervals.get(trial.number);
        return [place.at(trial.measured[name]), one.center - one.half, one.center + one.half];
      }),
      renderItem: (_, api) => {
        const [x, top] = api.coord([api.value(0), api.value(2)]);
        const bottom = api.coord([api.value(0), api.value(1)])[1];
        const bar = (x1, y1, x2, y2) => ({ type: "line", shape: { x1, y1, x2, y2 }, style: { stroke, lineWidth: 1.5, opacity: 0.7 } });
        return { type: "group", children: [bar(x, top, x, bottom), bar(x - 4, top, x + 4, top), bar(x - 4, bottom, x + 4, bottom)] };
      },
    };
  }

  function limitLine(name, place) {
    if (state.limit === null || $("limit-cost").value !== name) return { data: [] };
    return {
      symbol: "none", silent: true, data: [{ xAxis: place.at(state.limit) }], label: { show: false },
      lineStyle: { color: token("ink"), type: "dashed", opacity: 0.6 },
    };
  }

  function scoreText(study, trial) {
    const row = study.front.find((one) => one.trial === trial.number);
    if (row && known(row.believed_mean))
      return `${SCORE.title} ${score(trial.score)}; over ${row.believed_seeds} seeds ${score(row.believed_mean)} ± ${score(row.believed_spread)}`;
    const interval = study.intervals.get(trial.number);
    return `${SCORE.title} ${score(shown(trial))}${interval ? ` ± ${score(interval.half)}` : ""}` +
      (known(trial.score) ? "" : ` after ${amount(trial.curve.at(-1)?.[0])} epochs`);
  }
  function trialTip({ study: index, trial: number }) {
    const study = STUDIES[index], trial = study.byNumber.get(number);
    const size = known(trial.measured.stored_parameters)
      ? `${count(trial.measured.stored_parameters)} parameters, ${percent(trial.measured.stored_percent)} %` : "";
    return tip(`${titleOf(study, trial)}${study.onFront.has(number) ? ", on the front" : ""}`, designOf(trial), scoreText(study, trial), size);
  }

  // --- a trial ---

  function select(index, number, options = {}) {
    state.study = index;
    state.trial = number;
    remember();
    showTrial();
    drawFront();
    for (const row of document.querySelectorAll("tr[data-trial]"))
      row.classList.toggle("chosen", row.dataset.trial === `${index}.${number}`);
    if (options.go && number !== null) {
      $("trial").focus({ preventScroll: true });
      $("trial").scrollIntoView({ block: "nearest" });
    }
  }

  function showTrial() {
    $("trial").hidden = state.trial === null;
    if (state.trial === null) return;
    const study = STUDIES[state.study], trial = study.byNumber.get(state.trial);
    const row = study.front.find((one) => one.trial === trial.number);
    $("trial-title").textContent = `${titleOf(study, trial)}${row ? ", on the front" : ""}: ${trial.state}`;
    $("trial-design").textContent = designOf(trial);
    const facts = [
      [SCORE.title, scoreText(study, trial).replace(`${SCORE.title} `, "")],
      ["on the test split", score(trial.test_score)],
      ...study.costs.map((cost) => [cost.title, known(trial.measured[cost.name]) ? costText(cost.name, trial.measured[cost.name]) : ""]),
      ["corrected for luck", row ? score(row.believed_corrected) : ""],
      ["on the true front", row && known(row.believed_probability) ? `${Math.round(100 * row.believed_probability)} %` : ""],
      ["at least as good, for no more", row && row.dominated_by.length ? row.dominated_by.join(", ") : ""],
      ["failure", trial.failure],
    ];
    replace("trial-values", facts.filter(([, value]) => known(value) && value !== "").map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
    replace("trial-point", study.dimensions.map((dimension, i) => [el("dt", {}, dimension.name),
      el("dd", {}, known(trial.point[i]) ? String(typeof trial.point[i] === "number" ? Number(trial.point[i].toPrecision(4)) : trial.point[i]) : "")]));
    $("trial-point").parentElement.hidden = !trial.point.length;
    const commands = [["show", "everything about it"], ...(trial.adapter ? [["export", "its adapter as a folder"], ["python", "its model in Python"]] : [])];
    replace("trial-commands", commands.map(([what, why]) => command(study.commands[what].replace("{trial}", trial.number), why)));
    const curve = trial.curve.filter(([, value]) => known(value));
    $("trial-curve").textContent = curve.length
      ? `${SCORE.title} by epochs: ${curve.map(([epochs, value]) => `${amount(epochs)}: ${score(value)}`).join(", ")}` : "no score is on record";
    $("trial-chart").hidden = curve.length < 2;
    if (curve.length > 1) {
      const style = axisStyle();
      chart("trial-chart").setOption({
        animation: false, grid: { left: 56, right: 16, top: 16, bottom: 44 },
        xAxis: { type: "value", ...style, name: "epochs", nameGap: 26, min: 0 },
        yAxis: { type: "value", scale: true, ...style, name: SCORE.title, nameGap: 42 },
        series: [{ type: "line", data: curve, symbolSize: 8, lineStyle: { color: colour(state.study) }, itemStyle: { color: colour(state.study) } }],
      }, true);
      chart("trial-chart").resize();
      $("trial-chart").setAttribute("aria-label", $("trial-curve").textContent);
    }
  }

  function command(text, why) {
    const code = el("code", {}, text);
    const button = el("button", { type: "button", "aria-label": `Copy: ${text}`, onclick: async () => {
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "copied";
      } catch {
        getSelection().selectAllChildren(code);
        button.textContent = "selected";
      }
      setTimeout(() => { button.textContent = "copy"; }, 1500);
    } }, "copy");
    return el("div", {}, el("div", { class: "quiet" }, why), el("div", { class: "command" }, code, button));
  }

  const trialButton = (study, trial) => el("button", { type: "button", class: "link", "aria-label": titleOf(study, trial),
    onclick: () => select(STUDIES.indexOf(study), trial.number, { go: true }) }, String(trial.number));

  function walk(event) {
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowUp: 1, ArrowDown: -1 };
    if (event.key === "Escape") return select(state.study, null);
    if (!(event.key in steps)) return;
    event.preventDefault();
    const all = STUDIES.flatMap((study, index) => study.members.map((trial) => [index, trial.number]));
    if (!all.length) return;
    const now = all.findIndex(([index, number]) => index === state.study && number === state.trial);
    const next = now < 0 ? (steps[event.key] > 0 ? 0 : all.length - 1) : (now + steps[event.key] + all.length) % all.length;
    select(...all[next]);
  }

  // --- answers ---

  function showAnswers() {
    const plural = SEVERAL ? `${STUDIES.map((study) => study.study).join(", ")}: side by side` : STUDIES[0].study;
    $("title").textContent = plural;
    const written = new Date(1000 * REPORT.written).toLocaleString();
    const reload = Number(document.body.dataset.reload);
    const about = SEVERAL ? [] : [STUDIES[0].model, STUDIES[0].task, STUDIES[0].space && `space ${STUDIES[0].space}`, STUDIES[0].status, stateText(STUDIES[0])];
    $("about").textContent = [...about, `written ${written}`, reload ? `loads itself again every ${reload} s` : ""].filter(Boolean).join(" · ");
    replace("answer-list", STUDIES.map((study, index) => [
      SEVERAL ? el("h3", {}, `${study.study}`) : "",
      SEVERAL ? el("p", { class: "quiet" }, [study.model, study.task, study.status, stateText(study)].filter(Boolean).join(" · ")) : "",
      el("div", { class: "cards" }, study.answers.map((answer) => {
        const trial = study.byNumber.get(answer.trial);
        return el("div", { class: "card" },
          el("h4", {}, answer.question),
          trial ? el("div", { class: "big" }, score(trial.score), el("small", {}, ` ${SCORE.title}`,
            known(trial.test_score) ? `, ${score(trial.test_score)} on the test split` : "")) : "",
          el("div", {}, trial ? el("button", { type: "button", class: "link", onclick: () => select(index, trial.number, { go: true }) }, titleOf(study, trial)) : "",
            trial ? ": " : "", answer.text));
      })),
      el("ul", { class: "points" },
        study.beaten.map((line) => el("li", { class: "warn" }, line)),
        study.beaten.length || !study.trials.some((trial) => trial.reference && known(trial.score)) || !study.members.length
          ? "" : el("li", {}, "No reference is at least as good as a member of the front at no greater cost."),
        study.luck.lines.filter((_, i) => study.luck.by !== "seeds" || i === 0 || i === study.luck.lines.length - 1).map((line) => el("li", {}, line))),
      study.steps.length ? el("h3", {}, "Next") : "",
      study.steps.map((step) => step.command ? command(step.command, `${step.why}:`) : el("p", {}, `${step.why}.`)),
    ]));
  }
  const stateText = (study) => Object.entries(study.states).map(([word, number]) => `${number} ${word}`).join(", ") || "no trials yet";

  // --- the best under a limit ---

  function candidates(study, name) {
    return study.trials.filter((trial) => trial.eligible && known(trial.score) && known(trial.measured[name]));
  }
  function bestUnder(study, name, limit) {
    const cost = study.objectives[1].name;
    return candidates(study, name).filter((trial) => trial.measured[name] <= limit).reduce((best, trial) =>
      !best || better(trial.score, best.score) || (trial.score === best.score && trial.measured[cost] < best.measured[cost]) ? trial : best, null);
  }
  function limits(name) {
    const values = STUDIES.flatMap((study) => candidates(study, name).map((trial) => trial.measured[name]));
    const positive = values.filter((value) => value > 0);
    return { low: Math.min(...positive), high: Math.max(...values), zero: values.some((value) => value <= 0), any: positive.length > 0,
      logarithmic: COSTS.get(name).logarithmic };
  }
  function atPosition(name, position) {
    const { low, high, zero, logarithmic } = limits(name);
    if (position >= SHOWN_LIMIT) return high;
    if (position <= 0) return zero ? 0 : low;
    const part = position / SHOWN_LIMIT;
    const value = logarithmic ? low * (high / low) ** part : low + (high - low) * part;
    return Number.isInteger(low) && Number.isInteger(high) ? Math.round(value) : Number(value.toPrecision(4));
  }
  function showLimit(value, source) {
    const name = $("limit-cost").value, { low, high, logarithmic, any } = limits(name);
    if (!any || !Number.isFinite(value)) return replace("limit-answer", "Nothing complete was measured by this yet.");
    state.limit = value;
    if (source !== "range") {
      const part = logarithmic ? Math.log(Math.max(value, low) / low) / Math.log(high / low || 1) : (value - low) / (high - low || 1);
      $("limit-range").value = value < low ? 0 : Math.max(0, Math.min(SHOWN_LIMIT, Math.round((part || 0) * SHOWN_LIMIT)));
    }
    if (source !== "number") $("limit-number").value = value;
    $("limit-range").setAttribute("aria-valuetext", `${costText(name, value)} ${COSTS.get(name).title}`);
    replace("limit-answer", STUDIES.map((study) => {
      const best = bestUnder(study, name, value);
      const lead = SEVERAL ? `${study.study}: ` : "";
      return best
        ? el("p", { "data-trial": best.number }, lead, "trial ", trialButton(study, best), `, ${scoreText(study, best)}, ${costText(name, best.measured[name])} ${COSTS.get(name).title}: ${designOf(best)}`)
        : el("p", {}, `${lead}no complete trial is within ${costText(name, value)} ${COSTS.get(name).title}.`);
    }));
    remember();
    scheduleFront();
  }
  let waiting = false;
  function scheduleFront() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; drawFront(); });
  }

  // --- tables ---

  function table(caption, heads, rows) {
    return el("table", {}, el("caption", {}, caption),
      el("thead", {}, el("tr", {}, heads.map(([text, kind]) => el("th", { scope: "col", class: kind || null }, text)))),
      el("tbody", {}, rows));
  }
  function frontTable(study, index) {
    const beliefs = study.front.some((row) => known(row.believed_mean));
    const tested = study.trials.some((trial) => known(trial.test_score));
    const more = study.objectives.slice(1).filter((cost) => !["stored_parameters", "seconds"].includes(cost.name));
    const memory = study.costs.filter((cost) => cost.name === "peak_memory_mb" && !more.some((one) => one.name === cost.name));
    const further = [...more, ...memory];
    const heads = [["trial"], ["design", "text"], [SCORE.title], ...(study.luck.intervals.length ? [["±"]] : []),
      ...(beliefs ? [["seeds"], ["on the true front"], ["corrected"]] : []),
      ...(tested ? [["test"]] : []), ["parameters"], ["% of the model"], ["seconds"], ...further.map((cost) => [cost.title])];
    const line = (row, trial, member) => el("tr", { "data-trial": `${index}.${trial.number}`, "data-member": member ? trial.number : null },
      el("td", {}, trialButton(study, trial)), el("td", { class: "text" }, designOf(trial)),
      el("td", {}, score(trial.score)),
      study.luck.intervals.length ? el("td", {}, study.intervals.has(trial.number) ? score(study.intervals.get(trial.number).half) : "") : "",
      beliefs ? [el("td", {}, row && known(row.believed_seeds) ? String(row.believed_seeds) : ""), el("td", {}, row && known(row.believed_probability) ? `${Math.round(100 * row.believed_probability)} %` : ""), el("td", {}, row ? score(row.believed_corrected) : "")] : "",
      tested ? el("td", {}, score(trial.test_score)) : "", el("td", {}, known(trial.measured.stored_parameters) ? count(trial.measured.stored_parameters) : ""),
      el("td", {}, percent(trial.measured.stored_percent)), el("td", {}, amount(trial.measured.seconds)),
      further.map((cost) => el("td", {}, amount(trial.measured[cost.name]))));
    const members = study.front.map((row) => line(row, study.byNumber.get(row.trial), true));
    const references = study.trials.filter((trial) => trial.reference && known(trial.score) && !study.onFront.has(trial.number));
    return [
      study.front.length ? el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Front of ${study.study}` }, table(`Front of ${study.study}`, heads, members)) : "",
      references.length ? el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `References of ${study.study}` }, table(`References of ${study.study}`, heads, references.map((trial) => line(null, trial, false)))) : "",
    ];
  }

  // --- spending ---

  function showSpent() {
    const units = { hours: "hours", device_hours: "device-hours", money: "in money", epochs: "epochs trained" };
    replace("spent-list", STUDIES.map((study) => {
      const parts = Object.entries(units).filter(([name]) => known(study.spent[name])).map(([name, unit]) =>
        `${amount(study.spent[name])}${known(study.budget[name]) ? ` of ${amount(study.budget[name])}` : ""} ${unit}`);
      const failures = study.failures.map((failure) => el("li", {}, `${failure.trials.length} failed (trial ${failure.trials.slice(0, 5).join(", ")}${failure.trials.length > 5 ? " ..." : ""}): ${failure.reason}`));
      return [el("p", {}, `${SEVERAL ? `${study.study}: ` : ""}${stateText(study)}. Spent: ${parts.join(", ")}.`), failures.length ? el("ul", { class: "points" }, failures) : ""];
    }));
    const unlike = SEVERAL && new Set(STUDIES.map((study) => JSON.stringify([study.model, study.objectives.map((one) => one.name)]))).size > 1;
    $("spent-note").textContent = unlike ? "These studies have other models or objectives, so that their areas cannot be compared with each other." : "";
    replace("spent-table", STUDIES.map((study) => table(study.study, [["epochs"], ["hours"], ["hypervolume"], ["new member"]],
      study.attainment.map((one) => el("tr", {}, el("td", {}, amount(one.epochs)), el("td", {}, amount(one.hours)), el("td", {}, score(one.hypervolume)), el("td", {}, known(one.trial) ? String(one.trial) : ""))))));
    drawSpent();
  }
  function drawSpent() {
    const axis = $("spent-axis").value, style = axisStyle();
    const used = STUDIES.filter((study) => study.attainment.length);
    $("spent-chart").hidden = !used.length;
    if (!used.length) return;
    chart("spent-chart").setOption({
      animation: false, grid: { left: 62, right: 16, top: SEVERAL ? 36 : 16, bottom: 48 },
      legend: SEVERAL ? { top: 0, textStyle: { color: token("quiet") } } : { show: false },
      tooltip: tooltip(({ data, seriesName }) => tip(SEVERAL ? seriesName : "", `hypervolume ${score(data[1])} after ${amount(data[0])} ${axis}`, known(data[2]) ? `trial ${data[2]} joined the front` : "")),
      xAxis: { type: "value", ...style, name: axis === "epochs" ? "epochs trained, all trials together" : "hours since the start", nameGap: 28, min: 0 },
      yAxis: { type: "value", scale: true, ...style, name: "hypervolume", nameGap: 46 },
      series: STUDIES.map((study, index) => ({
        name: study.study, type: "line", step: "end", symbolSize: 6,
        data: study.attainment.map((one) => [one[axis], one.hypervolume, one.trial]),
        lineStyle: { color: colour(index), width: 2 }, itemStyle: { color: colour(index) },
      })),
    }, true);
    $("spent-chart").setAttribute("aria-label", used.map((study) => {
      const end = study.attainment.at(-1);
      return `${study.study}: hypervolume ${score(end.hypervolume)} after ${amount(end.epochs)} epochs`;
    }).join("; "));
  }

  // --- luck, and what matters ---

  function showLuck() {
    replace("luck-list", STUDIES.map((study) => [
      SEVERAL ? el("h3", {}, study.study) : "",
      ...study.luck.lines.map((line) => el("p", {}, line)),
      study.luck.lines.length ? "" : el("p", {}, "There is no front yet."),
      study.luck.unsettled.length ? el("p", {}, study.luck.by === "seeds" ? "Open: trial " : "May be no better than their neighbours: trial ",
        study.luck.unsettled.map((number, i) => [i ? ", " : "", trialButton(study, study.byNumber.get(number))]).flat()) : "",
    ]));
  }
  function showMatters() {
    replace("matters-list", STUDIES.map((study) => {
      const said = study.matters.filter((matter) => known(matter.epochs)), rest = study.matters.filter((matter) => !known(matter.epochs));
      const names = study.dimensions.map((dimension) => dimension.name).filter((name) => said.some((matter) => known(matter.shares[name])))
        .sort((a, b) => (said[0]?.shares[b] ?? 0) - (said[0]?.shares[a] ?? 0));
      return [
        SEVERAL ? el("h3", {}, study.study) : "",
        said.length ? el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Importance of dimensions" }, table("",
          [["dimension", "word"], ...said.map((matter) => [`${matter.band}: ${count(matter.trials)} after ${amount(matter.epochs)} ${matter.epochs === 1 ? "epoch" : "epochs"}`])],
          names.map((name) => el("tr", {}, el("td", { class: "word" }, name), said.map((matter) => {
            const share = matter.shares[name];
            return el("td", { class: "share", style: known(share) ? `background:linear-gradient(to left, var(--bar) ${(100 * share).toFixed(1)}%, transparent 0)` : "" },
              known(share) ? `${(100 * share).toFixed(0)} %` : "the same in all");
          }))))) : "",
        rest.map((matter) => el("p", { class: "quiet" }, `${matter.band}: ${matter.why}.`)),
        study.matters.length ? "" : el("p", { class: "quiet" }, "No trial was sampled from a space."),
      ];
    }));
  }

  // --- the space ---

  const space = { index: 0, lines: [], axes: [], kept: null, seen: false }; // thousands of lines wait until they are seen
  function axesOf(study) {
    const order = study.matters.find((matter) => known(matter.epochs))?.shares ?? {};
    const axes = study.dimensions.map((dimension, i) => ({ ...dimension, get: (trial) => trial.point[i] }))
      .filter((axis) => axis.values === null || axis.values.length > 1)
      .sort((a, b) => (order[b.name] ?? 0) - (order[a.name] ?? 0));
    const cost = study.objectives[1];
    return [...axes,
      { name: cost.title, values: null, get: (trial) => trial.measured[cost.name], logarithmic: cost.logarithmic, shift: cost.logarithmic ? 1 : 0 },
      { name: SCORE.title, values: null, get: shown, logarithmic: false }];
  }
  function drawSpace() {
    const study = STUDIES[space.index];
    space.axes = axesOf(study);
    space.lines = study.trials.filter((trial) => trial.point.length && known(shown(trial)));
    space.kept = null;
    $("space-chart").hidden = !space.lines.length;
    $("space-chart").style.minWidth = `${Math.max(58 * space.axes.length, 300)}px`;
    replace("space-axis", space.axes.map((axis, i) => el("option", { value: i }, axis.name)));
    chooseAxis();
    keep();
    if (space.seen) drawLines(study);
  }
  function drawLines(study) {
    if (!space.lines.length) return;
    const style = axisStyle(), scores = space.lines.map(shown);
    const sorted = [...scores].sort((a, b) => a - b), low = sorted[Math.floor(0.05 * (sorted.length - 1))], high = sorted[sorted.length - 1];
    const data = space.lines.map((trial, index) => ({ value: space.axes.map((axis) => coordinate(axis, axis.get(trial))), name: String(index) }));
    const instance = chart("space-chart");
    instance.resize();
    instance.setOption({
      animation: false, textStyle: { color: token("ink") },
      parallelAxis: space.axes.map((axis, dim) => ({
        dim, name: axis.name, ...(axis.values ? { type: "category", data: axis.values.map(String) } : axis.logarithmic && !axis.shift ? { type: "log" } : { type: "value", scale: true }),
        ...(axis.shift ? { axisLabel: { ...style.axisLabel, formatter: (value) => (value === 0 ? "0" : brief(10 ** value)) } } : {}),
      })),
      parallel: { left: 40, right: 60, top: 96, bottom: 20, parallelAxisDefault: { nameLocation: "end", nameRotate: 32, nameGap: 12, nameTruncate: { maxWidth: 160 },
        nameTextStyle: { color: token("ink"), align: "left", fontSize: 11 },
        axisLine: { lineStyle: { color: token("quiet") } }, axisTick: { lineStyle: { color: token("quiet") } },
        axisLabel: { color: token("quiet"), fontSize: 10, formatter: (value) => (typeof value === "number" ? brief(value) : String(value).slice(0, 12)) },
        areaSelectStyle: { width: 18, borderColor: token("accent"), color: token("accent"), opacity: 0.25 } } },
      visualMap: { show: false, dimension: space.axes.length - 1, min: Math.min(low, high), max: Math.max(low, high),
        inRange: { color: SCORE.higher_is_better ? ["#c9b458", "#5b9b8b", "#2b5c8a"] : ["#2b5c8a", "#5b9b8b", "#c9b458"] } },
      series: [{ type: "parallel", data, lineStyle: { width: 1, opacity: space.lines.length > 500 ? 0.25 : 0.45 }, inactiveOpacity: 0.02, activeOpacity: 0.7, progressive: 0 }],
    }, true);
    instance.off("axisareaselected");
    instance.on("axisareaselected", () => {
      const series = instance.getModel().getSeriesByIndex(0);
      const all = series.getRawIndicesByActiveState("normal");
      space.kept = all.length ? null : new Set(series.getRawIndicesByActiveState("active").map((index) => space.lines[index].number));
      keep();
    });
  }
  const coordinate = (axis, value) => (!known(value) ? "-" : axis.values ? axis.values.indexOf(value) : axis.shift ? (value > 0 ? Math.log10(value + 1) : 0) : value);
  function keep() {
    const study = STUDIES[space.index];
    const own = space.lines.filter((trial) => !space.kept || space.kept.has(trial.number));
    const best = own.filter((trial) => trial.eligible).reduce((a, b) => (!a || better(b.score, a.score) ? b : a), null);
    replace("space-kept", !space.lines.length ? "No trial was sampled from a space." : [`${count(own.length)} of ${count(space.lines.length)} trials`, space.kept ? " are kept" : "",
      best ? [", the best of them trial ", trialButton(study, best), ` with ${scoreText(study, best)}: ${designOf(best)}`] : ""].flat());
    if ($("all-details").open) showAll();
  }
  function chooseAxis() {
    const axis = space.axes[Number($("space-axis").value)];
    for (const [list, field] of [["space-from", "space-low"], ["space-to", "space-high"]]) {
      $(list).hidden = !axis.values;
      $(field).hidden = Boolean(axis.values);
      replace(list, (axis.values ?? []).map((value, i) => el("option", { value: i, selected: list === "space-to" && i === axis.values.length - 1 }, String(value))));
      $(field).value = "";
    }
  }
  function seeLines() {
    if (space.seen) return;
    space.seen = true;
    drawLines(STUDIES[space.index]);
  }
  function keepChosen() {
    seeLines();
    const dim = Number($("space-axis").value), axis = space.axes[dim];
    const bound = (list, field, none) => axis.values ? Number($(list).value) : $(field).value === "" ? none : Number(coordinate(axis, Number($(field).value)));
    const interval = [bound("space-from", "space-low", -1e300), bound("space-to", "space-high", 1e300)].sort((a, b) => a - b);
    const room = space.lines.map((trial) => coordinate(axis, axis.get(trial))).filter(Number.isFinite);
    interval[0] = Math.max(interval[0], Math.min(...room));
    interval[1] = Math.min(interval[1], Math.max(...room));
    chart("space-chart").dispatchAction({ type: "axisAreaSelect", parallelAxisId: axisId(dim), intervals: [interval] });
  }
  const axisId = (dim) => chart("space-chart").getModel().getComponent("parallelAxis", dim).id;
  function clearKept() {
    seeLines();
    space.axes.forEach((_, dim) => chart("space-chart").dispatchAction({ type: "axisAreaSelect", parallelAxisId: axisId(dim), intervals: [] }));
  }

  // --- all trials ---

  const order = { column: 0, ascending: true };
  function showAll() {
    const study = STUDIES[space.index], cost = study.objectives[1];
    const columns = [
      ["trial", (trial) => trial.number, (trial) => trialButton(study, trial)], ["state", (trial) => trial.state, (trial) => trial.state, "word"],
      ["design", designOf, designOf, "text"], [`last ${SCORE.title}`, shown, (trial) => score(shown(trial))],
      ["epochs", (trial) => trial.curve.at(-1)?.[0], (trial) => amount(trial.curve.at(-1)?.[0])],
      ["parameters", (trial) => trial.measured.stored_parameters, (trial) => (known(trial.measured.stored_parameters) ? count(trial.measured.stored_parameters) : "")],
      ["%", (trial) => trial.measured.stored_percent, (trial) => percent(trial.measured.stored_percent)],
      ...(cost.name === "stored_parameters" ? [] : [[cost.title, (trial) => trial.measured[cost.name], (trial) => amount(trial.measured[cost.name])]]),
    ];
    const key = columns[order.column][1], sign = order.ascending ? 1 : -1;
    const trials = study.trials.filter((trial) => !space.kept || space.kept.has(trial.number)).sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      return !known(x) ? 1 : !known(y) ? -1 : sign * (x < y ? -1 : x > y ? 1 : 0);
    });
    const heads = columns.map(([text, , , kind], i) => el("th", { scope: "col", class: kind || null, "aria-sort": i === order.column ? (order.ascending ? "ascending" : "descending") : null },
      el("button", { type: "button", onclick: () => {
        Object.assign(order, { ascending: order.column === i ? !order.ascending : i < 3, column: i });
        showAll();
        $("all-table").querySelectorAll("th button")[i].focus();
      } }, `${text}${i === order.column ? (order.ascending ? " ▲" : " ▼") : ""}`)));
    replace("all-table", el("table", {}, el("caption", {}, `${count(trials.length)} trials of ${study.study}`), el("thead", {}, el("tr", {}, heads)),
      el("tbody", {}, trials.map((trial) => el("tr", {}, columns.map(([, , show, kind]) => el("td", { class: kind || null }, show(trial))))))));
  }

  // --- together ---

  function drawAll() {
    if (matchMedia("print").matches) space.seen = true; // paper is seen as a whole
    drawFront();
    showTrial();
    drawSpent();
    drawSpace();
  }
  function fill(id, costs, value) {
    replace(id, costs.map((cost) => el("option", { value: cost.name, selected: cost.name === value }, cost.title)));
  }
  function start() {
    showAnswers();
    const costs = [...COSTS.values()];
    fill("front-cost", costs, state.cost);
    fill("limit-cost", costs, state.cost);
    const kept = new URLSearchParams(location.hash.slice(1));
    const [index, number] = (kept.get("trial") ?? "").split(".").map(Number);
    if (STUDIES[index]?.byNumber.has(number)) Object.assign(state, { study: index, trial: number });
    const limited = (kept.get("limit") ?? "").match(/^(\w+)\.([\d.e+-]+)$/);
    if (limited && COSTS.has(limited[1])) $("limit-cost").value = limited[1];
    replace("front-tables", STUDIES.map((study, i) => frontTable(study, i)).flat().filter(Boolean));
    showLuck();
    showMatters();
    replace("space-study", STUDIES.map((study, i) => el("option", { value: i }, study.study)));
    $("space-study-label").hidden = !SEVERAL;

    for (const link of document.querySelectorAll('a[href^="#"]'))
      link.addEventListener("click", (event) => { // inside another page, as MLflow shows it, an anchor would load that one
        event.preventDefault();
        const section = $(link.getAttribute("href").slice(1));
        section.setAttribute("tabindex", "-1");
        section.scrollIntoView();
        section.focus({ preventScroll: true });
      });
    $("front-cost").addEventListener("change", () => { state.cost = $("front-cost").value; drawFront(); });
    $("front-all").addEventListener("change", drawFront);
    $("front-chart").addEventListener("keydown", walk);
    $("limit-cost").addEventListener("change", () => showLimit(limits($("limit-cost").value).high));
    $("limit-range").addEventListener("input", () => showLimit(atPosition($("limit-cost").value, Number($("limit-range").value)), "range"));
    $("limit-number").addEventListener("input", () => $("limit-number").value !== "" && showLimit(Number($("limit-number").value), "number"));
    $("trial-close").addEventListener("click", () => { select(state.study, null); $("front-chart").focus(); });
    $("spent-axis").addEventListener("change", drawSpent);
    $("space-study").addEventListener("change", () => { space.index = Number($("space-study").value); drawSpace(); });
    $("space-axis").addEventListener("change", chooseAxis);
    $("space-keep").addEventListener("click", keepChosen);
    $("space-clear").addEventListener("click", clearKept);
    $("all-details").addEventListener("toggle", () => $("all-details").open && showAll());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
    matchMedia("print").addEventListener("change", drawAll);
    addEventListener("beforeprint", seeLines);
    new IntersectionObserver((seen) => seen.some((one) => one.isIntersecting) && seeLines(), { rootMargin: "400px" }).observe($("space"));

    showTrial();
    showLimit(limited ? Number(limited[2]) : limits($("limit-cost").value).high);
    chart("front-chart").on("click", ({ data }) => data && known(data.trial) && select(data.study, data.trial, { go: true }));
    showSpent();
    drawSpace();
    const reload = Number(document.body.dataset.reload);
    if (reload) setTimeout(() => location.reload(), 1000 * reload);
    document.body.dataset.ready = "true";
  }
  start();
})();
