-- wrk's script: POST one body, count answers by status, print one JSON line at the end.
local file = io.open(os.getenv("BODY"), "rb")
wrk.method = "POST"
wrk.body = file:read("*all")
file:close()
if os.getenv("HEADER_LENGTH") ~= "" then
  wrk.headers["Inference-Header-Content-Length"] = os.getenv("HEADER_LENGTH")
end

local threads = {}
function setup(thread) table.insert(threads, thread) end

ok, busy, other = 0, 0, 0
function response(status)
  if status == 200 then ok = ok + 1 elseif status == 503 then busy = busy + 1 else other = other + 1 end
end

function done(summary, latency)
  local count = { ok = 0, busy = 0, other = 0 }
  for _, thread in ipairs(threads) do
    for name in pairs(count) do count[name] = count[name] + thread:get(name) end
  end
  local e = summary.errors
  io.write(string.format(
    '\n{"ok": %d, "busy": %d, "other": %d, "lost": %d, "seconds": %.4f, "p50_ms": %.3f, "p99_ms": %.3f}\n',
    count.ok, count.busy, count.other, e.connect + e.read + e.write + e.timeout, summary.duration / 1e6,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
