-- The request that wrk repeats, and what it prints in the end: the JSON object of client.py.
-- wrk ... URL -- BODY ACCEPT

function init(args)
   wrk.method = "POST"
   wrk.body = args[1]
   wrk.headers["Accept"] = args[2]
   wrk.headers["Content-Type"] = "application/json"
end

function done(summary, latency, requests)
   local errors = 0
   for _, count in pairs(summary.errors) do
      errors = errors + count
   end
   io.write(string.format(
      '{"requests": %d, "seconds": %.6f, "p50_ms": %.3f, "p99_ms": %.3f, "errors": %d}\n',
      summary.requests, summary.duration / 1e6,
      latency:percentile(50.0) / 1e3, latency:percentile(99.0) / 1e3, errors))
end
