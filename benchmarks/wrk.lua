-- The request that wrk repeats, and what it prints in the end: the JSON object of closed_loop.py.
-- wrk ... URL -- BODY_FILE ACCEPT CONTENT_TYPE
--
-- Answers count from a moment after the start: what is under way when the time is over is computed
-- and never counted, and without the same gap at the beginning it would lower the rate.

local ffi = require("ffi")
ffi.cdef[[
   typedef struct { long seconds; long microseconds; } moment;
   int gettimeofday(moment *, void *);
]]

local WARM_UP_SECONDS = 0.3
local thread

local function now()
   local time = ffi.new("moment")
   ffi.C.gettimeofday(time, nil)
   return tonumber(time.seconds) + tonumber(time.microseconds) / 1e6
end

function setup(started)
   thread = started
end

function init(args)
   local file = assert(io.open(args[1], "rb"))
   wrk.method = "POST"
   wrk.body = file:read("*a")
   wrk.headers["Accept"] = args[2]
   wrk.headers["Content-Type"] = args[3]
   file:close()
   counted = 0
   counts_from = now() + WARM_UP_SECONDS
end

function response(status, headers, body)
   if now() >= counts_from then
      counted = counted + 1
   end
end

function done(summary, latency, requests)
   local seconds = now() - thread:get("counts_from")
   local errors = 0
   for _, count in pairs(summary.errors) do
      errors = errors + count
   end
   io.write(string.format(
      '{"requests": %d, "seconds": %.6f, "all_seconds": %.6f, "p50_ms": %.3f, "p99_ms": %.3f, ' ..
      '"errors": %d}\n',
      thread:get("counted"), seconds, summary.duration / 1e6,
      latency:percentile(50.0) / 1e3, latency:percentile(99.0) / 1e3, errors))
end
