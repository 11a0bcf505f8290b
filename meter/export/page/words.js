// What the page says, in the language that the browser asks for.

const en = {
  skip: "Skip to the figures", now: "Now", unit: "Unit of energy", so_far_all: "Since the start", input: "input tokens, computed", input_cached: "input tokens, cached", output_tokens: "output tokens", electricity: "electricity", compute: "hardware", lost_steps: "steps that were not heard of", foreign_load: "a stranger on the device", dummy_steps: "steps of an empty rank", meter_down: "no meter was listening", counter_silent: "the counter was not read", no_payer: "in no other account: please report it", not_measured: "no energy of its engine is read", missed: "missing", may_miss: "joules may be missing: {0}", pause: "Pause", resume: "Resume",
  power_now: "power now", per_token: "per output token · 1 min",
  per_million: "per million output tokens · 1 min", tokens_per_s: "output tokens a second",
  with_idle: "{0} with idle", no_price: "no price is configured", kwh_million: "{0} a million",
  no_tokens: "no tokens in the last minute", requests_done: "{0} done, {1} running",
  flow: "Power, and where it goes", split_by: "Split by", by_account: "by account", by_device: "by device",
  in_flight: "Requests in flight", where: "Where every joule went", account: "account", energy: "energy",
  share: "share", devices: "Devices", running: "Running requests", filter: "Filter", sort: "Sort by",
  finished: "Just finished", more: "More", the_sum: "The sum that must hold", receipt: "Receipt", close: "Close",
  measured: "measured", attributed: "attributed", prefill: "prefill", decode: "decode", recompute: "recompute",
  idle: "idle", startup: "start-up", unattributed: "unattributed", pending: "pending",
  simulated: "simulated", estimated: "estimated",
  closes: "✓ closes to a microjoule", off: "✗ off by {0}",
  waiting: "waiting", settling: "settling", unsettled: "not settled yet",
  stop_or_abort: "stop or abort", stop_or_abort_why: "a stop string or the client ended it; the engine does not know which",
  request: "request", stage: "stage", prompt: "prompt", output: "output", cost: "cost", age: "time",
  j_per_token: "per token", tenant: "tenant", end: "end", doubt: "± (1 σ)", model: "model", engine: "engine",
  cached: "cached", fidelity: "fidelity", quality: "quality", boundary: "boundary", final: "final",
  so_far: "so far", yes: "yes", gone: "This receipt is not there any more.",
  sort_energy: "energy", sort_token: "energy per token", sort_tokens: "output tokens", sort_prompt: "prompt",
  sort_age: "longest running", sort_newest: "newest",
  shown: "The first {0} of {1} are shown; every square above is one request.",
  none_running: "No request is running.", none_match: "No request matches.", none_finished: "No request has finished yet.",
  counter: "counter moves every {0}; shows what was drawn {1} later", counter_refresh: "counter moves every {0}",
  measured_since: "{0} since the start",
  connecting: "connecting", live: "live", quiet: "no traffic", lost: "connection lost", blind: "meter blind",
  ended: "the meter has ended", paused: "paused", waits: "waiting for the first reading",
  say_lost: "The connection to the meter is lost. What you see is {0} s old; trying again.",
  say_ended: "The meter has ended. What you see is its last word; a new one at this address will be shown.",
  say_blind: "The meter is blind: no energy reading for {0} s. What is drawn now is not seen by anyone.",
  of_limit: "limit {0}",
  say_part_blind: "The meter is blind on device {0}: no energy reading for {1} s. What is drawn there is not seen by anyone.",
  say_no_power: "The meter is blind: it has no energy reading at all.",
  say_deaf: "Requests are running, but the engine has not been heard for {0} s. Its work cannot be charged.",
  say_no_engine: "no engine heard yet", idle_for: "idle for {0}",
  chart_says: "Power over the last two minutes, now {0}. Settled up to {1} ago.",
  batch_says: "Requests in flight over the last two minutes, now {0}.",
  cells_says: "{0} requests: {1}", seconds_ago: "{0} s ago", seconds: "{0} s", unseen: "not seen",
};

const zh = {
  skip: "跳到数据", now: "当前", unit: "能量单位", so_far_all: "自启动以来", input: "输入 token（已计算）", input_cached: "输入 token（缓存）", output_tokens: "输出 token", electricity: "电费", compute: "硬件", lost_steps: "未收到的步骤", foreign_load: "设备上的其他负载", dummy_steps: "空 rank 的步骤", meter_down: "当时没有电表在监听", counter_silent: "当时未读取计数器", no_payer: "未归入其他账户：请报告", not_measured: "未读取其引擎的能量", missed: "缺失", may_miss: "可能缺少部分焦耳：{0}", pause: "暂停", resume: "继续",
  power_now: "当前功率", per_token: "每个输出 token · 1 分钟",
  per_million: "每百万输出 token · 1 分钟", tokens_per_s: "每秒输出 token",
  with_idle: "含空闲 {0}", no_price: "未配置价格", kwh_million: "每百万 {0}",
  no_tokens: "近一分钟没有 token", requests_done: "已完成 {0}，运行中 {1}",
  flow: "功率及其去向", split_by: "划分方式", by_account: "按账户", by_device: "按设备",
  in_flight: "进行中的请求", where: "每一焦耳的去向", account: "账户", energy: "能量",
  share: "占比", devices: "设备", running: "运行中的请求", filter: "筛选", sort: "排序",
  finished: "刚刚完成", more: "更多", the_sum: "必须成立的等式", receipt: "能耗凭据", close: "关闭",
  measured: "实测", attributed: "已归属", prefill: "预填充", decode: "解码", recompute: "重算",
  idle: "空闲", startup: "启动", unattributed: "未归属", pending: "待结算",
  simulated: "模拟", estimated: "估算",
  closes: "✓ 误差小于一微焦", off: "✗ 相差 {0}",
  waiting: "等待", settling: "结算中", unsettled: "尚未结算",
  stop_or_abort: "停止或中止", stop_or_abort_why: "由停止字符串或客户端结束；引擎不知道是哪一个",
  request: "请求", stage: "阶段", prompt: "提示", output: "输出", cost: "成本", age: "时长",
  j_per_token: "每 token", tenant: "租户", end: "结束原因", doubt: "±（1σ）", model: "模型", engine: "引擎",
  cached: "缓存命中", fidelity: "精细度", quality: "质量", boundary: "边界", final: "最终",
  so_far: "截至目前", yes: "是", gone: "该凭据已不存在。",
  sort_energy: "能量", sort_token: "每 token 能量", sort_tokens: "输出 token", sort_prompt: "提示长度",
  sort_age: "运行最久", sort_newest: "最新",
  shown: "显示 {1} 个中的前 {0} 个；上方每个方格代表一个请求。",
  none_running: "没有正在运行的请求。", none_match: "没有匹配的请求。", none_finished: "还没有请求完成。",
  counter: "计数器每 {0} 更新一次，滞后 {1}", counter_refresh: "计数器每 {0} 更新一次",
  measured_since: "自启动以来 {0}",
  connecting: "连接中", live: "实时", quiet: "无流量", lost: "连接中断", blind: "电表失明",
  ended: "电表已结束", paused: "已暂停", waits: "等待首次读数",
  say_lost: "与电表的连接已中断。所示数据为 {0} 秒前；正在重试。",
  say_ended: "电表已结束。所示为其最后数据；此地址上若有新电表将自动显示。",
  say_blind: "电表失明：已 {0} 秒没有能量读数。此刻的耗电无人知晓。",
  of_limit: "上限 {0}",
  say_part_blind: "电表对设备 {0} 失明：已 {1} 秒没有能量读数。那里的耗电无人知晓。",
  say_no_power: "电表失明：完全没有能量读数。",
  say_deaf: "有请求在运行，但已 {0} 秒未收到引擎消息，其工作无法计入。",
  say_no_engine: "尚未收到引擎消息", idle_for: "已空闲 {0}",
  chart_says: "近两分钟的功率，当前 {0}。已结算至 {1} 前。",
  batch_says: "近两分钟进行中的请求数，当前 {0}。",
  cells_says: "{0} 个请求：{1}", seconds_ago: "{0} 秒前", seconds: "{0} 秒", unseen: "未观测",
};

const asked = navigator.languages ?? [navigator.language];
const first = asked.find(language => /^(zh|en)\b/i.test(language)) ?? "en";
const chinese = /^zh\b/i.test(first);
export const language = chinese ? "zh-CN" : "en";
const words = chinese ? { ...en, ...zh } : en;

export function say(word, ...values) {
  return (words[word] ?? word).replace(/\{(\d)\}/g, (_, i) => values[i]);
}

/** Fill in every element that names its word, or its label. */
export function translate() {
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-word]")) {
    element.textContent = say(element.dataset.word);
  }
  for (const element of document.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", say(element.dataset.label));
  }
}
